import numpy as np
import pytest

from cluster.decisions import Outcome
from router.adapters.encoder import SentenceEncoder
from router.adapters.features import FeatureExtractor
from router.adapters.quality import MIN_RECORDS, QualityPredictor, table_of
from tests.test_prompt_router import CARDS


@pytest.fixture(scope="module")
def extract():
    from cluster.settings import RouterSettings

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
