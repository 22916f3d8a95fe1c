"""Two client keys and an admin's, none with an owner: nothing of one is there for another."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from adapter_store.routing_log import OutcomeReader
from cluster.adapters import Adapter, Viewer
from cluster.decisions import Outcome, Prompt
from cluster.members import Ingress, Replica, Residency, Router, RouterReport, Twins
from cluster.settings import AuthSettings, BaseModelSettings, RouterSettings, StoreSettings
from deployments.ingress.auth import hash_key
from deployments.planner.journal import adapter_news, member_news
from router.adapters.constraints import Constraints
from router.adapters.encoder import SentenceEncoder
from router.adapters.prompt_router import PromptRouter
from tests.conftest import until
from tests.hostile import rounds
from tests.test_http import World, chat
from tests.test_prompt_router import CARDS, adapter

pytestmark = [pytest.mark.redis, pytest.mark.hostile]

KEYS = {"alice": "client", "bob": "client", "ops": "admin"}
CRON = ["every weekday at half past nine", "each hour", "sundays at midnight", "noon on mondays"]


def auth(**more: Any) -> dict[str, Any]:
    keys = [
        {"name": name, "sha256": hash_key(f"rh-{name}"), "scope": scope}
        for name, scope in KEYS.items()
    ]
    return {"enabled": True, "keys": keys} | more


class As:
    """The endpoint, as one of the keys has it."""

    def __init__(self, rh: World, who: str) -> None:
        self.headers = {"authorization": f"Bearer rh-{who}"}
        self._client = rh.client

    async def __call__(self, method: str, path: str, body: Any = None, **headers: str):
        return await self._client.request(
            method, path, json=body, headers=self.headers | headers, follow_redirects=True
        )

    async def get(self, path: str) -> httpx.Response:
        return await self("GET", path)

    async def json(self, path: str) -> Any:
        answer = await self.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def ask(self, model: str, text: Any, request_id: str = "", **fields: Any):
        headers = {"x-request-id": request_id} if request_id else {}
        body = chat(model, text, **fields)
        answer = await self("POST", "/v1/chat/completions", body, **headers)
        assert answer.status_code == 200, answer.text
        return answer

    async def rate(self, request_id: str, score: float, **fields: Any) -> httpx.Response:
        body = {"request_id": request_id, "score": score, **fields}
        return await self("POST", "/v1/feedback", body)

    async def has_kept(self, request_id: str) -> None:
        async def found() -> bool:
            return (await self.get(f"/v1/decisions/{request_id}")).status_code == 200

        await until(found)


@pytest.fixture
def store_settings(store_settings: StoreSettings) -> StoreSettings:
    """Whoever reports stays for as long as a test takes."""
    return store_settings.model_copy(update={"lease_s": 60.0})


@pytest.fixture
def tenants(make_world) -> Callable[..., Any]:
    """Opens the endpoint; keyword arguments are settings."""

    @asynccontextmanager
    async def opened(**settings: Any) -> AsyncIterator[tuple[World, As, As, As]]:
        async with make_world(**{"auth": auth()} | settings) as rh:
            alice, bob, ops = (As(rh, who) for who in KEYS)
            yield rh, alice, bob, ops

    return opened


async def register(ops: As, folder: Any, **fields: Any) -> None:
    answer = await ops("POST", "/v1/adapters", {"source": str(folder)} | fields)
    assert answer.status_code == 201, answer.text


async def stored(rh: World, name: str) -> Adapter:
    found = await rh.store.registry.get(name)
    assert found is not None
    return found


# -- all that a key can read ----------------------------------------------------------------------

# In prompts, in the name of a private adapter and in its card.
ALICES, ADMINS, SECRET = "zebraquartz", "opalheron", "vaultkestrel"


def reads(marker: str) -> list[tuple[str, str, Any]]:
    """Everything that a client may ask for, and what it could guess."""
    near = f"{marker[:-1]}x"
    decide = {"input": f"each hour {marker[:4]}"}
    return [
        ("GET", "/v1/dashboard", None),
        ("GET", "/v1/history", None),
        ("GET", "/v1/history?step=60", None),
        ("GET", "/v1/cluster", None),
        ("GET", "/v1/models", None),
        ("GET", f"/v1/models/{near}", None),
        ("GET", "/v1/adapters", None),
        ("GET", "/v1/adapters?owner=alice", None),
        ("GET", f"/v1/adapters?search={marker[:6]}", None),
        ("GET", f"/v1/adapters/{near}", None),
        ("GET", "/v1/decisions", None),
        ("GET", "/v1/decisions/r1", None),
        ("GET", "/v1/decisions/r1?owner=alice", None),
        ("GET", "/v1/decisions/r2?owner=admin:ops", None),
        ("GET", "/metrics", None),
        ("POST", "/v1/route", decide),
        ("POST", "/v1/route", decide | {"constraints": {"adapters": [near]}}),
        ("POST", "/v1/route", decide | {"constraints": {"exclude": [near]}}),
        ("POST", "/v1/chat/completions", chat(near)),
        ("POST", "/v1/chat/completions", chat(f"echo:{near}")),
        ("POST", "/v1/chat/completions", chat(near + "@1")),
        ("POST", "/v1/chat/completions", chat("auto", "each hour")),
        ("POST", "/v1/feedback", {"request_id": "r1", "score": 0}),
        ("POST", "/v1/feedback", {"request_id": "r1", "score": 0, "owner": "alice"}),
        ("POST", "/v1/feedback", {"request_id": "r2", "score": 0, "owner": "admin:ops"}),
        ("POST", "/v1/adapters", {"source": "/nowhere", "name": near}),
    ]


# By whole name: what is there for its owner, and is not for others.
def by_name(name: str) -> list[tuple[str, str, Any]]:
    return [
        ("GET", f"/v1/models/{name}", None),
        ("GET", f"/v1/adapters/{name}", None),
        ("GET", f"/v1/adapters/{name}/versions", None),
        ("GET", f"/v1/history?adapter={name}", None),
        ("POST", "/v1/chat/completions", chat(name)),
        ("POST", "/v1/chat/completions", chat(f"{name}@1")),
        ("POST", "/v1/route", {"input": "x", "constraints": {"adapters": [name]}}),
    ]


async def told(who: As, asked: list[tuple[str, str, Any]]) -> dict[str, str]:
    """What each answer says, headers too."""
    found = {}
    for i, (method, path, body) in enumerate(asked):
        answer = await who(method, path, body)
        assert answer.status_code < 500, answer.text
        headers = dict(answer.headers)
        found[f"{i} {method} {path} {json.dumps(body)}"] = f"{headers} {answer.text}"
    return found


async def fill(rh: World, alice: As, ops: As, folder: Any) -> None:
    """Leave the markers wherever something of a tenant is kept or reported."""
    card = {"description": f"{SECRET} lines", "tags": [SECRET], "owner": "alice"}
    await register(ops, folder, visibility="private", **card)
    await alice.ask("auto", f"each hour {ALICES}", "r1")
    await ops.ask("auto", f"each hour {ADMINS}", "r2")
    await alice.has_kept("r1")
    await ops.has_kept("r2")
    await alice.ask(SECRET, "hello")
    key, name = f"{SECRET}@1", SECRET
    held = Residency(slots=(key,), slot_capacity=1)
    failed = {key: f"{SECRET} is torn"}
    replica = Replica(
        id="r", model="echo", residency=held, running=(key,), loading=(key,), problems=failed
    )
    report = RouterReport(
        versions={}, cards=1, twins=(Twins(a=name, b=name, confused=1),), experts=(name,)
    )
    rates, waiting = {name: 1.0}, {key: 1}
    tenants = {"alice": 1.0, "bob": 2.0, "admin:ops": 3.0}
    ingress = Ingress(id="i", demand=rates, times=rates, waiting=waiting, tenants=tenants)
    for member in (replica, Router(id="p", router=report), ingress):
        await rh.store.members.renew(member)
    known = {name: await stored(rh, name)}
    loads = member_news([Replica(id="r", model="echo")], [replica], known)
    await rh.store.telemetry.note([*adapter_news({}, known), *loads])
    await rh.telemetry.report()


async def test_nothing_of_one_is_told_to_another(tenants, make_adapter):
    async with tenants() as (rh, alice, bob, ops):
        await fill(rh, alice, ops, make_adapter(SECRET, examples=[f"{SECRET} {c}" for c in CRON]))
        markers = (ALICES, ADMINS, SECRET, "admin:ops")
        seen = await told(bob, [read for m in markers[:3] for read in reads(m)])
        for marker in markers:
            asked = {what for what in seen if marker in what}
            leaks = [what for what, said in seen.items() if marker in said and what not in asked]
            assert leaks == [], marker
        tenants_of = (await bob.json("/v1/cluster"))["members"]
        assert {t for member in tenants_of for t in member["tenants"]} <= {"bob"}
        of_admin = [w for w, said in (await told(alice, reads(ADMINS))).items() if ADMINS in said]
        assert of_admin == []


async def test_a_hidden_name_and_one_of_nothing_are_answered_alike(tenants, make_adapter):
    """Or the answer would say that it is there."""
    async with tenants() as (rh, alice, bob, ops):
        await fill(rh, alice, ops, make_adapter(SECRET))
        nothing = SECRET[::-1]
        hidden, absent = [
            [said.replace(name, "NAME") for said in (await told(bob, by_name(name))).values()]
            for name in (SECRET, nothing)
        ]
        assert hidden == absent
        for method, path, body in by_name(SECRET):
            assert (await alice(method, path, body)).status_code == 200


async def test_the_admin_and_each_tenant_see_what_the_others_do_not(tenants, make_adapter):
    """The tests above have power: what they look for is there."""
    async with tenants() as (rh, alice, _, ops):
        await fill(rh, alice, ops, make_adapter(SECRET))
        page = await ops.json("/v1/dashboard")
        assert {ALICES, ADMINS} <= {d["input"].split()[-1] for d in page["decisions"]}
        assert {d["owner"] for d in page["decisions"]} == {"alice", "admin:ops"}
        assert len(page["events"]) == 3
        assert SECRET in page["traffic"]
        mine = await alice.json("/v1/dashboard")
        assert [d["input"] for d in mine["decisions"]] == [f"each hour {ALICES}"]
        assert len(mine["events"]) == 3
        assert SECRET in mine["traffic"]
        ingress = next(m for m in mine["cluster"]["members"] if m["kind"] == "ingress")
        assert (ingress["demand"], ingress["tenants"]) == ({SECRET: 1.0}, {"alice": 1.0})


# -- whose a key is -------------------------------------------------------------------------------


def test_a_key_is_a_tenant_of_its_own_unless_its_owner_says_otherwise():
    own = AuthSettings(**auth()).keys
    assert [key.tenant for key in own] == ["alice", "bob", "admin:ops"]
    sha256 = hash_key("x")
    same = [{"name": n, "sha256": sha256, "owner": "team"} for n in ("old", "new")]
    twins = [{"name": "ops", "sha256": sha256, "scope": s} for s in ("client", "admin")]
    keys = AuthSettings(keys=[*same, *twins]).keys
    assert [key.tenant for key in keys] == ["team", "team", "ops", "admin:ops"]


async def test_keys_of_one_owner_share_what_is_theirs(tenants):
    keys = [key | {"owner": "team"} for key in auth()["keys"][:2]]
    async with tenants(auth={"enabled": True, "keys": keys}) as (_, alice, bob, _):
        await alice.ask("auto", "each hour", "r1")
        await bob.has_kept("r1")
        assert (await bob.rate("r1", 1)).status_code == 200


async def test_a_public_adapter_that_nobody_owns_is_everybodys(tenants, make_adapter):
    """As all are that were registered while keys had no owners."""
    async with tenants() as (_, alice, bob, ops):
        await register(ops, make_adapter("cron"))
        for who in (alice, bob):
            assert (await who.ask("cron", "hi")).headers["x-roundhouse-adapter"] == "cron"
            assert [a["name"] for a in (await who.json("/v1/adapters"))["data"]] == ["cron"]


async def test_what_was_decided_before_keys_had_tenants_is_the_admins_alone(tenants):
    """Their owner was empty, whoever asked."""
    async with tenants() as (rh, alice, bob, ops):
        await alice.ask("auto", "each hour", "r1")
        await alice.has_kept("r1")
        (request,) = await rh.log.find("r1", ["alice"])
        before = request.model_copy(update={"owner": "", "request_id": "r0"})
        await rh.log.put([before])
        for who in (alice, bob):
            assert (await who.get("/v1/decisions/r0")).status_code == 404
        assert (await ops.json("/v1/decisions/r0"))["owner"] == ""


# -- ids ------------------------------------------------------------------------------------------


async def test_an_id_that_another_tenant_sends_first_takes_nothing(tenants):
    async with tenants() as (_, alice, bob, ops):
        for i in range(rounds(2, 100)):
            await bob.ask("auto", "taken by bob", f"r{i}")
            await bob.has_kept(f"r{i}")
            await alice.ask("auto", "each hour", f"r{i}")
            await alice.has_kept(f"r{i}")
            assert (await alice.json(f"/v1/decisions/r{i}"))["input"] == "each hour"
            assert (await bob.rate(f"r{i}", 0)).status_code == 200
            assert (await alice.rate(f"r{i}", 1)).status_code == 200
            assert (await alice.rate(f"r{i}", 1)).status_code == 409
        ambiguous = (await ops.get("/v1/decisions/r0")).json()["error"]
        assert ambiguous["param"] == "owner"
        assert "'alice'" in ambiguous["message"]
        assert (await ops.json("/v1/decisions/r0?owner=bob"))["input"] == "taken by bob"
        assert (await ops.rate("r0", 1, owner="bob")).status_code == 409, "bob has rated it"
        await ops.ask("auto", "an admin's", "r0")
        await until(partial(_is_own, ops))


async def _is_own(ops: As) -> bool:
    answer = await ops.get("/v1/decisions/r0")
    return answer.status_code == 200 and answer.json()["input"] == "an admin's"


# -- feedback -------------------------------------------------------------------------------------

MODELS = [BaseModelSettings(id="m", path="p")]
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
HOURS = ("nine", "eleven", "noon", "two", "three", "four", "five", "six", "seven", "eight")
ASKED = [f"every {day} at ten" for day in DAYS[:5]]


def taught(**settings: Any) -> PromptRouter:
    chosen = RouterSettings(**settings)
    router = PromptRouter(SentenceEncoder.of(chosen), chosen, MODELS)
    router.update({name: adapter(name, examples) for name, examples in CARDS.items()})
    return router


def chosen_for(router: PromptRouter, owner: str) -> list[str | None]:
    constraints = Constraints(viewer=Viewer(owner=owner))
    return [d.adapter for d in router.choose([Prompt(text=t) for t in ASKED], constraints)]


def slander(owner: str, count: int = 30) -> list[Outcome]:
    """That the base model answers schedules well, and the adapter for them does not."""
    texts = [f"every {day} at {hour}" for hour in HOURS for day in DAYS][:count]
    return [
        Outcome(input=text, candidate=candidate, score=score, owner=owner)
        for text in texts
        for candidate, score in (("cron", 0.0), ("m", 1.0))
    ]


async def test_a_tenants_feedback_moves_its_own_choices_alone(tenants):
    router = taught()
    async with tenants() as (rh, *_):
        for i, outcome in enumerate(slander("bob")):
            await rh.log.add_outcome(f"r{i}", outcome)
        reader = OutcomeReader(rh.log)
        await reader.read()
        router.learn_outcomes(reader.known)
    assert chosen_for(router, "bob") == [None] * len(ASKED)
    for owner in ("alice", "admin:ops", ""):
        assert chosen_for(router, owner) == ["cron"] * len(ASKED)
    assert router.report().experts == (), "what one tenant says is reported to nobody"


async def test_feedback_over_http_is_the_tenants_whose_request_it_was(tenants):
    async with tenants() as (rh, alice, bob, ops):
        await alice.ask("auto", "each hour", "r1")
        await alice.has_kept("r1")
        assert (await bob.rate("r1", 0)).status_code == 404
        assert (await bob.rate("r1", 0, owner="alice")).status_code == 404
        assert (await ops.rate("r1", 0.5)).status_code == 200
        ((_, outcome),) = await rh.log.outcomes("alice", "0-0")
        assert (outcome.owner, outcome.score) == ("alice", 0.5)
        assert await rh.log.outcomes("", "0-0") == []


def test_outcomes_of_nobody_teach_everybody_as_they_did():
    router = taught()
    router.learn_outcomes(slander(""))
    for owner in ("alice", ""):
        assert chosen_for(router, owner) == [None] * len(ASKED)
    assert router.report().experts == ("cron", "m")


def test_shared_feedback_needs_more_than_one_voice():
    """Where the settings share it, no tenant says more than all others together."""
    router = taught(shared_feedback=True)
    router.learn_outcomes(slander("bob", 70))
    assert chosen_for(router, "alice") == ["cron"] * len(ASKED)
    assert chosen_for(router, "bob").count(None) >= len(ASKED) - 1, "itself it teaches"
    router.learn_outcomes([*slander("bob", 70), *slander("mallory", 1)])
    assert chosen_for(router, "alice") == ["cron"] * len(ASKED), "nor two that say next to nothing"
    praise = [
        o.model_copy(update={"owner": "alice", "score": 1 - o.score}) for o in slander("", 60)
    ]
    router.learn_outcomes([*slander("bob", 70), *praise])
    assert chosen_for(router, "carol") == ["cron"] * len(ASKED)
    agreed = [o.model_copy(update={"owner": "dave"}) for o in slander("", 60)]
    router.learn_outcomes([*slander("bob", 60), *agreed])
    assert chosen_for(router, "carol") == [None] * len(ASKED)


def test_keys_that_share_a_name_are_no_tenant_by_accident():
    """The admin's `ops` and a client's `admin:ops` would read each other's prompts."""
    sha256 = hash_key("x")
    admin = {"name": "ops", "sha256": sha256, "scope": "admin"}
    for taken in ({"name": "admin:ops"}, {"name": "x", "owner": "admin:ops"}):
        with pytest.raises(ValidationError, match="is an admin's"):
            AuthSettings(keys=[admin, taken | {"sha256": sha256}])
    for name, owner in (("search", "search"), ("search", "")):
        other = {"name": name, "sha256": sha256, "owner": owner}
        with pytest.raises(ValidationError, match="'search' has no owner"):
            AuthSettings(keys=[{"name": "search", "sha256": sha256}, other])


# -- the prefix cache -----------------------------------------------------------------------------

LONG = "one two three four five six"


async def cached(who: As, text: Any = LONG, **fields: Any) -> int:
    """Of the prompt, what the engine had already: what a tenant could tell by the time."""
    usage = (await who.ask("echo", text, **fields)).json()["usage"]
    return usage["prompt_tokens_details"]["cached_tokens"]


async def test_a_prompt_of_another_tenant_is_in_no_cache_of_ones_own(tenants):
    async with tenants(engine_args={"prefix_block": 2}) as (rh, alice, bob, ops):
        assert await cached(alice) == 0
        assert await cached(alice) == 6
        assert [await cached(who) for who in (bob, ops)] == [0, 0]
        assert await cached(bob) == 6
        # A part of one's own, within one's own.
        assert [await cached(alice, cache_salt="s") for _ in range(2)] == [0, 6]
        assert await cached(bob, cache_salt="s") == 0
        body = {"model": "echo", "prompt": LONG}
        texts = [await who("POST", "/v1/completions", body) for who in (alice, bob, ops)]
        assert [a.json()["usage"]["prompt_tokens_details"]["cached_tokens"] for a in texts] == [
            6, 6, 6,
        ]  # fmt: skip
        del rh


async def test_nobody_can_name_the_salt_of_another(tenants):
    from deployments.ingress.apart import kept_apart

    alices = kept_apart({}, Viewer(owner="alice"), AuthSettings(**auth()), ())["cache_salt"]
    guesses = (alices, "alice", '["alice", null]', f"{alices}alice")
    async with tenants(engine_args={"prefix_block": 2}) as (_, alice, bob, _):
        await cached(alice)
        for guess in guesses:
            assert await cached(bob, cache_salt=guess) == 0


@pytest.mark.parametrize("salt", ["", 3, [], {"a": 1}, False])
async def test_a_salt_that_is_none_is_named(tenants, salt):
    async with tenants() as (_, alice, _, _):
        answer = await alice("POST", "/v1/chat/completions", chat("echo", cache_salt=salt))
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "cache_salt"


async def test_tenants_that_trust_each_other_share_the_cache(tenants):
    shared = {"auth": auth(shared_prefix_cache=True), "engine_args": {"prefix_block": 2}}
    async with tenants(**shared) as (_, alice, bob, _):
        assert (await cached(alice), await cached(bob)) == (0, 6)


async def test_the_choice_of_the_replica_does_not_go_by_what_others_sent(tenants):
    text = "every friday at ten " * 80
    async with tenants() as (rh, alice, bob, _):
        for who in (alice, alice, bob):
            await who.ask("echo", text)
    first, again, others = (terms.prefix for terms in rh.pool.terms)
    assert first == again != ()
    assert not set(first) & set(others)


async def test_an_image_that_is_named_is_ones_own(tenants):
    """vLLM takes a part without content for what it last had under that name."""
    named = [
        {"type": "image_url", "image_url": None, "uuid": "logo"},
        {"type": "text", "text": "?"},
    ]
    async with tenants() as (_, alice, bob, _):
        asked = [await who.ask("echo", named) for who in (alice, alice, bob)]
    said = [json.loads(a.json()["choices"][0]["message"]["content"]) for a in asked]
    (first, text), again, others = said
    assert ([first, text], text) == (again, named[1])
    assert "logo" not in (first["uuid"], others[0]["uuid"])
    assert first["uuid"] != others[0]["uuid"]


# -- a name that was another's --------------------------------------------------------------------


async def test_a_public_adapter_has_nothing_of_a_private_one_that_had_its_name(
    tenants, make_adapter
):
    async with tenants() as (rh, alice, bob, ops):
        await register(ops, make_adapter("x"), owner="alice", visibility="private")
        was = await stored(rh, "x")
        await alice.ask("x", "hello")
        await rh.telemetry.report()
        held = Replica(id="r", model="echo", residency=Residency(host=("x@1",)))
        loads = member_news([Replica(id="r", model="echo")], [held], {"x": was})
        await rh.store.telemetry.note([*adapter_news({}, {"x": was}), *loads])
        await ops("DELETE", "/v1/adapters/x")
        await register(ops, make_adapter("x", seed=1))
        now = await stored(rh, "x")
        news = [*adapter_news({"x": was}, {"x": None}), *adapter_news({}, {"x": now})]
        await rh.store.telemetry.note(news)
        await rh.store.members.renew(held.model_copy(update={"problems": {"x@1": "torn"}}))
        report = Ingress(id="i", demand={"x": 1.0}, times={"x": 1.0}, waiting={"x@1": 1})
        await rh.store.members.renew(report)
        page = await bob.json("/v1/dashboard")
        assert [row["name"] for row in page["adapters"]] == ["x"]
        assert [event["text"] for event in page["events"]] == ["x@2 was registered"]
        assert "x" not in page["traffic"]
        assert "x@1" not in json.dumps(page["cluster"])
        assert not any(member["demand"] or member["times"] for member in page["cluster"]["members"])
        assert "x@1" not in json.dumps(page["health"])
        curves = (await bob.json("/v1/history?adapter=x"))["data"]
        assert not any(point["requests"] for point in curves)
        for admin in (await ops.json("/v1/dashboard"),):
            assert len(admin["events"]) == 4
            assert admin["traffic"]["x"]["requests"] == 1
