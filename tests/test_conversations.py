"""Chats that stay with what answered them: the choice, and what is kept and told of it."""

import time

import pytest

from adapter_store import routing_log
from adapter_store.routing_log import RoutingLog
from cluster.decisions import Conversation, Decision, Held, Prompt, Route, RoutedRequest
from cluster.errors import StoreUnavailable
from cluster.settings import RouterSettings, parse_settings
from deployments.ingress.auth import new_key
from router.adapters.constraints import Constraints, CostWeights
from router.adapters.encoder import SentenceEncoder
from router.adapters.prompt_router import PromptRouter
from router.adapters.prompts import in_conversation, prompt_of
from tests.conftest import ECHO, until
from tests.test_prompt_router import CARDS, adapter

FOLLOW_UP = "and the same for the other one?"
ANY = Constraints()
TASKS = {name: adapter(name, examples) for name, examples in CARDS.items()}


@pytest.fixture
def router(prompt_router) -> PromptRouter:
    prompt_router.update(TASKS)
    return prompt_router


def turn(router, text: str, held: str | None, **constraints) -> Decision:
    prompt = Prompt(text=text, context=f"before\n{text}", held=Held(adapter=held, at=0))
    (decision,) = router.choose([prompt], Constraints(**constraints))
    return decision


# -- the choice ---------------------------------------------------------------------------------


@pytest.mark.parametrize("held", ["cron", "sql", "git"])
@pytest.mark.parametrize(
    "text", ["and the other one?", "no, make it twice as many", "thanks!", "?"]
)
def test_a_turn_that_says_little_stays_with_what_answered_before(router, held, text):
    decision = turn(router, text, held)
    assert (decision.adapter, decision.version) == (held, 1)
    assert decision.conversation is Conversation.STAYED
    assert decision.route is Route.AUTO
    assert "stayed" in decision.reason
    assert decision.candidates[0].adapter == held


@pytest.mark.parametrize(
    ("text", "to"),
    [
        ("stash my work and switch to another branch", "git"),
        ("which customers spent more than 100 euros", "sql"),
        ("who was the first man on the moon?", None),
    ],
)
def test_a_turn_that_clearly_fits_another_goes_there(router, text, to):
    decision = turn(router, text, "cron")
    assert decision.adapter == to
    assert decision.conversation is Conversation.SWITCHED
    assert "left cron" in decision.reason


def test_a_turn_that_fits_what_answered_before_says_that_it_stays(router):
    decision = turn(router, "each friday at ten in the morning", "cron")
    assert (decision.adapter, decision.conversation) == ("cron", Conversation.STAYED)
    assert decision.evidence, "it was chosen by its examples all the same"


def test_a_conversation_with_the_base_model_stays_there_too(router):
    assert turn(router, "and who was the second?", None).conversation is Conversation.STAYED
    found = turn(router, "squash my last three commits", None)
    assert (found.adapter, found.conversation) == ("git", Conversation.SWITCHED)


def test_a_new_conversation_neither_stays_nor_switches(router):
    (decision,) = router.choose([Prompt(text="each friday at ten")], Constraints())
    assert decision.conversation is None


@pytest.mark.parametrize(
    "constraints",
    [
        {"exclude": ("cron",)},
        {"adapters": ("sql", "git")},
        {"tags": ("none-has-it",)},
        {"min_confidence": 1.0},
    ],
)
def test_what_the_request_demands_comes_before_staying(router, constraints):
    decision = turn(router, FOLLOW_UP, "cron", **constraints)
    assert decision.adapter != "cron"
    assert decision.conversation is Conversation.SWITCHED


def test_costs_that_the_request_weighs_itself_come_before_staying(router):
    text = "count the orders of each hour"
    weighed = {"weights": CostWeights(latency=0.01)}
    assert turn(router, text, "cron", **weighed).adapter == "sql"


def test_an_adapter_that_is_gone_is_nothing_to_stay_with(router):
    decision = turn(router, FOLLOW_UP, "deleted")
    assert decision.adapter != "deleted"
    assert decision.conversation is Conversation.SWITCHED
    assert "deleted may not be chosen any more" in decision.reason


def test_what_may_not_answer_again_leaves_a_turn_to_be_read_with_those_before(router):
    prompt = Prompt(
        text=FOLLOW_UP,
        context="count the orders of each customer\naverage price of the products",
        held=Held(adapter="cron", at=0),
    )
    (decision,) = router.choose([prompt], Constraints(exclude=("cron",)))
    assert (decision.adapter, decision.conversation) == ("sql", Conversation.SWITCHED)
    assert "by the conversation" in decision.reason


def test_another_base_model_is_not_called_the_same():
    """Which of them answers is chosen anew, by costs and outcomes."""
    models = parse_settings({"models": [ECHO, ECHO | {"id": "large"}]}).models
    router = PromptRouter(SentenceEncoder.of(RouterSettings()), RouterSettings(), models)
    router.update(TASKS)
    stayed, switched = Conversation.STAYED, Conversation.SWITCHED
    for before, what in (("echo", stayed), ("", stayed), ("large", switched)):
        prompt = Prompt(text=FOLLOW_UP, held=Held(adapter=None, model=before, at=0))
        (decision,) = router.choose([prompt], ANY)
        assert (decision.model, decision.conversation) == ("echo", what), before


def test_an_adapter_without_a_card_is_stayed_with(router):
    router.update(TASKS | {"silent": adapter("silent")})
    assert turn(router, "and the other one?", "silent").adapter == "silent"


def test_the_margin_says_how_much_likelier_another_must_be(router):
    texts = ("orders from Paris", "1 + 1", "and the other one?")
    encoder = SentenceEncoder.of(RouterSettings())
    found = {}
    for margin in (0.0, 0.999):
        changed = PromptRouter(encoder, RouterSettings(stay_margin=margin))
        changed.update(TASKS)
        found[margin] = [turn(changed, text, "git").adapter for text in texts]
    assert found[0.999] == ["git"] * 3
    assert found[0.0] == [d.adapter for d in router.choose([Prompt(text=t) for t in texts], ANY)]


# -- how a conversation is known again ----------------------------------------------------------


def said(*texts: str) -> list[dict[str, str]]:
    """Turns of user and assistant."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def test_a_turn_is_found_by_all_that_was_said_up_to_it():
    first, second = prompt_of(said("a")), prompt_of(said("a", "b", "c"))
    third = prompt_of(said("a", "b", "c", "d", "e"))
    assert first.marks == ()
    assert second.marks == (first.mark,)
    assert third.marks == (second.mark, first.mark)
    other = prompt_of(said("a", "another answer", "c", "d", "e"))
    assert set(other.marks) & set(third.marks) == {first.mark}
    system = {"role": "system", "content": "be brief"}
    assert first.mark not in prompt_of([system, *said("a", "b", "c")]).marks


def test_what_follows_a_turn_says_that_it_was_answered():
    """A tool's answer belongs to the turn that asked for it."""
    asked = prompt_of(said("a"))
    assert prompt_of([*said("a", "call"), {"role": "tool", "content": "7"}]).marks == (asked.mark,)


def test_a_flag_is_no_part_of_a_turn():
    now = prompt_of(said("count them"))
    assert prompt_of(said("count them [Flag: fastest]", "b", "c")).marks == (now.mark,)


def test_what_is_nested_too_deeply_is_found_by_nothing():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    nested = [{"role": "user", "content": deep}, *said("a")]
    assert (prompt_of(nested).mark, prompt_of(nested).marks) == ("", ())


def test_of_a_long_conversation_the_newest_turns_are_looked_for():
    turns = [str(i) for i in range(101)]
    assert len(prompt_of(said(*turns)).marks) == 8
    assert prompt_of(said(*turns)).marks[0] == prompt_of(said(*turns[:-2])).mark


def test_a_conversation_that_is_named_is_found_by_its_name_alone():
    one = in_conversation(prompt_of(said("a")), "mine")
    two = in_conversation(prompt_of(said("x", "y", "z")), "mine")
    assert one.mark == two.marks[0]
    assert in_conversation(prompt_of("a"), "yours").mark != one.mark


# -- what is kept -------------------------------------------------------------------------------


def request(mark: str, owner: str = "", answered: str = "cron", at: float = 0) -> RoutedRequest:
    decision = Decision(adapter="cron", confidence=1, route=Route.AUTO, reason="test")
    return RoutedRequest(
        request_id=f"{mark}-{at}", at=at or time.time(), owner=owner, answered_by=answered,
        decision=decision, conversation=mark,
    )  # fmt: skip


def log_of(store, keep_conversations_s: float = 60) -> RoutingLog:
    return RoutingLog(store.server, keep_s=60, keep_conversations_s=keep_conversations_s)


async def test_what_answered_a_turn_is_kept_by_tenant(store):
    log = log_of(store)
    await log.put([request("m", "a"), request("n", "a", answered="base"), request("m", "b")])
    found = await log.held("a", ["m", "n", "unknown"])
    assert {mark: held.adapter for mark, held in found.items()} == {"m": "cron", "n": None}
    assert await log.held("", ["m"]) == {}
    assert set(await log.held("b", ["m", "n"])) == {"m"}


async def test_what_rested_too_long_is_forgotten(store):
    log = log_of(store)
    await log.put([request("old", at=time.time() - 61), request("new")])
    assert set(await log.held("", ["old", "new"])) == {"new"}
    brief = log_of(store, 0.05)
    await brief.put([request("brief")])

    async def is_gone():
        return not await store.server.fields(store.server.keys.answered(""))

    await until(is_gone)


async def test_of_each_tenant_the_newest_turns_are_kept(store, monkeypatch):
    monkeypatch.setattr(routing_log, "MAX_TURNS", 3)
    log = log_of(store)
    await log.put([request("theirs", "b")])
    for i in range(6):
        await log.put([request(f"m{i}", "a")])
    assert set(await log.held("a", [f"m{i}" for i in range(6)])) == {"m3", "m4", "m5"}
    assert await log.held("b", ["theirs"]), "one tenant's push out nobody else's"


# -- over the endpoint --------------------------------------------------------------------------

CRON = list(CARDS["cron"])
OPENING = "each friday at ten in the morning"
TALK = said(OPENING, "0 10 * * 5", FOLLOW_UP)


async def add_tasks(rh, make_adapter) -> None:
    for name in ("cron", "sql"):
        folder = make_adapter(name, examples=list(CARDS[name]))
        await rh.client.post("/v1/adapters", json={"source": str(folder)})


async def chat(rh, messages, headers=None, **fields):
    body = {"model": "auto", "messages": messages} | fields
    return await rh.client.post("/v1/chat/completions", json=body, headers=headers)


def told(answer) -> tuple[str, str | None]:
    assert answer.status_code == 200, answer.text
    headers = answer.headers
    return headers["x-roundhouse-adapter"], headers.get("x-roundhouse-conversation")


@pytest.mark.redis
async def test_a_chat_stays_with_its_adapter_and_says_so(make_world, make_adapter):
    async with make_world() as rh:
        await add_tasks(rh, make_adapter)
        assert told(await chat(rh, TALK[:1])) == ("cron", None)
        answer = await chat(rh, TALK, {"x-request-id": "follow-up"})
        assert told(answer) == ("cron", "stayed")
        assert answer.headers["x-roundhouse-route"] == "auto"
        texts = [message["content"] for message in TALK]
        further = said(*texts, "0 10 * * 0", "average price of the products")
        assert told(await chat(rh, further)) == ("sql", "switched")

        async def is_kept():
            return await rh.log.find("follow-up", [""])

        await until(is_kept)
        kept = (await rh.client.get("/v1/decisions/follow-up")).json()
        assert kept["decision"]["conversation"] == "stayed"
        assert "stayed with cron" in kept["decision"]["reason"]
        (decision,) = (await rh.client.post("/v1/route", json={"input": TALK})).json()["decisions"]
        assert (decision["adapter"], decision["conversation"]) == ("cron", "stayed")


@pytest.mark.redis
async def test_a_chat_that_goes_on_at_another_ingress_stays_there_too(make_world, make_adapter):
    async with make_world() as one:
        await add_tasks(one, make_adapter)
        await chat(one, TALK[:1])
        owners = one.store.server.keys.answered("")

        async def is_kept():
            return await one.store.server.fields(owners)

        await until(is_kept)
        async with make_world() as other:
            assert told(await chat(other, TALK)) == ("cron", "stayed")


@pytest.mark.redis
async def test_without_the_store_an_ingress_knows_what_it_chose_itself(
    make_world, make_adapter, monkeypatch
):
    async with make_world() as rh:
        await add_tasks(rh, make_adapter)

        async def away(*_, **__):
            raise StoreUnavailable("away")

        monkeypatch.setattr(RoutingLog, "held", away)
        await chat(rh, TALK[:1])
        assert told(await chat(rh, TALK)) == ("cron", "stayed")


@pytest.mark.redis
async def test_a_conversation_can_be_named_in_the_body_or_in_a_header(make_world, make_adapter):
    async with make_world() as rh:
        await add_tasks(rh, make_adapter)
        named = {"constraints": {"conversation": "mine"}}
        assert told(await chat(rh, TALK[:1], **named)) == ("cron", None)
        header = {"x-roundhouse-conversation": "mine"}
        assert told(await chat(rh, TALK[2:], headers=header)) == ("cron", "stayed")
        excluded = header | {"x-roundhouse-exclude": "cron"}
        assert told(await chat(rh, TALK[2:], headers=excluded))[1] == "switched"
        text = {"model": "auto", "prompt": FOLLOW_UP}
        answer = await rh.client.post("/v1/completions", json=text | named)
        assert told(answer)[1] is not None
        assert told(await chat(rh, TALK[2:]))[1] is None, "nothing says that it is that one"
        refused = await chat(rh, TALK, constraints={"conversation": ""})
        assert refused.json()["error"]["param"] == "constraints.conversation"


@pytest.mark.redis
async def test_no_tenant_finds_anothers_conversation(make_world, make_adapter):
    keys, secrets = [], {}
    for name in ("one", "two", "ops"):
        secrets[name], sha256 = new_key()
        scope = "admin" if name == "ops" else "client"
        keys.append({"name": name, "sha256": sha256, "scope": scope})
    bearer = {name: {"authorization": f"Bearer {secret}"} for name, secret in secrets.items()}
    named = {"constraints": {"conversation": "same name"}}
    async with make_world(auth={"enabled": True, "keys": keys}) as rh:
        rh.client.headers.update(bearer["ops"])
        await add_tasks(rh, make_adapter)
        for fields in ({}, named):
            assert told(await chat(rh, TALK[:1], bearer["one"], **fields)) == ("cron", None)
            assert told(await chat(rh, TALK, bearer["two"], **fields))[1] is None
            assert told(await chat(rh, TALK, bearer["one"], **fields)) == ("cron", "stayed")


@pytest.mark.redis
async def test_a_fallback_is_nothing_to_stay_with(make_world, make_adapter):
    async with make_world() as rh:
        await add_tasks(rh, make_adapter)
        await chat(rh, TALK[:1])
        rh.chooser.is_down = True
        fallen = await chat(rh, TALK)
        assert fallen.headers["x-roundhouse-route"] == "fallback"
        rh.chooser.is_down = False
        texts = [message["content"] for message in TALK]
        assert told(await chat(rh, said(*texts, "hm", "and then?"))) == ("cron", "stayed")


@pytest.mark.redis
async def test_what_has_not_answered_is_nothing_to_stay_with(make_world, make_adapter):
    async with make_world() as rh:
        await add_tasks(rh, make_adapter)
        rh.pool.is_full = True
        assert (await chat(rh, TALK[:1])).status_code == 429
        rh.pool.is_full = False
        assert "x-roundhouse-conversation" not in (await chat(rh, TALK)).headers


@pytest.mark.redis
async def test_where_the_margin_is_0_every_turn_is_chosen_for_anew(make_world, make_adapter):
    async with make_world(router={"stay_margin": 0}) as rh:
        await add_tasks(rh, make_adapter)
        await chat(rh, TALK[:1])
        assert told(await chat(rh, TALK))[1] is None
