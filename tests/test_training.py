"""A catalogue that teaches its encoder: what it learns from, what it is worth, who takes it."""

import asyncio
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from adapter_store.files.blobs import CONFIG, WEIGHTS
from cluster.decisions import Outcome, Prompt
from cluster.encoders.kept import MOST, Encoders, TrainedEncoder
from cluster.errors import Conflict, NotFound
from cluster.members import Router, RouterReport
from cluster.settings import RouterSettings, parse_settings
from deployments.chooser.encoders import EncoderFollower, is_worse
from deployments.chooser.learner import Learner
from deployments.chooser.standing import Standing
from deployments.chooser.training.child import keep
from deployments.chooser.training.running import Task
from deployments.chooser.training.trainer import Trainer
from deployments.command.cli import app
from deployments.planner.journal import member_news
from deployments.process import metrics
from deployments.process.process import Process
from router.adapters.classifier import Classifier
from router.adapters.constraints import Constraints
from router.adapters.encoder import SentenceEncoder
from router.adapters.features import FeatureExtractor, KernelWeights
from router.adapters.fitting import Learning
from router.adapters.prompt_router import PromptRouter, everyday_prompts
from router.adapters.training.contrast import Course, tuned
from router.adapters.training.crossing import Fold, crossed, dealt
from router.adapters.training.lessons import LEAST_CLASSES, Lessons
from router.adapters.training.schooling import Marks, Schooled, school
from router.adapters.training.trained import HeldOut, read, write
from tests.conftest import until
from tests.test_http import error
from tests.test_prompt_router import CARDS as THREE

CARDS = THREE | {
    "weather": (
        "will it rain in Oslo tomorrow",
        "how warm is it in Rome",
        "is a storm coming this weekend",
        "do I need an umbrella today",
        "wind speed at the coast right now",
        "when does the sun set in June",
    ),
}
TEXTS = [text for texts in CARDS.values() for text in texts]
LABELS = np.repeat(np.arange(len(CARDS)), 6)


@pytest.fixture(scope="module")
def parent() -> SentenceEncoder:
    return SentenceEncoder.of(RouterSettings())


@pytest.fixture(scope="module")
def lessons() -> Lessons:
    return Lessons.of(CARDS, [], shared=False)


@pytest.fixture(scope="module")
def taught(parent, lessons) -> SentenceEncoder:
    return tuned(parent, list(lessons.texts), lessons.labels, Course(12), lambda *_: None)


def sides_of(encoder: SentenceEncoder, lessons: Lessons):
    """As `school` has them, by one encoder for all folds."""
    features = FeatureExtractor(encoder).glance(list(lessons.texts))
    folds = [Fold(rows, features) for rows in dealt(lessons.labels, 2, 0)]
    return (crossed(folds, lessons.labels, 512, KernelWeights()),)


# -- what is learnt from --------------------------------------------------------------------


def test_few_adapters_with_two_texts_are_nothing_to_learn_from():
    cards = {f"a{i}": ("one text",) for i in range(50)} | dict(list(CARDS.items())[:3])
    with pytest.raises(Conflict, match=f"3 adapters have two texts .* {LEAST_CLASSES} are needed"):
        Lessons.of(cards, [], shared=False)


def test_feedback_teaches_only_what_was_good_and_whom_it_may():
    def said(text: str, score: float = 1.0, owner: str = "", candidate: str = "cron") -> Outcome:
        return Outcome(input=text, candidate=candidate, score=score, owner=owner)

    outcomes = [said("nobody's"), said("bad", 0.2), said("alice's", owner="alice")]
    outcomes += [said("of a base model", candidate="base"), said(CARDS["cron"][0])]
    alone = Lessons.of(CARDS, outcomes, shared=False)
    assert set(alone.texts) - set(TEXTS) == {"nobody's"}
    assert alone.of_cards == len(TEXTS), "feedback is learnt from, and never scored"
    outcomes += [said("bob's", owner="bob")]
    assert "alice's" in Lessons.of(CARDS, outcomes, shared=True).texts
    assert alone.digest != Lessons.of(CARDS, [], shared=False).digest


def test_every_example_is_held_out_once_and_no_fold_has_a_whole_class():
    labels = np.repeat(np.arange(5), [1, 2, 3, 8, 20])
    folds = dealt(labels, 4, seed=0)
    assert sorted(np.concatenate(folds)) == list(range(1, 34)), "a class of one is always learnt"
    for rows in folds:
        assert set(np.setdiff1d(np.arange(34), rows)) and set(
            labels[np.setdiff1d(np.arange(34), rows)]
        ) == set(range(5))
    assert [a.tolist() for a in folds] == [b.tolist() for b in dealt(labels, 4, seed=0)]


# -- training -------------------------------------------------------------------------------


def test_tuning_draws_the_texts_of_an_adapter_together_and_a_seed_repeats_it(
    parent, taught, lessons
):
    def apart(encoder: SentenceEncoder) -> float:
        rows = encoder.encode(list(lessons.texts)).meaning
        alike, same = rows @ rows.T, lessons.labels[:, None] == lessons.labels
        return float(alike[same].mean() - alike[~same].mean())

    assert apart(taught) > apart(parent) + 0.1
    again = tuned(parent, list(lessons.texts), lessons.labels, Course(12), lambda *_: None)
    assert again.version == taught.version != parent.version
    other = Course(12, seed=1)
    assert tuned(parent, list(lessons.texts), lessons.labels, other, print).version != again.version


def test_an_encoder_that_is_no_better_is_not_kept(parent, lessons):
    told: list[tuple[str, int, int, float]] = []
    terms = SimpleNamespace(steps=2, folds=2, seed=0)
    # Of four adapters as different as these all is right already.
    made = school(parent, None, lessons, terms, 512, lambda *event: told.append(event))
    assert made.encoder is None and not made.marks.is_better
    assert made.marks.examples == len(TEXTS)
    assert told[-1][0] == "without fold 2 of 2", "and no time is spent on the last training"
    assert [event[1] for event in told] == sorted(event[1] for event in told)


def test_better_is_by_more_than_the_standard_error(parent, lessons):
    (side,) = sides_of(parent, lessons)

    def with_wrong(rows: slice):
        scores = side.left_out.labels[:, None] == np.arange(len(CARDS))
        scores = scores.astype(float)
        scores[rows] = 1 - scores[rows]
        left_out = dataclasses.replace(side.left_out, scores=scores)
        return dataclasses.replace(side, left_out=left_out)

    one = Marks.of(with_wrong(slice(0, 1)), with_wrong(slice(0)))
    assert one.gain == pytest.approx(1 / 24) and one.error == pytest.approx(1 / 24)
    assert not one.is_better, "one example is luck"
    assert Marks.of(with_wrong(slice(0, 6)), with_wrong(slice(0))).is_better
    assert not Marks.of(with_wrong(slice(0)), with_wrong(slice(0, 6))).is_better


# -- what is carried over -------------------------------------------------------------------


def test_what_is_calibrated_is_calibrated_on_what_was_held_out(taught, parent, lessons):
    extract = FeatureExtractor(taught)
    features, beside = extract(list(lessons.texts)), extract(everyday_prompts()[:60])
    learning = Learning(accept_rate=0.98, in_scope_share=0.9, max_landmarks=512)
    (side,) = sides_of(parent, lessons)
    labels = side.left_out.labels
    hard = np.where(np.arange(len(labels))[:, None] < 12, 0.3, side.left_out.scores)
    hard = dataclasses.replace(side, left_out=dataclasses.replace(side.left_out, scores=hard))
    naive = Classifier.learn(features, lessons.labels, beside, learning).classifier
    made = Classifier.learn(features, lessons.labels, beside, learning, hard).classifier
    assert naive.report.top1 == 1.0, "seen, each seems certain"
    assert made.report.top1 < 0.8, "what was held out was not"
    assert made.kernel.weights == hard.weights


def test_what_was_held_out_follows_the_catalogue(parent, lessons):
    held_out = HeldOut.of(lessons, sides_of(parent, lessons))
    (whole,) = held_out.among(
        dict(zip(lessons.names, (CARDS[n] for n in lessons.names), strict=True))
    )
    assert len(whole.rows) == len(TEXTS)
    # One is gone, one is new and stands first, one has lost a text.
    cards = {"aaa": ("something else", "or this"), "cron": CARDS["cron"][1:], "sql": CARDS["sql"]}
    (side,) = held_out.among(cards)
    assert len(side.rows) == 11 and side.left_out.scores.shape == (11, 3)
    assert not side.left_out.scores[:, 0].any(), "it was not there"
    pairs = [(name, text) for name, texts in cards.items() for text in texts]
    assert {pairs[row][0] for row in side.rows[side.left_out.labels == 1]} == {"cron"}
    assert held_out.among({"cron": ("all", "new")}) == ()


def test_what_is_kept_comes_back(parent, taught, lessons, tmp_path):
    made = Schooled(Marks(24, 0.5, 1.0, 0.1, 1.0, 0.5), taught, sides_of(taught, lessons))
    write(tmp_path, (CONFIG, WEIGHTS), "{}", lessons, made)
    found = read(tmp_path / WEIGHTS, parent)
    assert found.encoder.version == taught.version
    (told,), (kept,) = found.held_out.sides, made.sides
    assert told.weights == kept.weights
    assert np.allclose(told.left_out.scores, kept.left_out.scores, atol=1e-3)
    assert found.held_out.names == lessons.names
    tensors = load_file(tmp_path / WEIGHTS)
    name = next(n for n in tensors if n.endswith("word_embeddings.weight"))
    broken = tmp_path / "broken.safetensors"
    save_file(tensors | {name: tensors[name] * torch.nan}, broken)
    with pytest.raises(ValueError, match=r"cannot be read|not finite"):
        read(broken, parent)


# -- which one is held ----------------------------------------------------------------------


def record(number: int = 0, digest: str = "", **changes) -> TrainedEncoder:
    fields = {
        "id": f"e{number}", "digest": digest or f"d{number}", "made_at": 1.0, "parent": "p",
        "position": "0-1", "lessons": "l", "adapters": 4, "texts": 24, "steps": 12, "folds": 2,
        "seed": 0, "before": 0.5, "after": 0.6, "error": 0.01, "loss_before": 1.0,
        "loss_after": 0.9, "took_s": 1.0,
    }  # fmt: skip
    return TrainedEncoder(**fields | changes)


def test_what_was_held_before_can_be_held_again():
    book = Encoders()
    for number in range(MOST + 3):
        book = book.with_new(record(number), use=number in (0, MOST + 1))
    assert book.held == f"e{MOST + 1}" and len(book.kept) == MOST
    assert {e.id for e in book.kept} >= {book.held, f"e{MOST + 2}"}
    assert book.rolled_back().held is None, "e0 is gone; before it there was the settings'"
    with pytest.raises(Conflict, match="no other encoder"):
        Encoders().rolled_back()
    with pytest.raises(NotFound, match="roundhouse router encoders list"):
        book.using("e0")


@pytest.mark.redis
async def test_admins_say_which_one_is_held(make_world, store):
    await store.encoders.change(lambda book: book.with_new(record(), use=True))
    async with make_world() as rh:
        told = (await rh.client.get("/v1/router/encoders")).json()
        assert (told["held"], told["encoders"][0]["after"]) == ("e0", 0.6)
        back = await rh.client.post("/v1/router/encoders/rollback")
        assert back.json()["held"] is None
        error(await rh.client.post("/v1/router/encoders/rollback"), 409)
        error(await rh.client.put("/v1/router/encoders", json={"id": "no"}), 404)
        used = await rh.client.put("/v1/router/encoders", json={"id": "e0"})
        assert used.json()["held"] == "e0"


@pytest.mark.redis
async def test_two_who_change_it_at_once_both_do_and_blobs_are_kept_as_long_as_they_are(store):
    await asyncio.gather(
        *(store.encoders.change(lambda b, i=i: b.with_new(record(i), use=False)) for i in range(3))
    )
    assert {e.id for e in (await store.encoders.newest()).kept} == {"e0", "e1", "e2"}
    assert not await store.blob_refs.condemn("d1", for_s=0)
    for number in range(3, 3 + MOST):
        await store.encoders.change(lambda b, i=number: b.with_new(record(i), use=False))
    assert await store.blob_refs.condemn("d1", for_s=0), "the collector may have it"


# -- who takes it over ----------------------------------------------------------------------


class Choosers:
    """Two prompt routers on one store."""

    def __init__(self, settings, store, parent) -> None:
        self.settings, self.store, self.parent = settings, store, parent
        self.standing: list[Standing] = []
        self.processes: list[Process] = []

    async def start(self) -> None:
        for number in range(2):
            standing = Standing(self.make(self.parent, None))
            process = Process(self.settings.store, f"router-{number}")
            learner = process.add(Learner(self.settings, process, standing, {}))
            follower = EncoderFollower(
                self.settings, process, standing, learner, self.make, self.parent, ""
            )
            process.add(follower)
            self.standing.append(standing)
            self.processes.append(process)
            await process.start()

    def make(self, encoder, held_out) -> PromptRouter:
        return PromptRouter(encoder, self.settings.router, self.settings.models, held_out=held_out)

    async def keep(self, encoder, lessons, **changes) -> str:
        """Keep and hold an encoder; what it was given as held out is by itself."""
        marks = Marks(24, 0.5, 1.0, 0.1, 1.0, 0.5)
        made = Schooled(marks, encoder, sides_of(encoder, lessons))
        lineage = record(**{"parent": self.parent.version} | changes)
        kept = await keep(self.store, Task(self.settings), lineage, lessons, made)
        return kept.id

    async def until_all(self, holds) -> None:
        await until(lambda: all(holds(s) for s in self.standing), 30)


@pytest.fixture
async def choosers(store, store_settings, tmp_path, parent, registrar, make_adapter):
    from cluster.requests import Registration

    for seed, (name, texts) in enumerate(CARDS.items()):
        source = str(make_adapter(name, seed=seed, examples=list(texts)))
        await registrar.register(Registration(source=source), mode="create")
    model = {"id": "echo", "path": "none", "engine": "echo"}
    settings = parse_settings({"models": [model], "router": {"stay_margin": 0}})
    kept = store_settings.model_copy(update={"data_dir": tmp_path / "data"})
    them = Choosers(settings.model_copy(update={"store": kept}), store, parent)
    try:
        await them.start()
        yield them
    finally:
        for process in them.processes:
            await process.stop()


def chosen(standing: Standing) -> str | None:
    (decision,) = standing.router.choose([Prompt(text="merge main into it")], Constraints())
    return decision.adapter


@pytest.mark.redis
async def test_all_prompt_routers_follow_and_go_back(choosers, taught, lessons):
    await choosers.until_all(lambda s: s.report().cards == len(CARDS))
    before = choosers.standing[0].report().versions["features"]
    which = await choosers.keep(taught, lessons)
    asked = 0
    while not all(s.encoder == which for s in choosers.standing):
        assert [chosen(s) for s in choosers.standing] == ["git", "git"], "whoever it is, it answers"
        asked += 1
        await asyncio.sleep(0.02)
    assert asked and [chosen(s) for s in choosers.standing] == ["git", "git"]
    for standing in choosers.standing:
        told = standing.report()
        assert (told.encoder, told.encoder_problem, told.cards) == (which, "", len(CARDS))
        assert told.versions["features"] not in ("", before)
    await choosers.store.encoders.change(Encoders.rolled_back)
    await choosers.until_all(lambda s: s.encoder is None)
    assert choosers.standing[1].report().versions["features"] == before


@pytest.mark.redis
async def test_one_that_cannot_be_had_or_is_worse_is_not_taken_and_that_is_told(
    choosers, parent, taught, lessons
):
    def failures() -> float:
        return metrics.REGISTRY.get_sample_value("roundhouse_routing_encoder_failures_total") or 0

    await choosers.until_all(lambda s: s.report().cards == len(CARDS))
    count = failures()
    await choosers.keep(taught, lessons, parent="another")
    await choosers.until_all(lambda s: "trained with another encoder" in s.problem)
    assert failures() == count + 2
    noise = torch.Generator().manual_seed(0)
    weights = {
        n: torch.randn(w.shape, generator=noise).to(w.dtype) if w.is_floating_point() else w
        for n, w in parent.weights.items()
    }
    await choosers.keep(parent.with_weights(weights), lessons)
    await choosers.until_all(lambda s: "held-out examples" in s.problem)
    await choosers.store.encoders.change(lambda book: book.using(None))
    await choosers.until_all(lambda s: not s.problem)
    gone = record(digest="0" * 64, parent=parent.version)
    await choosers.store.encoders.change(lambda book: book.with_new(gone, use=True))
    await choosers.until_all(lambda s: "are gone from the blob store" in s.problem)
    assert [s.encoder for s in choosers.standing] == [None, None]
    assert [chosen(s) for s in choosers.standing] == ["git", "git"]
    assert choosers.standing[0].report().encoder_problem


def test_one_that_is_right_about_fewer_is_worse():
    def told(top1: float | None, examples: int = 100) -> RouterReport:
        return RouterReport(versions={}, cards=4, examples=examples, left_out_top1=top1)

    assert not is_worse(told(None), told(0.1)), "there was nothing to hold it against"
    assert not is_worse(told(0.90), told(0.88)), "within the standard error, 3 points"
    assert "80.0%" in is_worse(told(0.90), told(0.80))


def test_the_journal_tells_of_encoders():
    def at(encoder: str = "", problem: str = "") -> list[Router]:
        told = RouterReport(versions={}, cards=1, encoder=encoder, encoder_problem=problem)
        return [Router(id="r", router=told)]

    (news,) = member_news(at(), at("e1"), {})
    assert news.text == "router r reads prompts with the trained encoder e1" and not news.is_bad
    (news,) = member_news(at(), at(problem="the files are gone"), {})
    assert news.is_bad and "the files are gone" in news.text
    assert (
        json.loads(RouterReport(versions={}, cards=1).model_dump_json())
        .keys()
        .isdisjoint({"encoder", "encoder_problem"})
    ), "the release before reads it"


# -- the command ----------------------------------------------------------------------------


@pytest.mark.redis
def test_the_command_trains_in_a_process_of_its_own(store_settings, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    data = str(tmp_path / "data")
    tree = {
        "models": [{"id": "echo", "path": "none", "engine": "echo"}],
        "store": json.loads(store_settings.model_dump_json(exclude_unset=True))
        | {"data_dir": data},
        "router": {"training": {"steps": 1, "folds": 2}},
    }
    config = tmp_path / "roundhouse.yaml"
    config.write_text(yaml.safe_dump(tree))
    run = CliRunner().invoke(app, ["router", "train", str(config)])
    assert isinstance(run.exception, Conflict), run.output
    assert "there is nothing to learn from: 0 adapters have two texts" in run.exception.message


@pytest.mark.redis
async def test_in_the_background_what_cannot_be_learnt_from_is_said(store_settings, caplog):
    tree = {
        "models": [{"id": "echo", "path": "none", "engine": "echo"}],
        "router": {"training": {"every_s": 0.01}},
    }
    settings = parse_settings(tree).model_copy(update={"store": store_settings})
    process = Process(store_settings, "router")
    process.add(Trainer(settings, process))
    await process.start()
    try:
        await until(lambda: "there is nothing to learn from" in caplog.text, 60)
        process.check()
    finally:
        await process.stop()
