import threading
import zlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cluster.adapters import Adapter, Card, Viewer
from cluster.decisions import Outcome, Prompt, Route
from cluster.members import Replica, Residency
from cluster.settings import BaseModelSettings, RouterSettings
from router.adapters.arrow import ArrowRouter
from router.adapters.constraints import Constraints
from router.adapters.encoder import SentenceEncoder
from router.adapters.prompt_router import PromptRouter, everyday_prompts
from router.adapters.prompts import clip
from tests.test_store import version
from tests.tiny_model import write_tiny_model

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
    assert {c.adapter for c in decision.candidates} == set(CARDS), "the runners-up are shown"
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
    assert decision.adapter == "haiku"


DESCRIBED = {
    "sql": (
        "Writes SQL queries for questions about the data of a shop",
        "which customers of the shop spent the most",
    ),
    "cron": ("Turns a schedule into a cron line", "schedule it every weekday at nine"),
    "haiku": ("Writes haiku poems about nature and the seasons", "a haiku about the first snow"),
    "translate": ("Translates English text into French", "translate good morning into French"),
    "recipes": ("Suggests recipes for given ingredients", "what can I cook with eggs and leeks"),
}


def test_descriptions_alone_make_a_catalogue_that_abstains_too(prompt_router):
    prompt_router.update(
        {name: adapter(name, description=text) for name, (text, _) in DESCRIBED.items()}
    )
    found = choose(prompt_router, *(prompt for _, prompt in DESCRIBED.values()))
    assert [d.adapter for d in found] == list(DESCRIBED)
    outside = choose(
        prompt_router, "who was the first man on the moon?", "my cat is afraid of the neighbour",
        "what does entropy mean", "how tall is the Eiffel tower",
    )  # fmt: skip
    assert [d.adapter for d in outside] == [None] * 4
    assert prompt_router.report().threshold == pytest.approx(found[0].threshold, abs=1e-3)


def test_a_copy_of_one_card_leaves_the_confidence_of_the_others(trained):
    (before,) = choose(trained, "merge main into my branch")
    cards = {name: adapter(name, examples) for name, examples in CARDS.items()}
    trained.update(cards | {"sql-copy": adapter("sql-copy", CARDS["sql"])})
    (after,) = choose(trained, "merge main into my branch")
    assert after.confidence > 0.9 * before.confidence


def test_copies_alone_are_not_turned_away(prompt_router):
    prompt_router.update({name: adapter(name, CARDS["sql"]) for name in ("a", "b")})
    (decision,) = choose(prompt_router, "total value of orders from Paris")
    assert decision.adapter in ("a", "b")


@pytest.mark.parametrize("prompt", ["", " \n", "\u202e\u200b", "?!"])
def test_a_prompt_without_a_word_has_nothing_to_choose_by(trained, prompt):
    (decision,) = choose(trained, prompt)
    assert decision.adapter is None
    assert "nothing to read" in decision.reason


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


def test_a_decision_shows_the_examples_that_made_it_and_what_it_was_made_with(trained):
    (decision,) = choose(trained, "each friday at ten in the morning")
    assert decision.evidence[0].example in CARDS["cron"]
    assert 0 < decision.evidence[0].share <= 1.5
    assert decision.in_scope >= decision.threshold > 0
    assert "ngrams" in decision.versions["features"]


def test_a_better_adapter_that_a_constraint_excludes_is_named(trained):
    (decision,) = choose(trained, "each friday at ten in the morning", exclude=["cron"])
    assert decision.adapter is None
    assert decision.excluded == {"cron": "exclude"}


def test_what_the_asker_may_not_see_is_neither_chosen_nor_named(prompt_router):
    cards = {name: adapter(name, examples) for name, examples in CARDS.items()}
    secret = cards["cron"].card.model_copy(update={"owner": "a", "visibility": "private"})
    cards["cron"] = cards["cron"].model_copy(update={"card": secret})
    prompt_router.update(cards)
    (stranger,) = choose(prompt_router, "each friday at ten", viewer=Viewer(owner="b"))
    assert "cron" not in stranger.model_dump_json()
    (owner,) = choose(prompt_router, "each friday at ten", viewer=Viewer(owner="a"))
    assert owner.adapter == "cron"


def test_a_short_follow_up_is_read_with_the_conversation(trained):
    alone = Prompt(text="and the other one?")
    within = Prompt(
        text="and the other one?",
        context="every weekday at half past nine\nrun the backup at midnight on sundays\n"
        "and the other one?",
    )
    first, second = trained.choose([alone, within], Constraints())
    assert (first.adapter, second.adapter) == (None, "cron")
    assert "conversation" in second.reason
    assert (first.decided_by, second.decided_by) == (alone.text, within.context)


def test_what_needs_nothing_before_it_is_not_read_with_the_conversation(trained):
    text = "Who wrote Faust?"
    prompt = Prompt(text=text, context=f"every weekday at half past nine\n{text}", left_out=("a",))
    (decision,) = trained.choose([prompt], Constraints())
    assert (decision.adapter, decision.decided_by, decision.left_out) == (None, text, ("a",))


def test_the_systems_message_says_what_a_turn_is_for(trained):
    prompt = Prompt(text="and the other one?", setting="every weekday at half past nine")
    (decision,) = trained.choose([prompt], Constraints())
    assert decision.adapter == "cron"
    assert decision.decided_by == f"{prompt.setting}\n{prompt.text}"


def test_among_twins_the_resident_one_is_chosen_and_both_are_reported(prompt_router):
    twins = {name: adapter(name, CARDS["cron"]) for name in ("cron-a", "cron-b")}
    prompt_router.update(twins | {"sql": adapter("sql", CARDS["sql"])})
    ((pair),) = prompt_router.report().twins
    assert {pair.a, pair.b} == {"cron-a", "cron-b"}
    for resident in ("cron-a", "cron-b"):
        held = Residency(slots=(f"{resident}@1",), slot_capacity=4, host_capacity=8)
        prompt_router.observe([Replica(id="r", model="m", residency=held)])
        (decision,) = choose(prompt_router, "each friday at ten in the morning")
        assert decision.adapter == resident
        shown = {c.adapter: c.residency for c in decision.candidates}
        assert shown[resident] == "slot"
    prompt_router.observe([])


def test_costs_decide_when_the_caller_says_so(prompt_router):
    prompt_router.update({name: adapter(name, examples) for name, examples in CARDS.items()})
    prompt = "each friday at ten in the morning"
    (decision,) = choose(prompt_router, prompt, max_price=0)
    assert decision.adapter == "cron", "nothing has a price here"
    prompt_router.observe([Replica(id="r", model="m")])
    (late,) = choose(prompt_router, prompt, max_latency_s=0.001)
    assert late.adapter is None
    assert "max_latency_s" in late.excluded["cron"]
    prompt_router.observe([])


def test_a_limit_on_costs_does_not_send_a_prompt_to_an_adapter_that_does_not_fit(prompt_router):
    cards = {name: adapter(name, examples) for name, examples in CARDS.items()}
    cards["git"] = adapter("git", CARDS["git"], base_model="cheap")
    prompt_router.update(cards)
    warm = Residency(slots=("git@1",), slot_capacity=4, host_capacity=8)
    prompt_router.observe(
        [
            Replica(id="a", model="m"),
            Replica(id="b", model="cheap", residency=warm),
        ]
    )
    prompt = "each friday at ten in the morning"
    (decision,) = choose(prompt_router, prompt, max_latency_s=0.001)
    assert decision.adapter is None
    assert "max_latency_s" in decision.excluded["cron"]
    (decision,) = choose(prompt_router, prompt, weights={"latency": 100})
    assert decision.adapter == "cron"
    prompt_router.observe([Replica(id="b", model="cheap", residency=warm)])
    (decision,) = choose(prompt_router, prompt)
    assert decision.adapter is None
    assert decision.excluded["cron"] == "no live replica can serve it"
    prompt_router.observe([])


def test_outcomes_rank_adapters_that_fit_and_never_those_that_do_not(prompt_router):
    twins = {name: adapter(name, CARDS["cron"]) for name in ("cron-a", "cron-b")}
    prompt_router.update(twins | {"sql": adapter("sql", CARDS["sql"])})
    records = [
        Outcome(input=f"{prompt} ({i})", candidate=name, score=score)
        for name, score in (("cron-a", 0.2), ("cron-b", 0.9), ("sql", 1.0))
        for prompt in CARDS["cron" if name != "sql" else "sql"]
        for i in range(4)
    ]
    prompt_router.learn_outcomes(records)
    (decision,) = choose(prompt_router, "each friday at ten in the morning")
    assert decision.adapter == "cron-b"
    assert "predicted quality" in decision.reason
    prompt_router.learn_outcomes([])


def test_outcomes_send_prompts_that_no_adapter_fits_to_the_base_model_that_answers_them():
    models = [BaseModelSettings(id=name, path="p") for name in ("small", "large")]
    router = PromptRouter(SentenceEncoder.of(RouterSettings()), RouterSettings(), models)
    router.update({name: adapter(name, examples) for name, examples in CARDS.items()})
    animals = ("elephants", "parrots", "cats", "penguins", "snails", "horses", "bees", "owls")
    topics = ("gravity", "inflation", "photosynthesis", "democracy", "irony", "vaccines")
    jokes = [
        f"{ask} {animal}" for animal in animals for ask in ("Tell me a joke about", "A joke with")
    ]
    essays = [
        f"{ask} {topic}"
        for topic in topics
        for ask in ("Explain", "Write an essay about", "Discuss the importance of")
    ]
    records = [
        Outcome(input=text, candidate=model, score=float(text in good))
        for model, good in (("small", jokes), ("large", essays))
        for text in jokes + essays
    ]
    prompts = ("Tell me a joke about tigers", "Write an essay about humility")
    before = choose(router, *prompts)
    assert [(d.adapter, d.model) for d in before] == [(None, "small"), (None, "small")]
    router.learn_outcomes(records)
    after = choose(router, *prompts)
    assert [(d.adapter, d.model) for d in after] == [(None, "small"), (None, "large")]
    assert router.report().experts == ("large", "small")


def many_cards(count: int) -> dict[str, Adapter]:
    things = ("invoice", "tram", "violin", "glacier", "passport", "beehive", "tax", "kernel")
    verbs = ("paint", "repair", "weigh", "sell", "photograph", "insure", "describe", "move")
    cards = {}
    for i in range(count):
        subject = f"{verbs[i % 8]} the {things[i // 8 % 8]} number {i}"
        examples = tuple(f"{ask} {subject}" for ask in ("please", "how do I", "when can I", "why"))
        cards[f"card-{i:03}"] = adapter(f"card-{i:03}", examples)
    return cards


def test_a_large_catalogue_takes_changes_in_at_once_and_learns_anew_later(prompt_router):
    cards = many_cards(130)
    prompt_router.update(cards)
    assert prompt_router.is_whole
    more = cards | {"cron": adapter("cron", CARDS["cron"])}
    prompt_router.update(more)
    assert not prompt_router.is_whole
    asked = "each friday at ten in the morning"
    assert choose(prompt_router, asked)[0].adapter == "cron"
    prompt_router.refresh()
    assert prompt_router.is_whole
    (decision,) = choose(prompt_router, asked)
    assert decision.adapter == "cron"
    assert decision.evidence, "learnt anew, its examples are compared with"
    changed = more | {"cron": adapter("cron", CARDS["sql"])}
    prompt_router.update(changed)
    assert choose(prompt_router, "total value of orders from Paris")[0].adapter == "cron"
    prompt_router.refresh()
    assert choose(prompt_router, asked)[0].adapter != "cron"
    prompt_router.update(cards)
    assert choose(prompt_router, asked)[0].adapter != "cron"


def test_what_changes_while_it_learns_anew_is_not_lost(prompt_router):
    cards = many_cards(130)
    prompt_router.update(cards)
    prompt_router.update(cards | {"cron": adapter("cron", CARDS["cron"])})
    learning = threading.Thread(target=prompt_router.refresh)
    learning.start()
    now = cards | {name: adapter(name, CARDS[name]) for name in ("sql", "git")}
    prompt_router.update(now)
    learning.join()
    names = [d.adapter for d in choose(prompt_router, "merge main into my branch", "each friday")]
    assert names[0] == "git"
    assert names[1] != "cron"


class ParityReader:
    """Stands in for a reader: sees of a text what neither its topic nor its wording tells, and
    remembers what it was asked about."""

    version = "parity"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def read(self, texts: list[str]) -> np.ndarray:
        self.asked += texts
        states = 0.1 * np.random.default_rng(len(texts)).standard_normal((len(texts), 2, 8))
        states[:, :, 0] += [[1 if is_odd(text) else -1] for text in texts]
        return states.astype(np.float32)


def is_odd(text: str) -> bool:
    return bool(zlib.crc32(text.encode()) % 2)


def test_a_prompt_that_only_the_reader_tells_is_read_and_the_decision_says_so():
    animals = ("elephants", "parrots", "cats", "penguins", "snails", "horses", "bees", "owls")
    ways = ("diet", "home", "age", "weight", "sleep", "young", "voice")
    texts = [f"the {way} of {animal}" for animal in animals for way in ways]
    *known, first, second = texts
    plain = {name: adapter(name, examples) for name, examples in CARDS.items()}
    pair = {
        "odd": adapter("odd", tuple(t for t in known if is_odd(t))[:20]),
        "even": adapter("even", tuple(t for t in known if not is_odd(t))[:20]),
    }
    reader = ParityReader()
    router = PromptRouter(SentenceEncoder.of(RouterSettings()), RouterSettings(), reader=reader)
    router.update(plain | pair)
    reader.asked.clear()
    decisions = choose(router, first, second)
    assert [d.adapter == "odd" for d in decisions] == [is_odd(first), is_odd(second)]
    assert [d.has_read for d in decisions] == [True, True]
    assert reader.asked == [first, second]
    assert decisions[0].evidence[0].kernels["reader"] > 0.1
    assert "parity" in decisions[0].versions["features"]
    told = router.report()
    assert told.kernels["last"] + told.kernels["mean"] > 0
    assert told.asks_reader > 0.5

    router.update(plain)
    reader.asked.clear()
    (decision,) = choose(router, "each friday at ten in the morning")
    assert (decision.adapter, decision.has_read) == ("cron", False)
    assert "reader" not in decision.evidence[0].kernels
    assert reader.asked == [], "nothing to be told better"


def test_an_adapter_without_a_card_is_known_by_its_weights(tmp_path):
    """The prototypes point to where the prompts of one kind lie in a tiny random base model."""
    write_tiny_model(tmp_path / "base")
    # To its tokenizer, every word of an everyday prompt is the same unknown one.
    arrow = ArrowRouter(str(tmp_path / "base"), 2, everyday_prompts()[:40])
    text = "w7 w8 w9 w8"
    module = "layers.1.self_attn.q_proj"
    direction = arrow.deviations(text, [module])[module].mean(dim=0)
    a = torch.randn(4, len(direction), generator=torch.Generator().manual_seed(0)) * 0.01
    a[0] += direction / direction.norm()
    prefix = "base_model.model.model.layers.1.self_attn.q_proj"
    tensors = {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": torch.eye(16, 4)}
    save_file(tensors, tmp_path / "weights.safetensors")
    arrow.learn("d", tmp_path / "weights.safetensors")

    router = PromptRouter(
        SentenceEncoder.of(RouterSettings()), RouterSettings(), weights={"m": arrow}
    )
    silent = adapter("silent")
    router.update({"silent": silent.model_copy(update={"versions": {1: weights_of("d")}})})
    (own,) = choose(router, text)
    assert own.adapter == "silent"
    assert "weights" in own.reason
    assert choose(router, text, exclude=["silent"])[0].adapter is None
    assert choose(router, everyday_prompts()[3])[0].adapter is None
    arrow.forget_all_but(())
    assert choose(router, text)[0].adapter is None


def weights_of(digest: str):
    return version().model_copy(update={"number": 1, "digest": digest})
