import numpy as np
import pytest

from cluster.decisions import Outcome
from cluster.settings import RouterSettings
from router.adapters.encoder import SentenceEncoder
from router.adapters.experts.lessons import MIN_RECORDS, lessons_of, table_of, weighed_table
from router.adapters.experts.predictor import QualityPredictor
from router.adapters.features import FeatureExtractor, Glances
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
    learner = OutcomeLearner(extract, RouterSettings())
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
