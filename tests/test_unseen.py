"""Prompts of tasks that no adapter was made for, where outcomes say that one helps all the same."""

from functools import cache, partial

import numpy as np
import pytest

from adapter_store.routing_log import OutcomeReader
from cluster.adapters import Viewer
from cluster.decisions import Outcome
from cluster.settings import BaseModelSettings, RouterSettings
from router.adapters.encoder import SentenceEncoder
from router.adapters.outcomes.nearby import FEWEST, Neighbours, Surroundings
from router.adapters.prompt_router import PromptRouter
from tests.conftest import until
from tests.test_http import World, add, ask, world
from tests.test_prompt_router import CARDS, adapter, choose

ANIMALS = ("lions", "cats", "dogs", "horses", "cows", "sheep", "bears", "wolves", "whales", "geese")
KINDS = ("a joke", "a funny story")
JOKES = [f"tell me {kind} about {animal}" for animal in ANIMALS for kind in KINDS]
ASKED = "tell me a joke about elephants"
ELSEWHERE = "who was the first man on the moon?"
SURE = 0.95


# -- how sure it is ---------------------------------------------------------------------------


def ring(**scores) -> Neighbours:
    found = {name: np.asarray(values, float) for name, values in scores.items()}
    ones = np.ones(len(next(iter(found.values()))))
    return Neighbours(found, ones, ones)


def neighbours(**scores) -> Surroundings:
    return Surroundings((ring(**scores),))


def confidence(near: Surroundings) -> float:
    gain = near.gains(["a"], "base").get("a")
    return gain.confidence if gain else 0.0


def apart(ours: list[float], theirs: list[float]) -> Surroundings:
    """No prompt was answered by both."""
    gap = [np.nan] * max(len(ours), len(theirs))
    return neighbours(a=[*ours, *gap[: len(theirs)]], base=[*gap[: len(ours)], *theirs])


def test_a_gain_is_sure_only_with_enough_outcomes_of_both():
    assert confidence(apart([1] * 6, [0] * 6)) > SURE
    assert confidence(apart([1] * (FEWEST - 1), [0] * 20)) == 0
    assert confidence(apart([1] * 20, [0] * (FEWEST - 1))) == 0
    assert confidence(apart([1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0])) < SURE
    assert neighbours(a=[1] * 9).gains(["a"], "base") == {}, "of the base model nothing is known"


def test_on_the_same_prompts_a_small_gain_shows_sooner():
    theirs = [1, 1, 1, 0, 0] * 6
    ours = [1, 1, 1, 1, 0] * 6
    assert confidence(neighbours(a=ours, base=theirs)) > SURE
    assert confidence(apart(ours, theirs)) < SURE


def test_what_counts_little_is_little_known():
    scores = {"a": np.ones(20), "base": np.zeros(20)}
    quiet = np.full(20, 0.1)
    assert not Neighbours(scores, quiet, quiet).knows("a")
    far = np.r_[1.0, np.full(19, 1e-3)]
    assert not Neighbours(scores, far, np.ones(20)).knows("a")


def test_the_nearest_evidence_comes_first():
    good, bad = ring(a=[1] * 9, base=[0] * 9), ring(a=[0] * 9, base=[1] * 9)
    few = ring(a=[1] * (FEWEST - 1), base=[0] * (FEWEST - 1))
    assert confidence(Surroundings((good, bad))) > SURE
    assert confidence(Surroundings((bad, good))) < SURE
    assert confidence(Surroundings((few, bad))) < SURE
    assert confidence(Surroundings((few, good))) > SURE


@pytest.mark.parametrize("is_paired", [True, False])
def test_the_luckiest_of_many_is_not_taken_for_a_good_one(is_paired):
    """Where all are as good as the base model, one in twenty at most is taken for better."""
    rng, taken, times = np.random.default_rng(0), 0, 300
    names = [f"a{i}" for i in range(8)]
    for _ in range(times):
        table = (rng.random((9, 120)) < 0.4).astype(float)
        if not is_paired:
            table[rng.integers(9, size=120)[None] != np.arange(9)[:, None]] = np.nan
        near = neighbours(**dict(zip([*names, "base"], table, strict=True)))
        gains = near.gains(names, "base").values()
        taken += any(gain.confidence > SURE for gain in gains)
    assert taken / times <= 0.06


# -- what is chosen ---------------------------------------------------------------------------


def said(adapter_score: float, base_score: float, owner: str = "") -> list[Outcome]:
    return [
        Outcome(input=text, candidate=candidate, score=score, owner=owner)
        for text in JOKES
        for candidate, score in (("sql", adapter_score), ("echo", base_score))
    ]


@pytest.fixture(scope="module")
def make_router():
    """Routers by their settings, made once: what one has embedded stays embedded."""
    encoder = SentenceEncoder.of(RouterSettings())
    base = BaseModelSettings(id="echo", path="none", engine="echo")

    @cache
    def make(**settings) -> PromptRouter:
        return PromptRouter(encoder, RouterSettings(**settings), [base])

    return make


def taught(router: PromptRouter, outcomes: list[Outcome]) -> PromptRouter:
    router.update({name: adapter(name, examples) for name, examples in CARDS.items()})
    router.learn_outcomes(outcomes)
    return router


def test_outcomes_of_prompts_like_it_choose_what_fits_no_card(make_router):
    router = taught(make_router(), said(1, 0))
    known, foreign, silent = choose(router, ASKED, ELSEWHERE, "?!")
    assert known.adapter == "sql"
    assert known.in_scope < known.threshold, "no card says so"
    assert known.reason.startswith("sql: by outcomes of prompts like it, 0.98 beside 0.02 of echo")
    assert known.confidence > SURE
    assert [c.adapter for c in known.candidates] == ["sql", None]
    assert (foreign.adapter, silent.adapter) == (None, None)
    for constraints, name in (
        ({"exclude": ("sql",)}, None),
        ({"adapters": ("git",)}, None),
        ({"min_confidence": 1}, None),
        ({"viewer": Viewer(owner="bob")}, "sql"),
    ):
        (decision,) = choose(router, ASKED, **constraints)
        assert decision.adapter == name, constraints


@pytest.mark.parametrize(
    ("settings", "outcomes"),
    [
        ({}, []),
        ({}, said(1, 0.9)[:8]),
        ({}, said(0.5, 0.5)),
        ({}, said(0, 1)),
        ({}, said(1, 0, owner="bob")),
        ({"overrule_scope": 1}, said(1, 0)),
    ],
)
def test_without_a_sure_gain_the_base_model_answers(make_router, settings, outcomes):
    (decision,) = choose(taught(make_router(**settings), outcomes), ASKED)
    assert (decision.adapter, decision.model) == (None, "echo")
    assert decision.reason.startswith("out of scope")


def test_an_adapter_without_a_card_can_be_chosen_by_outcomes(make_router):
    router = make_router()
    router.update({"sql": adapter("sql")})
    router.learn_outcomes(said(1, 0))
    (decision,) = choose(router, ASKED)
    assert decision.adapter == "sql"


# -- over HTTP --------------------------------------------------------------------------------

TRIAL = {"name": "trial", "when": {"header": {"x-trial": "*"}}, "adapter": "sql"}


async def answered(rh: World, text: str, request_id: str, **headers: str) -> None:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
    headers |= {"x-request-id": request_id}
    (await rh.client.post("/v1/chat/completions", json=body, headers=headers)).raise_for_status()


async def rated(rh: World, request_id: str, score: float) -> bool:
    sent = {"request_id": request_id, "score": score}
    return (await rh.client.post("/v1/feedback", json=sent)).status_code == 200


@pytest.mark.redis
async def test_feedback_on_a_trial_sends_such_prompts_to_the_adapter(
    make_router,
    store,  # noqa: ARG001  (it puts the base model)
    store_settings,
    tmp_path,
    make_adapter,
):
    router = make_router()
    router.learn_outcomes([])
    async with world(store_settings, router, tmp_path, router={"rules": [TRIAL]}) as rh:
        await add(rh, make_adapter("sql", examples=list(CARDS["sql"])))
        assert (await ask(rh, "auto", ASKED)).headers["x-roundhouse-adapter"] == "base"
        for i, text in enumerate(JOKES[:6]):
            await answered(rh, text, f"base-{i}")
            await answered(rh, text, f"trial-{i}", **{"x-trial": "1"})
        for i in range(6):
            await until(partial(rated, rh, f"base-{i}", 0))
            await until(partial(rated, rh, f"trial-{i}", 1))
        reader = OutcomeReader(rh.log)
        await reader.read()
        router.learn_outcomes(reader.known)
        assert (await ask(rh, "auto", ASKED)).headers["x-roundhouse-adapter"] == "sql"
        assert (await ask(rh, "auto", ELSEWHERE)).headers["x-roundhouse-adapter"] == "base"
        told = (await rh.client.post("/v1/route", json={"input": ASKED})).json()
        assert "by outcomes of prompts like it" in str(told)
