import pytest

from cluster.state import Adapter, Card, Prompt, Route
from router.constraints import Constraints
from router.prompt_router import PromptRouter
from router.prompts import clip
from tests.test_store import version

CARDS = {
    "cron": (
        "every weekday at half past nine",
        "run the backup at midnight on sundays",
        "each hour on the hour",
        "once a month on the first at 6 pm",
        "twice a day, at noon and at eight",
        "every fifteen minutes during office hours",
    ),
    "sql": (
        "how many customers live in Berlin",
        "list all orders above 100 euros",
        "names of the employees hired after 2020",
        "average price of the products in stock",
        "which customer spent the most",
        "count the orders per month",
    ),
    "git": (
        "undo my last commit but keep the changes",
        "create a branch called feature and switch to it",
        "show what changed since yesterday in the repo",
        "stash my work including new files",
        "squash the last three commits",
        "push the tags to origin",
    ),
}


def adapter(name: str, examples=(), description="", base_model="m", tags=()) -> Adapter:
    card = Card(
        name=name, base_model=base_model, examples=examples, description=description, tags=tags
    )
    return Adapter(
        card=card, versions={1: version().model_copy(update={"number": 1})},
        aliases={"latest": 1, "stable": 1}, revision=1,
    )  # fmt: skip


@pytest.fixture
def trained(prompt_router) -> PromptRouter:
    prompt_router.update({name: adapter(name, examples) for name, examples in CARDS.items()})
    return prompt_router


def choose(router: PromptRouter, *texts: str, **constraints):
    return router.choose([Prompt(text=t) for t in texts], Constraints(**constraints))


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("each friday at ten in the morning", "cron"),
        ("total value of orders from Paris", "sql"),
        ("merge main into my branch", "git"),
    ],
)
def test_a_new_prompt_finds_its_adapter_and_says_why(trained, prompt, name):
    (decision,) = choose(trained, prompt)
    assert decision.adapter == name
    assert decision.version == 1
    assert decision.route is Route.AUTO
    assert name in decision.reason
    assert decision.candidates[0].adapter == name
    assert decision.confidence >= 0.5


@pytest.mark.parametrize(
    "prompt", ["tell me a joke about elephants", "who was the first man on the moon?", "", "42"]
)
def test_out_of_scope_prompts_go_to_the_base_model(trained, prompt):
    (decision,) = choose(trained, prompt)
    assert decision.adapter is None
    assert decision.version is None


def test_without_cards_everything_goes_to_the_base_model(prompt_router):
    (decision,) = choose(prompt_router, "every monday")
    assert decision.adapter is None
    assert decision.confidence == 0


def test_one_card_is_enough(prompt_router):
    prompt_router.update({"cron": adapter("cron", CARDS["cron"])})
    first, second = choose(prompt_router, "each friday at ten", "tell me a joke")
    assert (first.adapter, second.adapter) == ("cron", None)


def test_a_description_alone_is_enough_to_be_found(trained):
    described = adapter("haiku", description="Writes haiku poems about nature and the seasons")
    cards = {name: adapter(name, examples) for name, examples in CARDS.items()}
    trained.update(cards | {"haiku": described})
    (decision,) = choose(trained, "a haiku about nature in winter")
    assert decision.candidates[0].adapter == "haiku"


def test_a_removed_adapter_is_not_chosen_again(trained):
    trained.update({"sql": adapter("sql", CARDS["sql"])})
    (decision,) = choose(trained, "each friday at ten in the morning")
    assert decision.adapter != "cron"


def test_constraints_are_hard(trained):
    prompt = "each friday at ten in the morning"
    assert choose(trained, prompt, exclude=["cron"])[0].adapter is None
    assert choose(trained, prompt, adapters=["sql", "cron"])[0].adapter == "cron"
    assert choose(trained, prompt, base_model="other")[0].adapter is None
    assert choose(trained, prompt, tags=["fast"])[0].adapter is None
    assert choose(trained, prompt, min_confidence=1.0)[0].adapter is None


@pytest.mark.parametrize("text", ["", "\x00", "?!", "a" * 100_000, "\u202e\ud800", "\n\n"])
def test_any_text_can_be_learnt_and_asked(prompt_router, text):
    odd = adapter("odd", (clip(text) or " ",))
    prompt_router.update({"odd": odd, "sql": adapter("sql", CARDS["sql"])})
    (decision,) = choose(prompt_router, clip(text))
    assert 0 <= decision.confidence <= 1


def test_many_prompts_get_one_decision_each(trained):
    decisions = choose(trained, *CARDS["cron"], *CARDS["sql"])
    assert [d.adapter for d in decisions] == ["cron"] * 6 + ["sql"] * 6
