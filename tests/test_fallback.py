"""A model elsewhere beside our own: asked by name and by `auto`, replaced when it cannot answer,
kept out where nothing may leave. What is elsewhere is a second instance of this very server."""

import asyncio
import json
import logging
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cluster.decisions import Decision, Outcome, Prompt, Route
from cluster.members import Replica
from cluster.settings import RouterSettings, load_settings, parse_settings
from deployments.command.doctor import examine
from deployments.engines.endpoint.asked import Asked
from deployments.ingress.answering.fallback import Fallbacks
from deployments.ingress.auth import hash_key
from deployments.ingress.directory import Chosen
from deployments.process import metrics
from router.adapters.constraints import Constraints
from router.adapters.encoder import SentenceEncoder
from router.adapters.prompt_router import PromptRouter
from tests.conftest import ECHO, free_port, until
from tests.elsewhere import KEY, Scripted, far_model, served
from tests.test_http import ask, chat, error
from tests.test_prompt_router import CARDS, adapter

pytestmark = pytest.mark.redis

CRON = ["every weekday at half past nine", "each hour", "sundays at midnight", "noon on mondays"]
FAILS = (500, {"content-type": "application/json"}, b"{}")


@pytest.fixture
def two(make_world, tmp_path):
    """Opens two instances: the near one has the far one's `echo` as its model `far`."""

    @asynccontextmanager
    async def opened(engine_args=None, **changes):
        keys = [{"name": "near", "sha256": hash_key(KEY)}]
        (tmp_path / "far-key").write_text(KEY)
        other = {"engine_args": engine_args, "auth": {"enabled": True, "keys": keys}}
        async with make_world(**other) as far, served(far.app) as url:
            model = far_model(url, key_file=str(tmp_path / "far-key")) | {"path": "echo"}
            async with make_world(others=[model], **changes) as near:
                yield near, far

    return opened


@pytest.fixture
def beside(make_world):
    """Opens an instance whose model `far` is a scripted endpoint that `echo` stands in for."""

    @asynccontextmanager
    async def opened(*answers, url=None, model=None, **changes):
        app = Scripted(*answers or [FAILS])
        async with served(app) as here:
            tree = far_model(url or here, retries=0) | {"fallback": ["echo"]} | (model or {})
            async with make_world(others=[tree], **changes) as near:
                near.endpoint = app
                yield near

    return opened


async def test_a_model_elsewhere_answers_as_a_base_model_does(two):
    async with two() as (near, far):
        answer = await ask(near, "far", max_tokens=2)
        assert answer.json()["model"] == "far"
        assert answer.json()["choices"][0]["message"]["content"] == "hello there"
        assert answer.headers["x-roundhouse-model"] == "far"
        assert answer.headers["x-roundhouse-adapter"] == "base"
        assert answer.headers["x-roundhouse-replica"] == "local"
        text = await near.client.post("/v1/completions", json={"model": "far", "prompt": "a b"})
        assert text.json()["choices"][0]["text"] == "a b"
        assert "far" in {m["id"] for m in (await near.client.get("/v1/models")).json()["data"]}
        assert {t.tenant for t in far.pool.terms} == {"near"}
        assert (await ask(near, "echo")).headers["x-roundhouse-model"] == "echo"


async def test_its_mistakes_and_ours_are_told_as_by_an_engine(two):
    async with two() as (near, far):
        found = error(await ask(near, "far", max_tokens="many"), 400)
        assert found["param"] == "max_tokens"
        far.pool.is_full = True
        answer = await ask(near, "far")
        assert error(answer, 429)["type"] == "rate_limit_error"
        assert answer.headers["retry-after"] == "3"


async def test_a_stream_and_its_end_come_through_two_instances(two):
    async with two() as (near, _):
        answer = await ask(near, "far", stream=True)
        events = [line[6:] for line in answer.text.splitlines() if line]
        assert events[-1] == "[DONE]"
        found = [json.loads(e) for e in events[:-1]]
        words = [c["choices"][0]["delta"]["content"] for c in found]
        assert words == ["hello", " there", " world"]
        assert {c["model"] for c in found} == {"far"}


async def test_a_client_that_hangs_up_frees_the_far_replica(two):
    async with two(engine_args={"token_s": 0.01}) as (near, far):
        body = chat("far", "word " * 1000, stream=True)
        request = near.client.build_request("POST", "/v1/chat/completions", json=body)
        task = asyncio.create_task(near.client.send(request))
        await until(lambda: far.pool.open_answers)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: not far.pool.open_answers)
        assert near.pools["far"].engine.unfinished() == 0


async def test_a_far_replica_that_dies_in_mid_stream_ends_the_stream_with_an_error(two):
    async with two() as (near, far):
        far.pool.dies_after = 2
        answer = await ask(near, "far", stream=True)
        events = [line[6:] for line in answer.text.splitlines() if line]
        assert json.loads(events[0])["choices"][0]["delta"]["content"] == "hello"
        assert json.loads(events[-1])["error"]["code"] == "endpoint_unavailable"


async def test_it_takes_no_adapters_and_is_never_their_default(beside, make_adapter):
    async with beside(default_model="far") as rh:
        sent = {"source": str(make_adapter("cron"))}
        found = error(await rh.client.post("/v1/adapters", json=sent | {"base_model": "far"}), 400)
        assert found["param"] == "base_model"
        assert "takes no adapters" in found["message"]
        folder = make_adapter("plain")
        (folder / "card.json").write_text('{"name": "plain"}')
        sent = {"lora_name": "plain", "lora_path": str(folder)}
        assert (await rh.client.post("/v1/load_lora_adapter", json=sent)).status_code == 200
        stored = await rh.client.get("/v1/adapters/plain")
        assert stored.json()["base_model"] == "echo"


def replaced() -> float:
    labels = {"model": "far", "to": "echo"}
    return metrics.REGISTRY.get_sample_value("roundhouse_fallbacks_total", labels) or 0.0


# -- who answers instead ------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 503, 401])
async def test_another_model_answers_when_it_cannot(beside, status):
    before = replaced()
    async with beside((status, {}, b"")) as rh:
        answer = await ask(rh, "far")
        assert answer.status_code == 200
        assert answer.json()["model"] == "echo"
        assert answer.headers["x-roundhouse-model"] == "echo"
        assert answer.headers["x-roundhouse-fallback"] == "far"
        assert answer.headers["x-roundhouse-route"] == "fallback"
    assert replaced() == before + 1


async def test_one_that_is_not_there_is_replaced_and_then_not_even_asked(beside):
    nobody = f"http://127.0.0.1:{free_port()}/v1"
    async with beside(url=nobody) as rh:
        for _ in range(6):
            assert (await ask(rh, "far")).json()["model"] == "echo"
        assert "left alone" in rh.pools["far"].engine.trouble()


async def test_a_mistake_of_the_clients_is_nobody_elses_to_answer(beside):
    async with beside((400, {}, b'{"error": {"message": "no"}}')) as rh:
        error(await ask(rh, "far"), 400)


async def test_nobody_takes_over_what_has_begun(beside):
    chunk = {"choices": [{"delta": {"content": "one"}}]}
    first = b"data: " + json.dumps(chunk).encode() + b"\n\n"
    async with beside((200, {"content-type": "text/event-stream"}, first)) as rh:
        answer = await ask(rh, "far", stream=True)
        events = [line[6:] for line in answer.text.splitlines() if line]
        assert json.loads(events[0])["model"] == "far"
        assert "error" in json.loads(events[-1])
        assert "x-roundhouse-fallback" not in answer.headers


async def test_the_last_of_a_chain_says_what_is_wrong(beside):
    async with beside() as rh:
        rh.pool.is_full = True
        answer = await ask(rh, "far")
        assert error(answer, 429)["code"] == "overloaded"
        assert answer.headers["retry-after"] == "3"


async def test_the_decision_tells_who_could_not_and_feedback_goes_to_who_did(beside):
    async with beside(default_model="far") as rh:
        sent = {"json": chat("auto", "tell me a joke"), "headers": {"x-request-id": "r1"}}
        answer = await rh.client.post("/v1/chat/completions", **sent)
        assert answer.headers["x-roundhouse-model"] == "echo"

        async def is_kept() -> bool:
            return (await rh.client.get("/v1/decisions/r1")).status_code == 200

        await until(is_kept)
        kept = (await rh.client.get("/v1/decisions/r1")).json()
        assert kept["answered_by"] == "echo"
        assert "failed (500)" in kept["decision"]["fallback"]["far"]
        told = await rh.client.post("/v1/feedback", json={"request_id": "r1", "score": 1.0})
        assert told.json()["candidate"] == "echo"


async def test_an_adapter_that_was_named_is_answered_by_no_other_model(make_world, make_adapter):
    app = Scripted((200, {"content-type": "application/json"}, b'{"choices": []}'))
    async with served(app) as url:
        others = [far_model(url)]
        async with make_world(others=others, fallback=["far"]) as rh:
            await rh.client.post("/v1/adapters", json={"source": str(make_adapter("cron"))})
            rh.pool.is_full = True
            error(await ask(rh, "cron"), 429)
            assert app.asked == []
            answer = await ask(rh, "echo")
            assert answer.headers["x-roundhouse-model"] == "far"
            assert len(app.asked) == 1
            for kept_here in (
                {"constraints": {"local_only": True}},
                {"constraints": {"exclude": ["far"]}},
                {"constraints": {"base_model": "echo"}},
            ):
                error(await ask(rh, "echo", **kept_here), 429)
            assert len(app.asked) == 1


async def test_a_price_that_is_too_high_is_paid_by_no_fallback(make_world):
    app = Scripted((200, {"content-type": "application/json"}, b'{"choices": []}'))
    async with served(app) as url:
        model = far_model(url, price_in=2, price_out=8)
        async with make_world(others=[model], fallback=["far"]) as rh:
            rh.pool.is_full = True
            error(await ask(rh, "echo", constraints={"max_price": 2.9}), 429)
            assert (await ask(rh, "echo", constraints={"max_price": 3.1})).status_code == 200


# -- nothing may leave --------------------------------------------------------------------------


async def test_who_says_that_nothing_may_leave_is_refused_a_model_elsewhere(beside):
    async with beside() as rh:
        said = await ask(rh, "far", constraints={"local_only": True})
        assert error(said, 403)["code"] == "local_only"
        for headers in ({"x-roundhouse-local-only": "true"}, {"x-roundhouse-local-only": "1"}):
            body = chat("far", constraints={"local_only": False})
            answer = await rh.client.post("/v1/chat/completions", json=body, headers=headers)
            assert error(answer, 403)["param"] == "model"
        twice = [("x-roundhouse-local-only", said) for said in ("false", "true")]
        answer = await rh.client.post("/v1/chat/completions", json=chat("far"), headers=twice)
        assert error(answer, 403)["param"] == "model", "a proxy's, behind the client's own"
        odd = await rh.client.post(
            "/v1/chat/completions", json=chat("far"), headers={"x-roundhouse-local-only": "please"}
        )
        assert error(odd, 400)["param"] == "constraints.local_only"
        assert rh.endpoint.asked == []


async def test_a_tenant_whose_key_says_so_never_leaves(beside):
    keys = [
        {"name": name, "sha256": hash_key(f"rh-{name}"), "local_only": name == "clinic"}
        for name in ("clinic", "shop")
    ]
    async with beside(auth={"enabled": True, "keys": keys}, default_model="far") as rh:

        async def asked(who: str, model: str, **fields):
            key = {"authorization": f"Bearer rh-{who}"}
            body = chat(model, **fields)
            return await rh.client.post("/v1/chat/completions", json=body, headers=key)

        error(await asked("clinic", "far", constraints={"local_only": False}), 403)
        for is_down in (False, True):
            rh.chooser.is_down = is_down
            answer = await asked("clinic", "auto")
            assert answer.headers["x-roundhouse-model"] == "echo"
            assert "x-roundhouse-fallback" not in answer.headers
        assert rh.endpoint.asked == []
        assert (await asked("shop", "far")).headers["x-roundhouse-fallback"] == "far"
        assert len(rh.endpoint.asked) == 1


ANIMALS = ("cats", "bees", "owls", "cows", "ants", "bats", "dogs", "hens")
ASKS = ("Tell me a joke about", "A joke with", "Something funny about")
JOKES = [f"{how} {who}" for who in ANIMALS for how in ASKS]


@pytest.fixture(scope="module")
def chooser():
    """One that knows that `far` tells jokes well and `near` does not."""
    tree = [
        {"id": "near", "path": "p", "engine": "echo"},
        far_model("https://far.example/v1", price_in=2, price_out=8),
    ]
    models = parse_settings({"models": tree}).models
    router = PromptRouter(SentenceEncoder.of(RouterSettings()), RouterSettings(), models)
    router.update({name: adapter(name, examples) for name, examples in CARDS.items()})
    router.learn_outcomes(
        Outcome(input=text, candidate=model, score=float(model == "far"))
        for text in JOKES
        for model in ("near", "far")
    )
    return router


def decided(router, **constraints):
    prompt = Prompt(text="Tell me a joke about tigers")
    return router.choose([prompt], Constraints(**constraints))[0]


def test_auto_weighs_what_a_model_elsewhere_costs(chooser):
    chooser.observe([])
    decision = decided(chooser)
    assert (decision.adapter, decision.model) == (None, "far")
    (far,) = (c for c in decision.candidates if c.model == "far")
    assert far.costs["price"] == 3.0, "500 tokens in and 250 out, a thousand times"
    assert decided(chooser, weights={"price": 1}).model == "near"
    assert decided(chooser, max_price=1).model == "near"


def test_auto_leaves_it_out_where_nothing_may_leave_and_says_so(chooser):
    chooser.observe([])
    decision = decided(chooser, local_only=True)
    assert decision.model == "near"
    assert decision.excluded == {"far": "local_only: it is elsewhere"}


def test_auto_leaves_it_out_while_it_does_not_answer(chooser):
    there = Replica(id="a", model="near", max_ongoing=1)
    far = Replica(id="b", model="far", max_ongoing=1)
    chooser.observe([there, far])
    assert decided(chooser).model == "far"
    chooser.observe([there, far.model_copy(update={"trouble": "left alone"})])
    assert decided(chooser).model == "near"


# -- what the settings say ----------------------------------------------------------------------

FAR = "https://far.example/v1"
EXAMPLE = Path(__file__).parent.parent / "examples" / "roundhouse-experts.yaml"


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ({"url": "far.example/v1"}, "url must be https"),
        ({"url": "ftp://far.example"}, "url must be https"),
        ({"url": "https://me:hunter2@far.example/v1"}, "no user, password"),
        ({"url": "https://far.example/v1?key=hunter2"}, "no user, password"),
        ({"url": FAR, "key_env": "A", "key_file": "/b"}, "one of them at most"),
        ({"url": FAR, "key": "hunter2"}, "no such setting"),
        ({"url": FAR, "key_env": "sk-hunter2"}, "key_env"),
    ],
)
def test_an_endpoint_that_cannot_be_meant_is_refused(endpoint, said):
    tree = {"models": [far_model("") | {"endpoint": endpoint}]}
    with pytest.raises(Exception, match=said) as refused:
        parse_settings(tree)
    assert "hunter2" not in str(refused.value)


def test_endpoint_and_engine_go_together():
    with pytest.raises(Exception, match="need each other"):
        parse_settings({"models": [{"id": "far", "path": "x", "engine": "openai"}]})
    with pytest.raises(Exception, match="need each other"):
        parse_settings({"models": [far_model(FAR) | {"engine": "echo"}]})
    with pytest.raises(Exception, match="engine_args: of no use"):
        parse_settings({"models": [far_model(FAR) | {"engine_args": {"dtype": "float16"}}]})


@pytest.mark.parametrize("chain", [["nobody"], ["far"]])
def test_a_chain_names_other_models(chain):
    with pytest.raises(Exception, match="fallback of far"):
        parse_settings({"models": [far_model(FAR) | {"fallback": chain}]})


def test_what_a_rule_sends_to_a_model_here_stays_here():
    tree = [ECHO | {"fallback": ["far", "other"]}, ECHO | {"id": "other"}, far_model(FAR)]
    fallbacks = Fallbacks(parse_settings({"models": tree}).models)
    for rule, wanted in (("", ["echo", "far", "other"]), ("cards", ["echo", "other"])):
        decision = Decision(adapter=None, confidence=1, route=Route.AUTO, reason="x", rule=rule)
        chosen = Chosen("echo", None, Route.AUTO, decision=decision)
        assert [c.base_model for c in fallbacks.chain(chosen, Constraints())] == wanted


@pytest.mark.parametrize("longest", [10**12, 10**400])
def test_no_request_takes_what_others_have_for_long(longest):
    settings = parse_settings({"models": [far_model(FAR, tokens_per_minute=6000)]}).models[0]
    body = json.dumps({"messages": [], "max_tokens": longest}).encode()
    assert Asked.of(body, settings).tokens < 7000


def test_names_of_pictures_which_tell_the_tenant_are_not_sent():
    settings = parse_settings({"models": [far_model(FAR)]}).models[0]
    part = {"type": "image_url", "image_url": {"url": "data:x"}, "uuid": "a"}
    body = json.dumps({"messages": [{"role": "user", "content": [part]}], "cache_salt": "b"})
    sent = json.loads(Asked.of(body.encode(), settings).body)
    del part["uuid"]
    assert sent == {"messages": [{"role": "user", "content": [part]}], "model": settings.path}


def test_an_endpoint_takes_little_and_has_a_price():
    (model,) = parse_settings({"models": [far_model(FAR, price_in=1, price_out=2)]}).models
    assert (model.cpus_per_replica, model.weighed_price) == (0.1, 1.0)
    (dear,) = parse_settings({"models": [far_model(FAR, price_in=1) | {"price": 7}]}).models
    assert dear.weighed_price == 7


def test_the_example_is_what_the_page_says():
    settings = load_settings(EXAMPLE)
    small, large = settings.models
    assert large.fallback == (small.id,)
    price = settings.router.cost_weights.price * large.weighed_price
    assert (large.weighed_price, price) == (3.0, pytest.approx(0.06))


def test_doctor_says_whether_its_key_is_there(monkeypatch):
    def found():
        return next(f for f in examine(EXAMPLE) if f.check == "endpoint large")

    monkeypatch.delenv("ROUNDHOUSE_EXPERT_KEY", raising=False)
    assert not found().ok
    assert "endpoint.key_env" in found().detail
    monkeypatch.setenv("ROUNDHOUSE_EXPERT_KEY", KEY)
    assert found().ok
    assert KEY not in found().detail


def test_what_may_not_leave_goes_to_the_first_model_that_is_here():
    here = {"id": "near", "path": "p", "engine": "echo"}
    settings = parse_settings({"models": [far_model(FAR), here]})
    assert (settings.fallback_model, settings.local_model) == ("far", "near")
    assert parse_settings({"models": [far_model(FAR)]}).local_model == "far"


async def test_the_key_is_told_to_nobody_but_the_endpoint(two, caplog):
    caplog.set_level(logging.DEBUG)
    async with two() as (near, _):
        told = [near.app, near.pools["far"].engine]
        assert KEY not in repr([vars(thing) for thing in told])
        for path in ("/v1/cluster", "/v1/dashboard", "/metrics", "/v1/models"):
            answer = await near.client.get(path)
            assert answer.status_code == 200
            assert KEY not in answer.text
        answer = await ask(near, "far")
        assert answer.status_code == 200
        assert KEY not in answer.text + str(answer.headers) + caplog.text
    settings = parse_settings({"models": [far_model(FAR, key_env="FAR_KEY")]})
    assert "FAR_KEY" in settings.model_dump_json()
