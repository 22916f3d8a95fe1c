"""The endpoint's contract, with the real gateway, store and router, and echo engines in-process."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from adapter_store.catalogue import Changes
from adapter_store.files.blob_stores import open_blobs
from adapter_store.files.node_cache import NodeCache
from adapter_store.routing_log import OutcomeReader, RoutingLog
from adapter_store.store import Store
from cluster.adapters import Tier
from cluster.decisions import Outcome
from cluster.errors import Overloaded, ReplicaLost, StoreUnavailable, Unavailable
from cluster.members import DeploymentState, Replica, Residency
from cluster.plans import Happening
from cluster.settings import BaseModelSettings, RouterSettings, parse_settings
from deployments.ingress.auth import new_key
from deployments.ingress.changes.admin import AdapterAdmin
from deployments.ingress.edge.request_ids import known_as
from deployments.ingress.http import build_http
from deployments.ingress.operations import operations
from deployments.ingress.terms import Terms
from deployments.process import metrics
from deployments.process.call import Reply
from deployments.process.process import Process
from deployments.process.telemetry import Telemetry
from deployments.process.tracing import Tracing
from deployments.replica.adapter_cache import AdapterCache
from deployments.replica.adapter_files import AdapterFiles
from deployments.replica.model_server import make_engine
from deployments.replica.serve_call import serve_call
from deployments.replica.trials import Trials
from router.adapters.encoder import SentenceEncoder
from router.adapters.prompt_router import PromptRouter
from tests.conftest import ECHO_FACTS, until

pytestmark = pytest.mark.redis

CLIENT_KEY, CLIENT_HASH = new_key()
ADMIN_KEY, ADMIN_HASH = new_key()
JSON = {"content-type": "application/json"}


ROUTES = {
    "/v1/chat/completions": ["POST"],
    "/v1/completions": ["POST"],
    "/v1/route": ["POST"],
    "/v1/rules": ["GET", "PUT", "DELETE"],
    "/v1/feedback": ["POST"],
    "/v1/decisions": ["GET"],
    "/v1/decisions/x": ["GET"],
    "/v1/models": ["GET"],
    "/v1/models/x": ["GET"],
    "/v1/cluster": ["GET"],
    "/v1/adapters": ["GET", "POST"],
    "/v1/adapters/x": ["GET", "PUT", "DELETE"],
    "/v1/adapters/x/versions": ["GET", "POST"],
    "/v1/dashboard": ["GET"],
    "/v1/history": ["GET"],
    "/metrics": ["GET"],
}


class LocalPool:
    """One replica in this process, with the switches that tests need."""

    def __init__(self, settings, blobs, node_cache) -> None:
        self.engine = make_engine(settings)
        files = AdapterFiles(blobs, node_cache, self.engine)
        self.cache = AdapterCache(self.engine, files, settings.lora)
        self.trials = Trials(self.cache)
        self.is_full = False
        self.breaks_on: bytes | None = None
        self.deaths_left = 0
        self.dies_after: int | None = None
        self.dies_of: Exception = ReplicaLost("killed by the test")
        self.open_answers = 0
        self.terms: list[Terms] = []

    def tasks(self):
        return self.engine.tasks

    def running(self) -> list[str]:
        return ["local"]

    @asynccontextmanager
    async def sent(self, call) -> AsyncIterator[Reply]:
        yield await self.trials.answer(call.adapter)

    async def admit(self, call) -> None:
        """This replica sees the ingress's own catalogue: there is nothing to wait for."""

    @asynccontextmanager
    async def answer(self, call, terms) -> AsyncIterator[Reply]:
        self.terms.append(terms)
        if self.is_full:
            raise Overloaded("full", retry_after_s=3)
        if self.breaks_on is not None and self.breaks_on in call.body:
            raise RuntimeError("broken by the test")
        if self.deaths_left:
            self.deaths_left -= 1
            raise ReplicaLost("killed by the test")
        self.open_answers += 1
        try:
            async with AsyncExitStack() as held:
                reply = await serve_call(self.engine, self.cache, self.admit, call, "local", held)
                yield Reply(reply.start, self._dying(reply))
        finally:
            self.open_answers -= 1

    async def _dying(self, reply: Reply) -> AsyncIterator[bytes]:
        sent = 0
        async for chunk in reply.body:
            if sent == self.dies_after:
                raise self.dies_of
            yield chunk
            sent += 1


class LocalChooser:
    """The prompt router in this process, following the catalogue."""

    def __init__(self, router: PromptRouter) -> None:
        self.router = router
        self.is_down = False

    async def choose(self, prompts, constraints):
        if self.is_down:
            raise Unavailable("switched off")
        return self.router.choose(prompts, constraints)


class World:
    """Everything behind the HTTP client of a test."""

    app: FastAPI
    client: httpx.AsyncClient
    pool: LocalPool
    pools: dict[str, LocalPool]
    chooser: LocalChooser
    log: RoutingLog
    store: Store
    telemetry: Telemetry
    admin: AdapterAdmin


@asynccontextmanager
async def world(
    store_settings, prompt_router, tmp_path, engine_args=None, others=(), fallback=(), **changes
) -> AsyncIterator[World]:
    """Args: others: models beside `echo`; fallback: of `echo`."""
    model = {"id": "echo", "path": "none", "engine": "echo", "max_ongoing": 4}
    model |= {"engine_args": engine_args or {}, "fallback": list(fallback)}
    tree = {"models": [model, *others], "store": {"data_dir": str(tmp_path / "data")}} | changes
    settings = parse_settings(tree)
    blobs = open_blobs(settings.store)
    it = World()
    node = NodeCache(tmp_path / "node", 2**30)
    it.pools = {m.id: LocalPool(m, blobs, node) for m in settings.models}
    it.pool = it.pools["echo"]
    it.chooser = LocalChooser(prompt_router)

    process = Process(store_settings, "test")
    process.add(Tracing(settings.telemetry, "ingress", "test"))
    catalogue = process.catalogue

    async def learn(_: Changes) -> None:
        it.chooser.router.update(catalogue.adapters)

    catalogue.on_change(learn)
    for pool in it.pools.values():
        process.add(pool.trials)

    async def deployments():
        return (DeploymentState(name="Model-echo", status="HEALTHY", running=1),)

    offered = operations(settings, process, it.chooser, it.pools, lambda *_: None, deployments)
    it.admin = offered.admin
    it.telemetry, it.store = process.telemetry, process.store
    it.log = RoutingLog(process.store.server, keep_s=settings.router.keep_decisions_s)

    @asynccontextmanager
    async def no_lifespan(_):
        yield

    it.app = build_http(
        offered,
        settings.http,
        settings.auth,
        lifespan=no_lifespan,
        is_traced=settings.telemetry.otlp_endpoint is not None,
    )
    await process.start()
    transport = httpx.ASGITransport(app=it.app)
    for pool in it.pools.values():
        facts = await pool.engine.start()
        if pool is not it.pool:
            await it.store.registry.put_base_model(facts)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as it.client:
            yield it
    finally:
        await process.stop()
        for pool in it.pools.values():
            await pool.engine.stop()


@pytest.fixture
async def rh(make_world):
    async with make_world() as it:
        yield it


def chat(model: str, text: str = "hello there world", **fields):
    return {"model": model, "messages": [{"role": "user", "content": text}]} | fields


async def ask(rh: World, model: str, text: str = "hello there world", **fields) -> httpx.Response:
    return await rh.client.post("/v1/chat/completions", json=chat(model, text, **fields))


async def add(rh: World, folder, **fields) -> httpx.Response:
    return await rh.client.post("/v1/adapters", json={"source": str(folder)} | fields)


def error(answer: httpx.Response, status: int) -> dict:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


# -- inference ----------------------------------------------------------------------------------


async def test_a_base_model_answers_by_its_name(rh):
    answer = await ask(rh, "echo")
    assert answer.json()["choices"][0]["message"]["content"] == "hello there world"
    assert answer.json()["model"] == "echo"
    assert answer.headers["x-roundhouse-adapter"] == "base"
    assert answer.headers["x-roundhouse-route"] == "explicit"


async def test_an_adapter_answers_by_name_version_and_alias(rh, make_adapter):
    await add(rh, make_adapter("cron"))
    for model in ("cron", "cron@1", "cron@latest"):
        answer = await ask(rh, model)
        assert answer.json()["model"] == "cron"
        assert answer.headers["x-roundhouse-adapter"] == "cron"
        assert answer.headers["x-roundhouse-version"] == "1"
        assert answer.headers["x-roundhouse-route"] == "explicit"
        assert answer.headers["x-roundhouse-replica"] == "local"


async def test_the_first_request_finds_the_adapter_on_the_node_the_second_in_a_slot(
    rh, make_adapter
):
    await add(rh, make_adapter("cron"))
    tiers = [(await ask(rh, "cron")).headers["x-roundhouse-residency"] for _ in range(2)]
    assert tiers == [Tier.NODE, Tier.SLOT], "it was loaded once, on trial"


async def test_completions_work_like_chat(rh):
    answer = await rh.client.post("/v1/completions", json={"model": "echo", "prompt": "one two"})
    assert answer.json()["choices"][0]["text"] == "one two"


async def test_a_stream_ends_with_usage_and_done(rh):
    answer = await ask(rh, "echo", stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [line[6:] for line in answer.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(e) for e in events[:-1]]
    words = [c["choices"][0]["delta"]["content"] for c in chunks if c["choices"]]
    assert "".join(words) == "hello there world"
    assert chunks[-1]["usage"]["total_tokens"] == 6


async def test_auto_chooses_by_the_prompt_as_soon_as_an_adapter_is_there(rh, make_adapter):
    prompt = "every friday at ten in the morning"
    before = await ask(rh, "auto", prompt)
    assert before.headers["x-roundhouse-adapter"] == "base"
    examples = ["every weekday at half past nine", "each hour", "sundays at midnight"]
    await add(rh, make_adapter("cron", examples=examples))
    after = await ask(rh, "auto", prompt)
    assert after.headers["x-roundhouse-adapter"] == "cron"
    assert after.headers["x-roundhouse-route"] == "auto"
    assert after.json()["model"] == "cron"
    joke = await ask(rh, "auto", "tell me a joke")
    assert joke.headers["x-roundhouse-adapter"] == "base"
    assert joke.headers["x-roundhouse-route"] == "auto"


async def test_without_the_router_auto_falls_back_to_the_base_model_and_says_so(rh):
    rh.chooser.is_down = True
    answer = await ask(rh, "auto")
    assert answer.status_code == 200
    assert answer.headers["x-roundhouse-adapter"] == "base"
    assert answer.headers["x-roundhouse-route"] == "fallback"
    (decision,) = (await rh.client.post("/v1/route", json={"input": "x"})).json()["decisions"]
    assert decision["route"] == "fallback"
    assert "switched off" in decision["reason"]


async def test_a_client_that_hangs_up_frees_the_replica(make_world):
    async with make_world(engine_args={"token_s": 0.01}) as rh:
        await _hang_up(rh)


async def _hang_up(rh: World) -> None:
    request = rh.client.build_request(
        "POST", "/v1/chat/completions", json=chat("echo", "word " * 1000, stream=True)
    )
    task = asyncio.create_task(rh.client.send(request))
    await asyncio.sleep(0.2)
    assert rh.pool.open_answers == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert rh.pool.open_answers == 0


async def test_a_replica_that_dies_before_it_answers_is_not_noticed(rh):
    rh.pool.deaths_left = 1
    assert (await ask(rh, "echo")).status_code == 200
    rh.pool.deaths_left = 2
    assert error(await ask(rh, "echo"), 503)["code"] == "replica_lost"


async def test_a_replica_that_dies_in_mid_stream_ends_it_with_an_error_event(rh):
    rh.pool.dies_after = 2
    answer = await ask(rh, "echo", stream=True)
    events = [line[6:] for line in answer.text.splitlines() if line]
    assert json.loads(events[0])["choices"][0]["delta"]["content"] == "hello"
    assert json.loads(events[-1])["error"]["code"] == "replica_lost"


# -- what is wrong with a request ---------------------------------------------------------------


async def test_an_unknown_model_is_404_with_near_names(rh, make_adapter):
    await add(rh, make_adapter("cron"))
    found = error(await ask(rh, "corn"), 404)
    assert "'cron'" in found["message"]
    assert found["param"] == "model"
    assert found["code"] == "model_not_found"
    for selector in ("7", "9" * 5000, "\u0663", "-1"):
        error(await ask(rh, f"cron@{selector}"), 404)
    error(await rh.client.get("/v1/models/corn"), 404)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [{"role": "user", "content": "x"}]}, "model"),
        ({"model": 3}, "model"),
        ({"model": "echo"}, "messages"),
        ({"model": "echo", "messages": "x"}, "messages"),
        ({"model": "echo", "messages": []}, "messages"),
        ({"model": "echo", "messages": [{"content": "x"}]}, "messages[0]"),
        ({"model": "auto", "messages": [7]}, "messages[0]"),
        (chat("echo", stream="perhaps"), "stream"),
        (chat("echo", stream=True, stream_options=[{"include_usage": True}]), "stream_options"),
        (chat("echo", max_tokens="many"), "max_tokens"),
        (chat("auto", constraints={"colour": 1}), "constraints.colour"),
        (chat("auto", constraints={"min_confidence": 2}), "constraints.min_confidence"),
        (chat("auto", constraints=[1]), "constraints"),
    ],
)
async def test_a_malformed_body_is_400_and_names_the_field(rh, body, param):
    answer = await rh.client.post("/v1/chat/completions", json=body)
    assert error(answer, 400)["param"] == param


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'"x"', b"[" * 100_000])
async def test_what_is_not_a_json_object_is_400(rh, content):
    answer = await rh.client.post("/v1/chat/completions", content=content, headers=JSON)
    assert error(answer, 400)["type"] == "invalid_request_error"


async def test_a_body_that_drips_is_408(rh, monkeypatch):
    monkeypatch.setattr("deployments.ingress.bodies._BODY_S", 0.3)

    async def drops():
        for _ in range(10):
            yield b" "
            await asyncio.sleep(0.1)

    answer = await rh.client.post("/v1/chat/completions", content=drops(), headers=JSON)
    assert "0.3 s" in error(answer, 408)["message"]


async def test_an_oversized_body_is_413(make_world):
    async with make_world(http={"max_body_bytes": 1000}) as rh:
        assert "1000 bytes" in error(await ask(rh, "echo", "x" * 2000), 413)["message"]


async def test_overload_is_429_with_retry_after(rh):
    rh.pool.is_full = True
    answer = await ask(rh, "echo")
    assert error(answer, 429)["type"] == "rate_limit_error"
    assert answer.headers["retry-after"] == "3"


async def test_what_does_not_exist_is_404_in_the_same_shape(rh):
    error(await rh.client.get("/v1/nothing"), 404)
    error(await rh.client.get("/v1/chat/completions"), 405)


# -- deciding -----------------------------------------------------------------------------------


async def test_route_decides_for_a_string_a_conversation_and_a_list(rh, make_adapter):
    examples = ["every weekday at half past nine", "each hour", "sundays at midnight"]
    await add(rh, make_adapter("cron", examples=examples))
    conversation = [{"role": "user", "content": "every friday at ten"}]
    for value, count in (
        ("every friday at ten", 1),
        (conversation, 1),
        (["every friday at ten", conversation], 2),
    ):
        answer = await rh.client.post("/v1/route", json={"input": value})
        decisions = answer.json()["decisions"]
        assert [d["adapter"] for d in decisions] == ["cron"] * count
        assert {"version", "confidence", "route", "reason"} <= set(decisions[0])
        assert set(decisions[0]["candidates"][0]) >= {"adapter", "score", "cost"}


@pytest.mark.parametrize("value", [None, 3, [], [3], {}])
async def test_route_names_a_wrong_input(rh, value):
    assert error(await rh.client.post("/v1/route", json={"input": value}), 400)["param"] == "input"


CRON = ["every weekday at half past nine", "each hour", "sundays at midnight", "noon on mondays"]


async def test_constraints_come_in_headers_too_and_the_body_wins(rh, make_adapter):
    await add(rh, make_adapter("cron", examples=CRON))
    prompt = {"input": "every friday at ten"}

    async def chosen(body=prompt, **headers):
        answer = await rh.client.post("/v1/route", json=body, headers=headers)
        return answer.json()["decisions"][0]["adapter"]

    assert await chosen() == "cron"
    assert await chosen(**{"x-roundhouse-exclude": "cron, sql"}) is None
    wins = prompt | {"constraints": {"exclude": []}}
    assert await chosen(wins, **{"x-roundhouse-exclude": "cron"}) == "cron"
    answer = await ask(rh, "auto", "every friday at ten")
    assert answer.headers["x-roundhouse-adapter"] == "cron"
    headers = {"x-roundhouse-tags": "fast"}
    body = chat("auto", "every friday at ten")
    answer = await rh.client.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.headers["x-roundhouse-adapter"] == "base"
    bad = {"x-roundhouse-max-latency-s": "soon"}
    answer = await rh.client.post("/v1/route", json=prompt, headers=bad)
    assert error(answer, 400)["param"] == "constraints.max_latency_s"


async def test_a_prompt_out_of_scope_is_refused_where_the_settings_say_so(make_world, make_adapter):
    async with make_world(router={"out_of_scope": "refuse"}) as rh:
        await add(rh, make_adapter("cron", examples=CRON))
        assert (await ask(rh, "auto", "every friday at ten")).status_code == 200
        found = error(await ask(rh, "auto", "tell me a joke about elephants"), 422)
        assert found["code"] == "out_of_scope"
        assert (await ask(rh, "echo", "tell me a joke about elephants")).status_code == 200


async def test_flags_in_the_prompt_are_obeyed_where_the_settings_say_so(make_world, rh):
    flagged = "[Flag: cheapest] every friday at ten"
    assert "[Flag" in (await ask(rh, "auto", flagged)).text
    async with make_world(router={"prompt_flags": True}) as obeying:
        answer = (await ask(obeying, "auto", flagged)).json()
        assert answer["choices"][0]["message"]["content"] == "every friday at ten"


async def test_flags_are_in_no_prefix_and_in_no_log(make_world, caplog):
    plain = "every friday at ten " * 40
    async with make_world(router={"prompt_flags": True}, logging={"prompts": True}) as rh:
        with caplog.at_level(logging.INFO, "deployments"):
            await ask(rh, "auto", plain)
            await ask(rh, "auto", f"[Flag: cheapest] {plain}")
    unflagged, flagged = (terms.prefix for terms in rh.pool.terms)
    assert unflagged == flagged != ()
    logged = [record.prompt for record in caplog.records if record.message == "request"]
    assert len(logged) == 2
    assert not any("Flag" in prompt for prompt in logged)


async def ask_as(rh: World, request_id: str, model: str = "auto") -> httpx.Response:
    """In a cluster, Serve's proxy gives every request an id."""
    body = chat(model, "every friday at ten")
    headers = {"x-request-id": request_id}
    return await rh.client.post("/v1/chat/completions", json=body, headers=headers)


async def kept(rh: World, request_id: str) -> dict:
    async def found():
        answer = await rh.client.get(f"/v1/decisions/{request_id}")
        return answer.json() if answer.status_code == 200 else None

    await until(found)
    return await found()


async def test_a_decision_can_be_looked_up_by_the_request_and_in_the_list(rh, make_adapter):
    await add(rh, make_adapter("cron", examples=CRON))
    await ask_as(rh, "r1")
    found = await kept(rh, "r1")
    assert (found["input"], found["answered_by"]) == ("every friday at ten", "cron")
    assert found["decision"]["evidence"][0]["example"] in CRON
    listed = (await rh.client.get("/v1/decisions")).json()["data"]
    assert [d["request_id"] for d in listed] == ["r1"]
    error(await rh.client.get("/v1/decisions/unknown"), 404)
    await ask_as(rh, "r2", model="cron")
    error(await rh.client.get("/v1/decisions/r2"), 404)


ODD_IDS = [
    b"Root=1-67891233-abcdef012345678912345678",
    b"a/b//c",
    b"a b",
    b"a%20b%2Fc",
    b"trailing/versions",
    "größe-日本".encode(),
    b"caf\xe9",
    b"x" * 512,
]


@pytest.mark.parametrize("sent", ODD_IDS)
async def test_whatever_id_a_client_sends_is_what_decisions_and_feedback_know(rh, sent, caplog):
    body, headers = chat("auto", "every friday at ten"), {"x-request-id": sent}
    with caplog.at_level(logging.INFO):
        answer = await rh.client.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200
    known = known_as(sent)
    assert [r.request_id for r in caplog.records if r.message == "request"] == [known]
    latin = sent.decode("latin-1") if sent.startswith(b"caf") else sent.decode()
    for told in {known, latin}:
        assert (await kept(rh, quote(told, safe="")))["request_id"] == known
    assert (await kept(rh, quote(known, safe="/% ")))["request_id"] == known
    rated = await rh.client.post("/v1/feedback", json={"request_id": latin, "score": 1})
    assert rated.json()["request_id"] == latin
    again = await rh.client.post("/v1/feedback", json={"request_id": known, "score": 1})
    assert error(again, 409)["param"] == "request_id"


async def test_an_id_that_is_too_long_is_refused_and_never_cut(rh):
    for sent in (b"x" * 513, "ö".encode() * 86):
        answer = await rh.client.get("/v1/models", headers={"x-request-id": sent})
        assert error(answer, 400)["param"] == "x-request-id"


async def test_feedback_is_kept_with_the_prompt_and_what_answered_it(rh, make_adapter):
    await add(rh, make_adapter("cron", examples=CRON))
    await ask_as(rh, "r1")
    await kept(rh, "r1")
    body = {"request_id": "r1", "score": 0.5}
    told = (await rh.client.post("/v1/feedback", json=body)).json()
    assert told == body | {"candidate": "cron"}
    ((_, outcome),) = await rh.log.outcomes("", "0-0")
    assert outcome == Outcome(input="every friday at ten", candidate="cron", score=0.5)


async def test_feedback_is_given_once(rh):
    await ask_as(rh, "r1")
    await kept(rh, "r1")
    body = {"request_id": "r1", "score": 1}
    assert (await rh.client.post("/v1/feedback", json=body)).status_code == 200
    assert error(await rh.client.post("/v1/feedback", json=body), 409)["param"] == "request_id"


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"request_id": "unknown", "score": 1}, 404, "request_id"),
        ({"request_id": "x", "score": 2}, 400, "score"),
        ({"request_id": "x", "score": "good"}, 400, "score"),
        ({"score": 1}, 400, "request_id"),
        ({"request_id": "x", "score": 1, "more": 1}, 400, "more"),
        ({"request_id": "x"}, 400, "score"),
        ({"request_id": "x", "scores": {"echo": 2}}, 400, "scores.echo"),
        ({"request_id": "x", "scores": {str(i): 1 for i in range(65)}}, 400, "scores"),
    ],
)
async def test_feedback_that_cannot_be_kept_names_the_field(rh, body, status, param):
    assert error(await rh.client.post("/v1/feedback", json=body), status)["param"] == param


async def test_feedback_may_be_of_several_candidates_on_one_prompt_each_once(rh, make_adapter):
    await add(rh, make_adapter("cron", examples=CRON))
    await ask_as(rh, "r1")
    await kept(rh, "r1")

    async def rate(**said):
        return await rh.client.post("/v1/feedback", json={"request_id": "r1"} | said)

    unknown = error(await rate(scores={"echo": 0.1, "nobody": 1}), 400)
    assert (unknown["param"], "'nobody'" in unknown["message"]) == ("scores", True)
    assert error(await rate(score=1, scores={"cron": 1}), 400)["param"] == "scores"
    assert await rh.log.outcomes("", "0-0") == [], "nothing of what is refused is kept"
    told = (await rate(scores={"echo": 0.1})).json()
    assert told == {"request_id": "r1", "scores": {"echo": 0.1}}
    assert error(await rate(score=0.9, scores={"echo": 0.2}), 409)["param"] == "request_id"
    assert (await rate(score=0.9)).json() == {"request_id": "r1", "candidate": "cron", "score": 0.9}
    assert error(await rate(scores={"cron": 0.2}), 409)["param"] == "request_id"
    found = [outcome for _, outcome in await rh.log.outcomes("", "0-0")]
    assert {(o.input, o.candidate, o.score) for o in found} == {
        ("every friday at ten", "echo", 0.1),
        ("every friday at ten", "cron", 0.9),
    }


async def test_feedback_changes_who_answers_the_next_prompt(make_world):
    """Several outcomes of each prompt, as a judge gives them that saw all answers."""
    large = {"id": "large", "path": "none", "engine": "echo"}
    async with make_world(others=[large]) as rh:
        models = [BaseModelSettings(id=name, path="none") for name in ("echo", "large")]
        rh.chooser.router = PromptRouter(
            SentenceEncoder.of(RouterSettings()), RouterSettings(), models
        )
        first = await ask_as(rh, "before")
        assert first.json()["model"] == "echo"
        for i in range(24):
            body = chat("auto", f"every {i} days at ten")
            await rh.client.post(
                "/v1/chat/completions", json=body, headers={"x-request-id": f"r{i}"}
            )
            await kept(rh, f"r{i}")
            said = {"request_id": f"r{i}", "scores": {"echo": 0.2, "large": 0.8}}
            assert (await rh.client.post("/v1/feedback", json=said)).status_code == 200
        reader = OutcomeReader(rh.log)
        assert await reader.read()
        rh.chooser.router.learn_outcomes(reader.known)
        assert (await ask_as(rh, "after")).json()["model"] == "large"


async def test_prompts_are_not_kept_where_the_settings_say_so(make_world):
    async with make_world(router={"keep_prompts": False}) as rh:
        await ask_as(rh, "r1")
        assert (await kept(rh, "r1"))["input"] is None
        body = {"request_id": "r1", "score": 1}
        answer = await rh.client.post("/v1/feedback", json=body)
        assert "keep_prompts" in error(answer, 409)["message"]


# -- adapters -----------------------------------------------------------------------------------


async def test_an_adapter_is_registered_listed_shown_updated_and_deleted(rh, make_adapter):
    created = await add(rh, make_adapter("cron", description="d"))
    assert created.status_code == 201
    assert created.json()["aliases"] == {"latest": 1, "stable": 1}
    shown = (await rh.client.get("/v1/adapters/cron")).json()
    assert (shown["description"], shown["examples"]) == ("d", ["an example for cron"])
    source = {"source": str(make_adapter("cron", seed=1))}
    updated = await rh.client.post("/v1/adapters/cron/versions", json=source)
    assert updated.json()["aliases"] == {"latest": 2, "stable": 2}
    versions = (await rh.client.get("/v1/adapters/cron/versions")).json()["data"]
    assert [v["number"] for v in versions] == [1, 2]
    assert (await ask(rh, "cron@1")).headers["x-roundhouse-version"] == "1"
    assert (await rh.client.delete("/v1/adapters/cron")).json() == {"name": "cron", "deleted": True}
    error(await rh.client.get("/v1/adapters/cron"), 404)
    error(await ask(rh, "cron"), 404)


async def test_the_base_model_of_a_name_cannot_change(rh, store, make_adapter):
    await store.registry.put_base_model(ECHO_FACTS.model_copy(update={"id": "other"}))
    await add(rh, make_adapter("cron"))
    source = {"source": str(make_adapter("cron", seed=1)), "base_model": "other"}
    refused = await rh.client.put("/v1/adapters/cron", json=source)
    assert error(refused, 409)["param"] == "base_model"


async def test_a_constraint_to_an_unknown_adapter_is_named(rh, make_adapter):
    await add(rh, make_adapter("cron"))
    refused = await ask(rh, "auto", constraints={"adapters": ["cron", "crom"]})
    told = error(refused, 404)
    assert told["param"] == "constraints.adapters"
    assert "'cron'" in told["message"]


async def test_a_constraint_on_an_unknown_base_model_is_named(rh):
    refused = await ask(rh, "auto", constraints={"base_model": "nope"})
    assert error(refused, 404)["param"] == "constraints.base_model"


@pytest.mark.parametrize("source", ["~nobody-here/x", "x" * 5000, "\u0000", ""])
async def test_a_source_that_is_no_path_is_refused(rh, source):
    assert error(await add(rh, source), 400)["param"] == "source"


async def test_a_page_elsewhere_cannot_register_by_a_plain_form(rh, make_adapter):
    body = json.dumps({"source": str(make_adapter("cron"))})
    refused = await rh.client.post(
        "/v1/adapters", content=body, headers={"content-type": "text/plain"}
    )
    assert "content-type" in error(refused, 415)["message"]


async def test_registering_twice_is_409_and_putting_twice_is_not(rh, make_adapter):
    folder = make_adapter("cron")
    await add(rh, folder)
    assert error(await add(rh, folder), 409)["param"] == "name"
    again = await rh.client.put("/v1/adapters/cron", json={"source": str(folder)})
    assert again.status_code == 200
    assert again.json()["aliases"] == {"latest": 1, "stable": 1}


async def test_a_refused_adapter_leaves_nothing(rh, make_adapter):
    refused = await add(rh, make_adapter("cron", config={"use_dora": True}))
    assert error(refused, 400)["code"] == "adapter_refused"
    assert (await rh.client.get("/v1/adapters")).json()["data"] == []
    error(await add(rh, "/nowhere"), 400)
    assert error(await rh.client.post("/v1/adapters", json={}), 400)["param"] == "source"


async def test_adapters_are_listed_page_by_page(rh, make_adapter):
    for name in ("c", "a", "b"):
        await add(rh, make_adapter(name))
    first = (await rh.client.get("/v1/adapters", params={"limit": 2})).json()
    assert [a["name"] for a in first["data"]] == ["a", "b"]
    second = (await rh.client.get("/v1/adapters", params={"cursor": first["next"]})).json()
    assert [a["name"] for a in second["data"]] == ["c"]
    assert second["next"] is None
    answer = await rh.client.get("/v1/adapters", params={"limit": 0})
    assert error(answer, 400)["param"] == "limit"


async def test_models_list_auto_bases_and_adapters(rh, make_adapter):
    await add(rh, make_adapter("cron"))
    models = (await rh.client.get("/v1/models")).json()["data"]
    assert [m["id"] for m in models] == ["auto", "echo", "cron"]
    assert models[2]["parent"] == "echo"
    assert (await rh.client.get("/v1/models/cron@1")).json()["id"] == "cron@1"


# -- keys ---------------------------------------------------------------------------------------


async def test_keys_open_what_their_scope_allows(make_world, make_adapter):
    keys = [
        {"name": "app", "sha256": CLIENT_HASH, "scope": "client"},
        {"name": "ops", "sha256": ADMIN_HASH, "scope": "admin"},
    ]
    folder = make_adapter("cron")
    async with make_world(auth={"enabled": True, "keys": keys}) as rh:
        found = error(await ask(rh, "echo"), 401)
        assert found["type"] == "authentication_error"
        rh.client.headers["authorization"] = "Bearer wrong"
        error(await rh.client.get("/v1/models"), 401)
        rh.client.headers["authorization"] = f"Bearer {CLIENT_KEY}"
        assert (await ask(rh, "echo")).status_code == 200
        assert error(await add(rh, folder), 403)["type"] == "permission_error"
        error(await rh.client.delete("/v1/adapters/cron"), 403)
        rh.client.headers["authorization"] = f"Bearer {ADMIN_KEY}"
        assert (await add(rh, folder)).status_code == 201
        assert (await ask(rh, "cron")).status_code == 200
        assert (await rh.client.get("/healthz")).status_code == 200


async def test_every_route_but_the_probes_asks_for_a_key_before_it_looks_at_the_body(make_world):
    keys = [{"name": "ops", "sha256": ADMIN_HASH, "scope": "admin"}]
    async with make_world(auth={"enabled": True, "keys": keys}) as rh:
        asked = 0
        for path, methods in ROUTES.items():
            for method in methods:
                answer = await rh.client.request(method, path, content=b"not json")
                error(answer, 401)
                asked += 1
        assert asked == 22
        for path in ("/docs", "/redoc"):
            error(await rh.client.get(path), 404)


# -- the page and the numbers -------------------------------------------------------------------


async def test_the_page_and_its_files_come_from_here_and_may_run_nothing_else(rh):
    page = await rh.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    for path in ("/", "/page/app.js", "/page/style.css", "/plotly/plotly.min.js"):
        answer = await rh.client.get(path)
        assert answer.status_code == 200, path
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; connect-src 'self'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert "http://" not in page.text
    assert "https://" not in page.text


def _counted(sample: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(sample, labels) or 0.0


async def test_a_request_is_counted_where_it_passes(rh, make_adapter):
    await add(rh, make_adapter("counted"))
    labels = {"model": "echo", "adapter": "counted"}
    await ask(rh, "counted", "one two three", stream=True)
    await ask(rh, "counted", "one two three")
    error(await ask(rh, "nobody"), 404)
    explicit = labels | {"route": "explicit", "status": "200"}
    assert _counted("roundhouse_requests_total", **explicit) == 2
    assert _counted("roundhouse_output_tokens_total", **labels) == 6
    assert _counted("roundhouse_time_to_first_token_seconds_count", **labels) == 1
    assert _counted("roundhouse_time_per_output_token_seconds_count", **labels) == 1
    refused = {"model": "", "adapter": metrics.UNKNOWN, "route": "", "status": "404"}
    assert _counted("roundhouse_requests_total", **refused) >= 1


async def test_metrics_are_told_in_prometheus_format(rh, make_adapter):
    await add(rh, make_adapter("cron"))
    await ask(rh, "cron")
    answer = await rh.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {f.name: f for f in text_string_to_metric_families(answer.text)}
    samples = families["roundhouse_requests"].samples
    assert any(s.labels["adapter"] == "cron" and s.labels["process"] == "test" for s in samples)


async def test_the_page_gets_all_of_the_cluster_in_one_answer(rh, store, make_adapter):
    await add(rh, make_adapter("cron", examples=["each hour"], description="Writes cron lines"))
    await ask(rh, "cron")
    await ask(rh, "auto", "each hour")
    await rh.telemetry.report()
    await store.members.renew(Replica(id="r", model="echo"))

    async def seen() -> dict:
        return (await rh.client.get("/v1/dashboard")).json()

    await until(lambda: _eventually(seen, lambda page: page["decisions"]))
    page = await seen()
    assert [row["name"] for row in page["adapters"]] == ["cron"]
    assert page["traffic"]["cron"]["requests"] >= 1
    assert sum(point["requests"] for point in page["history"]) >= 2
    assert page["decisions"][0]["adapter"] == "cron"
    assert "r" in [m["id"] for m in page["cluster"]["members"]]
    # What the page has already does not come again.
    again = await rh.client.get(
        "/v1/dashboard", params={"adapters_at": page["cluster"]["position"]}
    )
    assert again.json()["adapters"] is None


async def _eventually(read, holds) -> bool:
    return bool(holds(await read()))


async def test_the_page_says_what_is_wrong(rh, store):
    await store.members.renew(Replica(id="r", model="echo", problems={"a@1": "damaged"}))
    health = (await rh.client.get("/v1/dashboard")).json()["health"]
    assert health["state"] == "degraded"
    assert "cannot be loaded: a@1" in health["reasons"]
    assert "missing: the prompt router" in health["reasons"]


async def test_the_curves_of_one_adapter_and_of_nobody(rh, make_adapter):
    await add(rh, make_adapter("cron"))
    await ask(rh, "cron")
    await rh.telemetry.report()
    curves = (await rh.client.get("/v1/history", params={"adapter": "cron"})).json()["data"]
    assert sum(point["requests"] for point in curves) >= 1
    assert (await rh.client.get("/v1/history?step=60")).json()["data"][-1]["requests"] >= 1
    assert error(await rh.client.get("/v1/history?step=7"), 400)["param"] == "step"
    assert error(await rh.client.get("/v1/history?adapter=nope"), 404)
    assert error(await rh.client.get("/v1/history?step=60&adapter=cron"), 400)["param"] == "step"


async def test_a_key_sees_its_own_on_the_page(make_world, make_adapter, store):
    keys = [
        {"name": "a", "sha256": CLIENT_HASH, "scope": "client", "owner": "them"},
        {"name": "b", "sha256": ADMIN_HASH, "scope": "admin"},
    ]
    async with make_world(auth={"enabled": True, "keys": keys}) as it:
        admin = {"authorization": f"Bearer {ADMIN_KEY}"}
        private = {"visibility": "private", "owner": "us"}
        body = {"source": str(make_adapter("secret"))} | private
        await it.client.post("/v1/adapters", json=body, headers=admin)
        await it.client.post("/v1/chat/completions", json=chat("secret"), headers=admin)
        await it.client.post("/v1/chat/completions", json=chat("auto", "secret"), headers=admin)
        residency = Residency(slots=("secret@1",))
        holder = Replica(id="r", model="echo", residency=residency)
        told = {"waiting": {"secret@1": 1}, "demand": {"secret": 1.0}, "tenants": {"us": 1.0}}
        problems = {"leaving": ("secret@1",), "problems": {"secret@1": "damaged"}}
        await store.members.renew(holder.model_copy(update=told | problems))
        news = Happening(at=1, kind="load", subject="secret", text="secret@1 was loaded")
        await store.telemetry.note([news])
        await it.telemetry.report()
        client = {"authorization": f"Bearer {CLIENT_KEY}"}
        answer = await it.client.get("/v1/dashboard", headers=client)
        assert "secret" not in answer.text
        assert '"us"' not in answer.text
        page = answer.json()
        assert page["adapters"] == []
        assert not page["may_change"]
        assert page["history"], "sums over the cluster are for every key"
        hidden = await it.client.get("/v1/history?adapter=secret", headers=client)
        assert error(hidden, 404)["param"] == "adapter"
        await asyncio.sleep(1)
        page = (await it.client.get("/v1/dashboard", headers=admin)).json()
        assert [row["name"] for row in page["adapters"]] == ["secret"]
        assert page["traffic"]["secret"]["requests"] == 2, "by name, and by auto"
        assert [e["text"] for e in page["events"]] == ["secret@1 was loaded"]
        assert error(await it.client.get("/metrics", headers=client), 403)
        assert (await it.client.get("/", headers={})).status_code == 200


async def test_what_is_refused_at_the_door_is_counted_too(make_world):
    keys = [{"name": "b", "sha256": ADMIN_HASH, "scope": "admin"}]
    labels = {"model": "", "adapter": metrics.UNKNOWN, "route": ""}
    async with make_world(auth={"enabled": True, "keys": keys}) as it:
        before = {
            s: _counted("roundhouse_requests_total", **labels, status=s) for s in ("401", "400")
        }
        error(await it.client.post("/v1/chat/completions", json=chat("echo")), 401)
        admin = {"authorization": f"Bearer {ADMIN_KEY}"}
        bad = await it.client.post("/v1/chat/completions", content=b"{", headers=admin | JSON)
        error(bad, 400)
        for status, count in before.items():
            now = _counted("roundhouse_requests_total", **labels, status=status)
            assert now == count + 1


async def test_the_page_shows_what_was_last_known_while_the_store_is_away(rh, store, monkeypatch):
    await store.members.renew(Replica(id="r", model="echo"))
    before = (await rh.client.get("/v1/dashboard")).json()
    assert before["cluster"]["store"] == "ok"

    async def away():
        raise StoreUnavailable("away")

    monkeypatch.setattr(rh.store.members, "all", away)
    await asyncio.sleep(1)
    after = (await rh.client.get("/v1/dashboard")).json()
    assert after["cluster"]["store"] == "stale"
    assert [m["id"] for m in after["cluster"]["members"]] == ["r"]
    assert after["as_of"] == before["as_of"]
    assert after["health"]["state"] == "degraded"
