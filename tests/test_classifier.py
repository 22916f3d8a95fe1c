"""The classifier on features made by hand: each class is a bundle of directions."""

import numpy as np
import pytest
import scipy.sparse

from router.adapters.calibration.left_out import calibration_error
from router.adapters.classifier import Classifier
from router.adapters.encoder import unit_rows
from router.adapters.features import Features
from router.adapters.fitting import Learning

SETTINGS = {"accept_rate": 0.99, "in_scope_share": 0.8}


def features(centres: np.ndarray, spread: float, rng: np.random.Generator) -> Features:
    rows = unit_rows(centres + spread * rng.standard_normal(centres.shape))
    wording = scipy.sparse.csr_matrix(rng.integers(0, 2, (len(rows), 30)).astype(np.float32))
    return Features(rows, rows[:, ::-1].copy(), wording)


class Catalogue:
    """`classes` bundles with `each` examples, and fresh prompts of them."""

    def __init__(
        self, classes: int, each: int = 6, spread: float = 0.3, dimensions: int = 48
    ) -> None:
        self.rng = np.random.default_rng(0)
        self.centres = unit_rows(self.rng.standard_normal((classes, dimensions))) * 3
        self.spread = spread
        self.labels = np.repeat(np.arange(classes), each)
        self.examples = self.prompts(self.labels)

    def prompts(self, labels: np.ndarray) -> Features:
        return features(self.centres[labels], self.spread, self.rng)

    def elsewhere(self, n: int) -> Features:
        return features(np.zeros((n, self.centres.shape[1])), 1.0, self.rng)

    def fit(self, rows=slice(None), max_landmarks: int = 2048) -> Classifier:
        return Classifier.learn(
            self.examples[rows],
            self.labels[rows],
            self.elsewhere(60),
            Learning(max_landmarks=max_landmarks, **SETTINGS),
        ).classifier


def judge(classifier: Classifier, prompts: Features, allowed=None, seen=None):
    everything = np.ones(classifier.classes, dtype=bool)
    seen = everything if seen is None else seen
    return classifier.judge(prompts, seen, seen if allowed is None else allowed)


def best(classifier: Classifier, prompts: Features) -> list[int]:
    return [int(v.classes[0]) for v in judge(classifier, prompts)]


@pytest.fixture(scope="module")
def small() -> Catalogue:
    return Catalogue(8)


@pytest.mark.parametrize("max_landmarks", [2048, 24])
def test_new_prompts_find_their_class_and_others_are_out_of_scope(max_landmarks):
    catalogue = Catalogue(8)
    classifier = catalogue.fit(max_landmarks=max_landmarks)
    truth = np.arange(8).repeat(5)
    inside = judge(classifier, catalogue.prompts(truth))
    assert [int(v.classes[0]) for v in inside] == truth.tolist()
    outside = judge(classifier, catalogue.elsewhere(40))
    threshold = classifier.scope.threshold
    assert np.mean([v.scope >= threshold for v in inside]) > 0.9
    assert np.mean([v.scope < threshold for v in outside]) > 0.9


def test_probabilities_are_sums_of_one_and_mean_what_they_say():
    catalogue = Catalogue(12, each=10, spread=1.2)
    classifier = catalogue.fit()
    truth = np.arange(12).repeat(40)
    verdicts = judge(classifier, catalogue.prompts(truth))
    assert all(v.probabilities.sum() == pytest.approx(1) for v in verdicts)
    right = np.array([v.classes[0] for v in verdicts]) == truth
    assert 0.4 < right.mean() < 0.97, "the task is to be neither easy nor hopeless"
    assert calibration_error(np.array([v.probabilities[0] for v in verdicts]), right) < 0.12
    assert classifier.report.top1 == pytest.approx(right.mean(), abs=0.12)


def test_a_class_that_came_later_is_found_and_moves_no_other(small):
    late = small.labels >= 6
    classifier = small.fit(~late, max_landmarks=20)
    grown = classifier.with_classes(small.examples[late], small.labels[late])
    truth = np.arange(8).repeat(4)
    prompts = small.prompts(truth)
    assert best(grown, prompts) == truth.tolist()
    known = judge(grown, prompts[truth >= 6])
    assert all(v.scope >= grown.scope.threshold for v in known), "its examples count as known"


def test_a_class_that_left_is_forgotten_and_the_others_move_up(small):
    classifier = small.fit(max_landmarks=20)
    gone = small.labels == 3
    less = classifier.without_class(3, small.examples[gone])
    others = np.array([0, 1, 2, 4, 5, 6, 7])
    assert best(less, small.prompts(others)) == list(range(7))
    back = less.with_classes(small.examples[gone], np.full(gone.sum(), 7))
    assert best(back, small.prompts(np.array([3, 4]))) == [7, 3]


def test_the_shortlist_of_many_classes_holds_the_best_of_all():
    catalogue = Catalogue(1300, each=2, spread=0.1, dimensions=384)
    classifier = catalogue.fit(max_landmarks=1024)
    truth = np.arange(0, 1300, 13)
    listed = best(classifier, catalogue.prompts(truth))
    assert np.mean(np.array(listed) == truth) > 0.95


def test_what_may_not_be_chosen_is_told_and_lowers_the_scope(small):
    classifier = small.fit()
    prompts = small.prompts(np.array([2]))
    allowed = np.ones(8, dtype=bool)
    allowed[2] = False
    (free,) = judge(classifier, prompts)
    (bound,) = judge(classifier, prompts, allowed=allowed)
    assert (free.classes[0], free.before.tolist()) == (2, [])
    assert bound.before.tolist() == [2]
    assert 2 not in bound.classes
    assert bound.scope < classifier.scope.threshold <= free.scope
    (blind,) = judge(classifier, prompts, allowed=allowed, seen=allowed)
    assert blind.before.tolist() == [], "what is not seen is not told"


def test_classes_that_cannot_be_told_apart_are_reported():
    catalogue = Catalogue(6, each=10)
    catalogue.centres[5] = catalogue.centres[0]
    catalogue.examples = catalogue.prompts(catalogue.labels)
    ((a, b, share),) = catalogue.fit().report.twins
    assert (a, b) == (0, 5)
    assert 0.35 <= share <= 0.65


def test_a_class_with_one_example_is_not_drowned_by_one_with_many():
    catalogue = Catalogue(6, each=40, spread=0.4)
    few = np.flatnonzero((catalogue.labels != 0) | (np.arange(240) == 0))
    classifier = catalogue.fit(few)
    found = best(classifier, catalogue.prompts(np.zeros(40, dtype=int)))
    assert np.mean(np.array(found) == 0) > 0.8


def test_hundreds_of_copies_of_one_text_do_not_break_the_solution():
    catalogue = Catalogue(4, each=3)
    copies = np.concatenate([np.arange(12), np.zeros(500, dtype=int)])
    classifier = Classifier.learn(
        catalogue.examples[copies],
        catalogue.labels[copies],
        catalogue.elsewhere(30),
        Learning(max_landmarks=2048, **SETTINGS),
    ).classifier
    assert best(classifier, catalogue.prompts(np.arange(1, 4))) == [1, 2, 3]
    assert best(classifier, catalogue.examples[:1]) == [0]


def test_the_same_text_in_two_classes_does_not_break_the_solution():
    catalogue = Catalogue(4, each=3)
    twice = np.tile(np.arange(12), 2)
    classifier = Classifier.learn(
        catalogue.examples[twice],
        np.concatenate([catalogue.labels, catalogue.labels + 4]),
        catalogue.elsewhere(30),
        Learning(max_landmarks=2048, **SETTINGS),
    ).classifier
    (verdict,) = judge(classifier, catalogue.prompts(np.array([1])))
    assert set(verdict.classes[:2].tolist()) == {1, 5}
    assert np.isfinite(verdict.scores).all()
