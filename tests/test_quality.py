import numpy as np
import pytest

from cluster.decisions import Outcome
from cluster.settings import RouterSettings
from router.adapters.encoder import SentenceEncoder
from router.adapters.experts.lessons import (
    MIN_RECORDS,
    Lesson,
    lessons_of,
    table_of,
    weighed_table,
)
from router.adapters.experts.predictor import QualityPredictor
from router.adapters.experts.spectrum import Spectrum, whitening
from router.adapters.features import FeatureExtractor, Features, Glances, Kernel, KernelWeights
from router.adapters.quality import OutcomeLearner
from tests.test_prompt_router import CARDS


@pytest.fixture(scope="module")
def extract():
    return FeatureExtractor(SentenceEncoder.of(RouterSettings()))


@pytest.fixture(scope="module")
def records():
    """Of 72 prompts: `small` answers only the schedules, `large` all but the schedules."""
    rows = []
    for name, prompts in CARDS.items():
        for i in range(4):
            for prompt in prompts:
                text = f"{prompt}, please ({i})"
                rows.append(Outcome(input=text, candidate="small", score=float(name == "cron")))
                rows.append(Outcome(input=text, candidate="large", score=float(name != "cron")))
    return rows


def test_who_did_well_on_such_prompts_is_expected_to_do_well(extract, records):
    texts, scores = table_of(records)
    predictor = QualityPredictor.fit(extract(texts), scores)
    assert predictor.candidates == ("large", "small")
    cron, sql = predictor.predict(extract(["every friday at nine", "count the orders of May"]))
    assert cron[1] > 0.6 > 0.4 > cron[0]
    assert sql[0] > 0.6 > 0.4 > sql[1]


def test_candidates_need_not_have_met_the_same_prompts(extract, records):
    some = [r for i, r in enumerate(records) if r.candidate == "large" or i % 4 == 0]
    texts, scores = table_of(some)
    assert np.isnan(scores["small"]).any()
    predictor = QualityPredictor.fit(extract(texts), scores)
    assert predictor.candidates == ("large", "small")
    assert np.isfinite(predictor.predict(extract(["every friday at nine"]))).all()


def test_too_few_records_foretell_nothing(extract):
    few = [Outcome(input=f"prompt {i}", candidate="a", score=1) for i in range(MIN_RECORDS - 1)]
    texts, scores = table_of(few)
    assert QualityPredictor.fit(extract(texts), scores) is None


def test_several_opinions_on_one_prompt_are_averaged():
    twice = [Outcome(input="x", candidate="a", score=s) for s in (0, 1)]
    texts, scores = table_of(twice)
    assert (texts, scores["a"].tolist()) == (["x"], [0.5])


def test_of_what_is_alike_in_all_the_choice_learns_nothing_and_each_is_told_apart(extract):
    """Half of the prompts are hard for both; the one that is better is so on all alike."""
    texts = [f"{kind} number {i}" for i in range(40) for kind in ("an easy sum", "a riddle of old")]
    easy = np.tile([0.9, 0.1], 40)
    predictor = QualityPredictor.fit(extract(texts), {"a": easy, "b": easy - 0.1})
    hard, plain = predictor.predict(extract(["a riddle of old number 99", "an easy sum number 99"]))
    assert plain.mean() > hard.mean() + 0.4
    assert plain[0] - plain[1] == pytest.approx(0.1, abs=0.02)
    assert hard[0] - hard[1] == pytest.approx(0.1, abs=0.02)


def test_it_is_surer_of_what_was_tried_more_and_nearby(extract, records):
    texts, scores = table_of(records)
    rarely = np.where(np.arange(len(texts)) % 3 == 0, scores["small"], np.nan)
    predictor = QualityPredictor.fit(extract(texts), {"large": scores["large"], "small": rarely})
    near, far = predictor.doubts(extract([texts[0], "Which enzymes unwind DNA?"]))
    large, small = (predictor.candidates.index(name) for name in ("large", "small"))
    assert 0 < near[large] < near[small] < 0.5
    assert near[large] < far[large]


def test_the_reader_is_asked_only_where_it_foretells_more(extract):
    texts = [f"prompt {i}" for i in range(120)]
    random = np.random.default_rng(0)
    says, noise = (random.normal(size=(120, 2, 16)).astype(np.float32) for _ in range(2))
    right = (says[:, 0, 0] > 0).astype(float)
    scores = {"a": right, "b": 1 - right}
    glanced = extract(texts)
    for states, reads in ((says + 4 * (right - 0.5)[:, None, None], True), (noise, False)):
        read = Features(glanced.meaning, glanced.form, glanced.wording, states)
        predictor = QualityPredictor.fit(glanced, scores, read=read.__getitem__)
        assert predictor.reads is reads


def test_a_prompt_that_is_asked_again_is_known_again(extract, records):
    """Though all prompts like it say otherwise."""
    texts, scores = table_of(records)
    odd = next(i for i, text in enumerate(texts) if scores["small"][i])
    scores["small"][odd], scores["large"][odd] = 0.0, 1.0
    predictor = QualityPredictor.fit(extract(texts), scores, texts=texts)
    asked = [f" {texts[odd]}\n", texts[odd].replace("please", "kindly")]
    (large, small), (other_large, other_small) = predictor.predict(extract(asked), asked)
    assert large > small
    assert other_large < other_small
    new = ["count the orders of May"]
    assert predictor.predict(extract(new), new) == pytest.approx(predictor.predict(extract(new)))


def test_what_was_said_later_of_one_prompt_counts_more():
    said = [Outcome(input="x", candidate="a", score=s, at=at) for s, at in ((0, 0), (1, 60))]
    _, scores, weights = weighed_table(Lesson([*said], {"": 1.0}), half_life_s=60)
    assert (scores["a"][0], weights[0]) == (pytest.approx(2 / 3), 1.0)
    older = Outcome(input="y", candidate="a", score=0, at=0)
    _, _, weights = weighed_table(Lesson([*said, older], {"": 1.0}), half_life_s=60)
    assert weights.tolist() == [1.0, 0.5]


def test_left_out_predictions_are_those_of_learning_without(extract):
    features = extract([f"{what} {i}" for i in range(12) for what in ("a tide", "a tax")])
    likeness = Kernel(KernelWeights(), features, features)(features)
    white, targets = whitening(likeness), np.tile([[1.0], [0.0]], (12, 1))
    weights = np.linspace(0.2, 1, 24)
    left_out = Spectrum.of(white, likeness, weights).left_out(targets, 3.0)
    others = np.arange(24) != 7
    without = Spectrum.of(white, likeness[others], weights[others])
    alone = likeness[7] @ without.coefficients(targets[others], 3.0)
    assert left_out[7] == pytest.approx(alone, rel=1e-3)


# -- of several tenants -----------------------------------------------------------------------


def rated(owner: str, count: int, score: float = 1.0) -> list[Outcome]:
    return [
        Outcome(input=f"{owner} asks {i}", candidate="a", score=score, owner=owner)
        for i in range(count)
    ]


def test_however_much_a_tenant_says_it_counts_as_much_as_the_others():
    said = {"loud": 1000, "louder": 1500, "quiet": MIN_RECORDS, "silent": MIN_RECORDS // 2}
    outcomes = [o for owner, count in said.items() for o in rated(owner, count)]
    common = lessons_of(outcomes, shared=True)[""]
    assert len(common.outcomes) == sum(said.values())
    counts = {owner: common.weights[owner] * count for owner, count in said.items()}
    assert counts["loud"] == pytest.approx(counts["louder"]) == pytest.approx(counts["quiet"])
    assert counts["silent"] == pytest.approx(counts["quiet"] / 2)
    assert sum(counts.values()) == pytest.approx(sum(said.values()))


def test_nobodys_outcomes_alone_count_in_full():
    for shared in (False, True):
        lessons = lessons_of(rated("", 50), shared=shared)
        assert lessons.keys() == {""}
        assert lessons[""].weights == {"": 1.0}


def test_what_a_tenant_says_counts_for_itself_on_top_of_what_all_say():
    outcomes = [*rated("loud", 1000), *rated("quiet", 40)]
    for shared in (False, True):
        lessons = lessons_of(outcomes, shared=shared)
        for owner in ("loud", "quiet"):
            extra = lessons[owner].weights[owner] - lessons[""].weights.get(owner, 0)
            assert extra == pytest.approx(1)
            assert {o.owner for o in lessons[owner].outcomes} >= {owner}


def test_a_tenant_has_a_predictor_of_its_own_from_enough_outcomes_on(extract, monkeypatch):
    """Each costs seconds, and is used while the next is learnt."""
    learner = OutcomeLearner(extract, RouterSettings(), extract(["hello"]))
    asked = Glances(extract, ["x"], extract.glance(["x"]))
    fit, ready = QualityPredictor.fit, []

    def noting(*args, **kwargs):
        ready.append([learner.foretell(asked, o)[0].qualities for o in ("", "a")])
        return fit(*args, **kwargs)

    monkeypatch.setattr(QualityPredictor, "fit", noting)
    common = rated("", 30, score=0.5)
    few = [o for i in range(9) for o in rated(f"t{i}", MIN_RECORDS - 1)]
    learner.learn([*common, *few, *rated("a", MIN_RECORDS), *rated("b", MIN_RECORDS)])
    assert len(ready) == 3
    assert ready[0] == [{}, {}]
    assert ready[1][0] == ready[1][1] != {}, "until its own is there, it has the common one"
    assert ready[2][1] not in ({}, ready[1][0])
    learner.learn([*common, *few, *rated("a", MIN_RECORDS), *rated("b", MIN_RECORDS + 1)])
    assert len(ready) == 4, "only who has said more learns anew"
    learner.learn(common)
    assert learner.foretell(asked, "a") == learner.foretell(asked)
