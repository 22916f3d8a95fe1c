"""What little is known of is tried for a share of the choices, under all constraints."""

import numpy as np
import pytest

from cluster.decisions import Outcome, Prompt
from cluster.settings import BaseModelSettings, CostWeightSettings, RouterSettings
from router.adapters.constraints import Constraints
from router.adapters.costs import Cost
from router.adapters.encoder import SentenceEncoder
from router.adapters.experts.exploring import Explorer
from router.adapters.policy import Option, choose
from router.adapters.prompt_router import PromptRouter

KNOWN, DOUBTED = (
    Option(None, name, quality, Cost(price=price), doubt)
    for name, quality, price, doubt in (("known", 0.6, 1, 0.01), ("doubted", 0.5, 5, 0.3))
)


def explored(explorer: Explorer, options, times: int = 200, **constraints) -> list[str]:
    """What is explored, of so many choices."""

    def pick(drawn):
        return choose(drawn, Constraints(**constraints), CostWeightSettings(), near_tie=0.0)

    choices = [explorer.explore(pick(options), options, pick) for _ in range(times)]
    return [c.best.name for c in choices if c.explored_over is not None]


@pytest.mark.parametrize("policy", ["thompson", "ucb"])
def test_what_may_well_be_better_is_tried_for_its_share_of_the_choices(policy):
    found = explored(Explorer(policy, 0.1, seed=0), [KNOWN, DOUBTED])
    assert set(found) == {"doubted"}
    assert 15 <= len(found) <= 20, "a tenth of 200 at most"


@pytest.mark.parametrize("policy", ["thompson", "ucb"])
def test_what_is_known_to_be_worse_is_not_tried(policy):
    sure = Option(None, "sure", 0.5, Cost(), 0.01)
    assert explored(Explorer(policy, 0.5, seed=0), [KNOWN, sure]) == []


@pytest.mark.parametrize("policy", ["thompson", "ucb"])
def test_constraints_and_costs_hold_while_exploring(policy):
    explorer = Explorer(policy, 1.0, seed=0)
    assert explored(explorer, [KNOWN, DOUBTED], max_price=2) == []
    assert explored(explorer, [KNOWN, DOUBTED], weights={"price": 0.5}) == []
    assert explored(explorer, [KNOWN]) == []


def test_an_explored_choice_says_what_it_was_preferred_to():
    explorer = Explorer("ucb", 1.0)

    def pick(drawn):
        return choose(drawn, Constraints(), CostWeightSettings(), near_tie=0.0)

    choice = explorer.explore(pick([KNOWN, DOUBTED]), [KNOWN, DOUBTED], pick)
    assert (choice.best, choice.explored_over) == (DOUBTED, KNOWN)


# -- in decisions -------------------------------------------------------------------------------

MODELS = [BaseModelSettings(id=name, path="p", price=i) for i, name in enumerate(("a", "b", "c"))]
TEXTS = [f"question {i} about {topic}" for i in range(12) for topic in ("tides", "taxes")]


@pytest.fixture(scope="module")
def encoder():
    return SentenceEncoder.of(RouterSettings())


def decide(router: PromptRouter, times: int, **constraints):
    asked = Constraints(**constraints)
    return [router.choose([Prompt(text="what of the tides?")], asked)[0] for _ in range(times)]


def outcomes(**scores: float) -> list[Outcome]:
    said = scores.items()
    return [Outcome(input=text, candidate=c, score=s) for text in TEXTS for c, s in said]


def test_by_default_nothing_is_explored(encoder):
    router = PromptRouter(encoder, RouterSettings(), MODELS)
    assert {(d.model, d.explored) for d in decide(router, 50)} == {("a", False)}


def test_base_models_that_nothing_is_known_of_are_tried_and_the_decision_says_so(encoder):
    router = PromptRouter(encoder, RouterSettings(explore="ucb", explore_share=0.2), MODELS)
    router.learn_outcomes(outcomes(a=0.5))
    decisions = decide(router, 50)
    tried = [d for d in decisions if d.explored]
    assert len(tried) == 10
    assert {d.model for d in tried} <= {"b", "c"}
    assert all("explored" in d.reason and " a is expected at 0.50" in d.reason for d in tried)
    assert {d.model for d in decisions if not d.explored} == {"a"}
    assert not any(d.explored for d in decide(router, 20, max_price=0))
    assert not any(d.explored for d in decide(router, 20, base_model="a"))


def test_what_was_found_to_be_worse_is_tried_no_more_and_what_is_better_answers(encoder):
    router = PromptRouter(encoder, RouterSettings(explore="ucb", explore_share=1), MODELS)
    router.learn_outcomes(outcomes(a=0.5, b=0.1, c=0.9))
    assert {(d.model, d.explored) for d in decide(router, 20)} == {("c", False)}


def test_what_few_outcomes_say_is_believed_a_little(encoder):
    router = PromptRouter(encoder, RouterSettings(explore="thompson", explore_share=1), MODELS)
    bad = [Outcome(input=text, candidate="b", score=0) for text in TEXTS[:15]]
    router.learn_outcomes([*outcomes(a=0.6), *bad])
    tried = [d.model for d in decide(router, 200) if d.explored]
    assert tried.count("c") > 2 * tried.count("b"), "fifteen failures are known of b, nothing of c"


def test_an_outcome_that_is_old_counts_less(encoder):
    """`a` was good and is bad now; `b` the other way round."""
    days = [
        o.model_copy(update={"at": 86400.0 * day, "input": f"{o.input} ({day})"})
        for day, scores in enumerate([{"a": 0.9, "b": 0.2}] * 3 + [{"a": 0.2, "b": 0.9}])
        for o in outcomes(**scores)
    ]
    chosen = {}
    for half_life_s in (None, 43200):
        router = PromptRouter(encoder, RouterSettings(feedback_half_life_s=half_life_s), MODELS)
        router.learn_outcomes(days)
        (decision,) = decide(router, 1)
        chosen[half_life_s] = decision.model
    assert chosen == {None: "a", 43200: "b"}


def test_luck_is_no_more_than_the_doubt():
    drawn = []
    explorer = Explorer("thompson", 1.0, seed=1)

    def note(options):
        drawn.append([o.quality for o in options])
        return choose(options, Constraints(), CostWeightSettings(), 0.0)

    for _ in range(500):
        explorer.explore(note([KNOWN, DOUBTED]), [KNOWN, DOUBTED], note)
    means, spreads = np.mean(drawn[1::2], axis=0), np.std(drawn[1::2], axis=0)
    assert means == pytest.approx([0.6, 0.5], abs=0.05)
    assert spreads == pytest.approx([0.01, 0.3], rel=0.15)
