"""A model elsewhere in a running cluster: its replica is a process, its errors cross to the
ingress, its key comes from the environment."""

import asyncio
import json
import threading

import pytest

from tests.conftest import wait_until
from tests.elsewhere import KEY, Scripted, served_in_a_thread
from tests.test_serve import chat

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

EVENTS = {"content-type": "text/event-stream"}
ONE = b'data: {"model": "x", "choices": [{"delta": {"content": "one"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.fixture
def http(locked, admin_key):
    with locked.http() as client:
        client.headers["authorization"] = f"Bearer {admin_key[0]}"
        yield client


def test_it_streams_and_its_key_stays_where_it_is(http, locked, far_port):
    app = Scripted((200, EVENTS, ONE, ONE, DONE))
    with served_in_a_thread(app, far_port):
        answer = http.post("/v1/chat/completions", json=chat("x", "far", stream=True))
    assert answer.text.count('"model": "far"') == 2
    assert answer.text.endswith("data: [DONE]\n\n")
    assert answer.headers["x-roundhouse-model"] == "far"
    assert app.asked[0][0]["authorization"] == f"Bearer {KEY}"
    snapshot = http.get("/v1/cluster").text
    assert '"model":"far"' in snapshot
    told = snapshot + http.get("/v1/dashboard").text + locked.log.read_text()
    assert KEY not in told
    assert http.get("/readyz").status_code == 200


def test_one_that_breaks_off_ends_the_stream_with_its_own_error(http, far_port):
    with served_in_a_thread(Scripted((200, EVENTS, ONE, b"")), far_port):
        answer = http.post("/v1/chat/completions", json=chat("x", "far", stream=True))
    *_, last = [line[6:] for line in answer.text.splitlines() if line]
    error = json.loads(last)["error"]
    assert error["code"] == "endpoint_unavailable"
    assert error["message"] == "far: the endpoint has ended in the middle of its answer"


def test_a_client_that_hangs_up_ends_the_request_there(http, far_port):
    left = threading.Event()

    async def app(_scope, receive, send):
        await receive()
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": ONE, "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            await asyncio.sleep(0)
        left.set()

    with served_in_a_thread(app, far_port):
        body = chat("x", "far", stream=True)
        with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            next(answer.iter_lines())
        assert left.wait(10)


def test_one_that_is_not_there_is_told_by_its_replica(http):
    for _ in range(3):
        answer = http.post("/v1/chat/completions", json=chat("x", "far"))
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "endpoint_unavailable"
    answer = http.post("/v1/chat/completions", json=chat("x", "far"))
    assert answer.headers["retry-after"]

    def trouble() -> list[str]:
        members = http.get("/v1/cluster").json()["members"]
        http.post("/v1/chat/completions", json=chat("x", "far"))
        return [m["trouble"] for m in members if m["trouble"]]

    wait_until(lambda: any("far: the endpoint cannot be reached" in t for t in trouble()))
