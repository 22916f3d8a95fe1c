"""A model elsewhere behind the engine's protocol: what is sent, what is passed on, what is told."""

import asyncio
import json
import logging
import time
from contextlib import AsyncExitStack
from email.utils import formatdate

import pytest

from cluster.errors import ConfigError, EndpointUnavailable, Overloaded, RoundhouseError
from deployments.engines.endpoint.answers import retry_after_s
from deployments.engines.endpoint.endpoint_engine import EndpointEngine
from deployments.process import metrics
from tests.conftest import free_port
from tests.elsewhere import (
    KEY,
    PATH,
    THERE,
    Scripted,
    certificate,
    far_engine,
    far_settings,
    served,
)

JSON = {"content-type": "application/json"}
EVENTS = {"content-type": "text/event-stream"}
# Long names: a chunk names the model, and so does what is said of it.
WHOLE = {"id": "1", "model": "far/Model-9b-2026-01", "choices": [{"message": {"content": "hi"}}]}
USAGE = {"prompt_tokens": 1000, "completion_tokens": 10, "total_tokens": 1010}


def event(text: str = "", **more) -> bytes:
    choices = [{"delta": {"content": text}, "finish_reason": None}]
    chunk = {"model": "far/Model-9b-2026-01", "choices": choices} | more
    return b"data: " + json.dumps(chunk).encode() + b"\r\n\r\n"


DONE = b"data: [DONE]\n\n"


def body(**fields) -> bytes:
    asked = {"model": "far", "messages": [{"role": "user", "content": "hello"}]}
    return json.dumps(asked | fields).encode()


async def ask(engine: EndpointEngine, **fields) -> tuple[int, dict, bytes]:
    async with engine.answer(PATH, body(**fields), {"x-request-id": "r1"}) as reply:
        return reply.start.status, reply.start.headers, await reply.read()


async def refused(engine: EndpointEngine, **fields) -> RoundhouseError:
    with pytest.raises(RoundhouseError) as error:
        await ask(engine, **fields)
    return error.value


def chunks(content: bytes) -> list[dict]:
    lines = [line[6:] for line in content.decode().split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def counted(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(f"roundhouse_{name}_total", labels) or 0.0


async def test_an_answer_comes_under_our_own_name_and_is_paid_for():
    app = Scripted((200, JSON, json.dumps(WHOLE | {"usage": USAGE}).encode()))
    before = counted("cost", model="far")
    async with served(app) as url, far_engine(url, price_in=2, price_out=30) as engine:
        status, headers, content = await ask(engine, cache_salt="tenant's", temperature=0.5)
    assert (status, headers) == (200, JSON)
    assert json.loads(content) == WHOLE | {"usage": USAGE, "model": "far"}
    (sent, asked) = app.asked[0]
    told = json.loads(asked)
    assert told == {"model": THERE, "messages": told["messages"], "temperature": 0.5}
    assert sent["x-request-id"] == "r1"
    assert "authorization" not in sent
    assert counted("cost", model="far") - before == pytest.approx((2 * 1000 + 30 * 10) / 1e6)


async def test_a_stream_is_passed_on_as_it_comes_without_the_usage_that_we_asked_for():
    more = asyncio.Event()
    end = event(choices=[], usage=USAGE)
    app = Scripted((200, EVENTS, b": wait\n\n" + event("one"), more.wait, event(" two"), end, DONE))
    before = counted("endpoint_tokens", model="far", kind="prompt")
    async with (
        served(app) as url,
        far_engine(url) as engine,
        engine.answer(PATH, body(stream=True), {}) as reply,
    ):
        assert reply.start.is_stream
        first = await anext(reply.body)
        assert json.loads(first[6:])["choices"][0]["delta"]["content"] == "one"
        more.set()
        rest = await reply.read()
    found = chunks(first + rest)
    assert [c["choices"][0]["delta"]["content"] for c in found] == ["one", " two"]
    assert {c["model"] for c in found} == {"far"}
    assert json.loads(app.asked[0][1])["stream_options"] == {"include_usage": True}
    assert counted("endpoint_tokens", model="far", kind="prompt") - before == 1000


async def test_who_asks_for_the_usage_of_a_stream_gets_it():
    app = Scripted((200, EVENTS, event("one"), event(choices=[], usage=USAGE), DONE))
    async with served(app) as url, far_engine(url) as engine:
        asked = {"stream": True, "stream_options": {"include_usage": True}}
        _, _, content = await ask(engine, **asked)
    assert chunks(content)[-1]["usage"] == USAGE


async def test_an_endpoint_that_refuses_to_tell_it_need_not_be_asked():
    app = Scripted((200, EVENTS, event("one"), DONE))
    before = counted("endpoint_tokens", model="far", kind="completion")
    async with served(app) as url, far_engine(url, stream_usage=False) as engine:
        await ask(engine, stream=True)
    assert "stream_options" not in json.loads(app.asked[0][1])
    assert counted("endpoint_tokens", model="far", kind="completion") - before == 1, "estimated"


async def test_a_stream_that_says_that_it_is_whole_needs_no_done():
    whole = event(choices=[{"delta": {}, "finish_reason": "stop"}])
    app = Scripted((200, EVENTS, event("one"), whole))
    async with served(app) as url, far_engine(url) as engine:
        assert len(chunks((await ask(engine, stream=True))[2])) == 2


@pytest.mark.parametrize(
    "last",
    [b"", event(error={"message": "gone"}, choices=None).replace(b'"choices": null', b'"x": 1')],
)
async def test_a_stream_that_breaks_off_ends_with_an_error(last):
    app = Scripted((200, EVENTS, event("one"), last))
    async with served(app) as url, far_engine(url) as engine:
        async with AsyncExitStack() as held:
            reply = await held.enter_async_context(engine.answer(PATH, body(stream=True), {}))
            assert b"one" in await anext(reply.body)
            with pytest.raises(EndpointUnavailable, match=r"far: the endpoint has"):
                await anext(reply.body)
        assert engine.unfinished() == 0


async def test_who_leaves_ends_the_request_there():
    left = asyncio.Event()

    async def app(_scope, receive, send):
        await receive()
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": event("one"), "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            continue
        left.set()

    async with served(app) as url, far_engine(url) as engine:
        async with engine.answer(PATH, body(stream=True), {}) as reply:
            await anext(reply.body)
            assert engine.unfinished() == 1
        await asyncio.wait_for(left.wait(), 5)
        assert engine.unfinished() == 0


MISTAKE = {"error": {"message": f"{THERE}: bad n, {KEY}", "param": "n", "code": "bad", "type": "x"}}


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_the_clients_own_mistake_is_told_in_our_shape(status):
    app = Scripted((status, JSON, json.dumps(MISTAKE).encode()))
    async with served(app) as url, far_engine(url) as engine:
        found, _, content = await ask(engine)
        assert engine.trouble() == ""
    assert found == status
    error = json.loads(content)["error"]
    assert (error["param"], error["code"]) == ("n", "bad")
    assert error["type"] == "invalid_request_error"
    assert THERE not in error["message"]
    assert len(app.asked) == 1


SAID = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}).encode()


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (401, JSON, SAID),
        (403, JSON, SAID),
        (404, JSON, SAID),
        (500, JSON, SAID),
        (500, JSON, SAID + b" " * 100_000),
        (302, {"location": "http://169.254.169.254/latest"}, b""),
        (200, {"content-type": "text/html"}, b"<html>"),
        (200, JSON, b"[" * 100_000),
        (200, JSON, SAID),
        (200, EVENTS, b""),
        (200, EVENTS, b"data: " + SAID + b"\n\n"),
    ],
)
async def test_what_is_no_answer_is_503_and_says_nothing_of_the_key(
    status, headers, said, tmp_path, caplog
):
    caplog.set_level(logging.DEBUG)
    (tmp_path / "key").write_text(f"{KEY}\n")
    app = Scripted((status, headers, said))
    key = {"key_file": str(tmp_path / "key")}
    async with served(app) as url, far_engine(url, **key, retries=0) as engine:
        error = await refused(engine)
        assert isinstance(error, EndpointUnavailable)
        assert error.message.startswith("far: ")
        assert KEY not in repr(vars(engine)) + engine.trouble()
    assert app.asked[0][0]["authorization"] == f"Bearer {KEY}"
    assert len(app.asked) == 1, "nothing is followed"
    assert KEY not in caplog.text + error.message


async def test_what_it_has_no_time_for_is_429_with_its_own_retry_after():
    app = Scripted((429, {"retry-after": "7"}, b""))
    async with served(app) as url, far_engine(url) as engine:
        for _ in range(2):
            error = await refused(engine)
            assert isinstance(error, Overloaded)
            assert error.headers() == {"retry-after": "7"}
        assert "left alone for 7 s" in engine.trouble()
    assert len(app.asked) == 1, "it is left alone for so long"


async def test_a_short_retry_after_is_waited_for():
    app = Scripted((429, {"retry-after": "1"}, b""), (200, JSON, json.dumps(WHOLE).encode()))
    began = time.monotonic()
    async with served(app) as url, far_engine(url) as engine:
        assert (await ask(engine))[0] == 200
    assert time.monotonic() - began >= 1


async def test_a_failure_is_tried_again_as_often_as_the_settings_say():
    down = (503, JSON, b"")
    app = Scripted(down, down, (200, JSON, json.dumps(WHOLE).encode()))
    async with served(app) as url, far_engine(url, retries=2) as engine:
        assert (await ask(engine))[0] == 200
    assert len(app.asked) == 3
    app = Scripted(down)
    async with served(app) as url, far_engine(url, retries=1) as engine:
        await refused(engine)
    assert len(app.asked) == 2


async def test_what_may_be_paid_for_is_not_asked_for_again():
    app = Scripted((200, JSON | {"content-length": "1000"}, b'{"choices": '))
    async with served(app) as url, far_engine(url, retries=2) as engine:
        assert "has hung up" in (await refused(engine)).message
    assert len(app.asked) == 1


async def test_after_failures_in_a_row_nothing_is_sent():
    app = Scripted((500, JSON, b""))
    async with served(app) as url, far_engine(url, retries=0, breaker_failures=2) as engine:
        for _ in range(4):
            error = await refused(engine)
            assert error.status == 503
        assert error.headers()["retry-after"] == "1"
        assert "the endpoint failed (500)" in engine.trouble()
    assert len(app.asked) == 2


async def test_one_that_is_not_there_is_503():
    async with far_engine(f"http://127.0.0.1:{free_port()}/v1", retries=0) as engine:
        assert "cannot be reached (ConnectError)" in (await refused(engine)).message


async def test_one_that_is_silent_is_given_up_and_not_asked_twice():
    async def silence() -> None:
        await asyncio.sleep(1)

    app = Scripted((200, JSON, silence, b"{}"))
    async with served(app) as url, far_engine(url, timeout_s=0.2) as engine:
        assert "in time" in (await refused(engine)).message
    assert len(app.asked) == 1, "it may have begun to work on it"


async def test_an_answer_without_end_is_cut_off(monkeypatch):
    monkeypatch.setattr("deployments.engines.endpoint.endpoint_engine.LONGEST_ANSWER", 1000)
    monkeypatch.setattr("deployments.engines.endpoint.answers.LONGEST_ANSWER", 1000)
    for headers in (JSON, EVENTS):
        app = Scripted((200, headers, b"x" * 2000))
        async with served(app) as url, far_engine(url, retries=0) as engine:
            assert isinstance(await refused(engine), EndpointUnavailable)


async def test_its_limits_are_kept_or_told():
    app = Scripted((200, JSON, json.dumps(WHOLE).encode()))
    async with served(app) as url:
        async with far_engine(url, requests_per_minute=6, patience_s=0.1) as engine:
            assert (await ask(engine))[0] == 200
            error = await refused(engine)
            assert isinstance(error, Overloaded)
            assert 9 < error.retry_after_s <= 10
        async with far_engine(url, tokens_per_minute=600, patience_s=0.1) as engine:
            assert (await ask(engine, max_tokens=1000))[0] == 200
            # It used ten words; but who has told no usage is taken for no more than that.
            error = await refused(engine)
            assert error.retry_after_s < 5
    assert len(app.asked) == 2


async def test_what_was_not_answered_has_used_nothing():
    mistake = (400, JSON, b'{"error": {"message": "no"}}')
    app = Scripted(mistake, (401, JSON, b""), (200, JSON, json.dumps(WHOLE).encode()))
    limits = {"tokens_per_minute": 600, "patience_s": 0.1}
    async with served(app) as url, far_engine(url, **limits) as engine:
        assert (await ask(engine))[0] == 400
        await refused(engine)
        assert (await ask(engine))[0] == 200


async def test_a_key_is_read_where_it_is_now(tmp_path, monkeypatch):
    file = tmp_path / "key"
    file.write_text("first\n")
    app = Scripted((200, JSON, json.dumps(WHOLE).encode()))
    async with served(app) as url:
        async with far_engine(url, key_file=str(file)) as engine:
            await ask(engine)
            file.write_text("second")
            await ask(engine)
            file.unlink()
            assert "key is not there" in (await refused(engine)).message
        monkeypatch.setenv("ROUNDHOUSE_FAR_KEY", "third")
        async with far_engine(url, key_env="ROUNDHOUSE_FAR_KEY") as engine:
            await ask(engine)
    keys = [headers["authorization"] for headers, _ in app.asked]
    assert keys == ["Bearer first", "Bearer second", "Bearer third"]


@pytest.mark.parametrize("key", ["", "  \n", "two\nlines", "caf\u00e9"])
async def test_a_key_that_is_none_is_found_out_at_the_start(key, tmp_path):
    file = tmp_path / "key"
    file.write_text(key)
    for at in (file, tmp_path / "nowhere"):
        engine = EndpointEngine(far_settings("https://far.example/v1", key_file=str(at)))
        with pytest.raises(ConfigError, match=r"models\.far\.endpoint\.key_file"):
            await engine.start()
    engine = EndpointEngine(far_settings("https://far.example/v1", key_env="ROUNDHOUSE_NO_KEY"))
    with pytest.raises(ConfigError, match="ROUNDHOUSE_NO_KEY has no key"):
        await engine.start()


async def test_certificates_are_checked(tmp_path):
    own = certificate(tmp_path)
    app = Scripted((200, JSON, json.dumps(WHOLE).encode()))
    async with served(app, own) as url:
        async with far_engine(url, retries=0) as engine:
            assert "cannot be reached" in (await refused(engine)).message
        async with far_engine(url, ca_file=str(own)) as engine:
            assert (await ask(engine))[0] == 200
    assert len(app.asked) == 1
    engine = EndpointEngine(far_settings(url, ca_file=str(tmp_path / "none.pem")))
    with pytest.raises(ConfigError, match=r"endpoint\.ca_file"):
        await engine.start()


def test_retry_after_is_seconds_or_a_date():
    assert retry_after_s("12") == 12
    assert 25 < retry_after_s(formatdate(time.time() + 30, usegmt=True)) <= 31
    assert retry_after_s(formatdate(time.time() - 30, usegmt=True)) == 0
    assert [retry_after_s(x) for x in (None, "", "soon", "-1", "٣")] == [None] * 5
    assert retry_after_s("9" * 400) > 1e8
