"""Two classifiers on features made by hand: by what the encoder sees, half of the classes come in
pairs that are the same; the reader tells the two of a pair apart."""

import numpy as np
import pytest

from router.adapters.cascade import Cascade
from router.adapters.features import Features
from router.adapters.fitting import Learning
from tests.test_classifier import Catalogue

LEARNING = Learning(accept_rate=0.98, in_scope_share=0.9, max_landmarks=2048)
CLASSES, PAIRED = 8, 4


class Pairs(Catalogue):
    """Classes 0 and 1, and 2 and 3, are alike to the encoder."""

    def __init__(self, *, reader_knows: bool = True) -> None:
        self.reader_knows = reader_knows
        self.seen = np.random.default_rng(7).standard_normal((CLASSES, 32))
        super().__init__(CLASSES, each=24, spread=0.4)
        self.centres[1], self.centres[3] = self.centres[0], self.centres[2]
        self.examples = self.prompts(self.labels)

    def prompts(self, labels: np.ndarray) -> Features:
        return self.read(super().prompts(labels), self.seen[labels])

    def elsewhere(self, n: int) -> Features:
        return self.read(super().elsewhere(n), np.zeros((n, 32)))

    def read(self, features: Features, seen: np.ndarray) -> Features:
        noise = self.rng.standard_normal((len(seen), 2, 32))
        states = 0.5 * noise + (3 * seen[:, None] if self.reader_knows else 0)
        return Features(features.meaning, features.form, features.wording, states)

    def learnt(self, rows=slice(None)) -> Cascade:
        return Cascade.fit(self.examples[rows], self.labels[rows], self.elsewhere(60), LEARNING)


def judge(cascade: Cascade, prompts: Features):
    everything = np.ones(cascade.quick.classes, dtype=bool)
    return cascade.judge(prompts.unread, everything, everything, lambda rows: prompts[rows])


def best(cascade: Cascade, prompts: Features) -> np.ndarray:
    return np.array([int(j.verdict.classes[0]) for j in judge(cascade, prompts)])


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return Pairs()


@pytest.fixture(scope="module")
def cascade(pairs) -> Cascade:
    return pairs.learnt()


def test_the_reader_is_asked_where_it_changes_the_choice_and_not_elsewhere(pairs, cascade):
    truth = np.arange(CLASSES).repeat(20)
    judged = judge(cascade, pairs.prompts(truth))
    found = np.array([int(j.verdict.classes[0]) for j in judged])
    assert np.mean(found == truth) > 0.97
    has_read = np.array([j.has_read for j in judged])
    assert has_read[truth < PAIRED].mean() > 0.9
    assert has_read[truth >= PAIRED].mean() < 0.5
    assert cascade.gate.asks == pytest.approx(has_read.mean(), abs=0.15)


def test_the_cascade_loses_next_to_nothing_of_what_the_reader_would_say_of_all(pairs, cascade):
    truth = np.arange(CLASSES).repeat(60)
    prompts = pairs.prompts(truth)
    everything = np.ones(CLASSES, dtype=bool)
    full = [v.classes[0] for v in cascade.full.judge(prompts, everything, everything)]
    right = np.mean(np.array(full) == truth)
    assert right - np.mean(best(cascade, prompts) == truth) <= 0.01


def test_a_reader_that_knows_nothing_more_is_never_asked():
    pairs = Pairs(reader_knows=False)
    cascade = pairs.learnt()
    prompts = pairs.prompts(np.arange(CLASSES).repeat(5))
    assert not any(j.has_read for j in judge(cascade, prompts))


def test_what_mattered_names_the_reader(pairs, cascade):
    (judged,) = judge(cascade, pairs.prompts(np.array([1])))
    (ground, *_) = judged.by.grounds(judged.verdict, 1, 3)
    assert ground.kernels.keys() == {"meaning and form", "wording", "reader"}
    assert sum(ground.kernels.values()) == pytest.approx(1, abs=1e-3)
    assert ground.kernels["reader"] > 0.2


def test_weights_hardly_move_when_a_card_comes_or_goes(pairs, cascade):
    told = cascade.full.kernel.weights.told
    for gone in range(CLASSES):
        rows = pairs.labels != gone
        labels = pairs.labels[rows]
        labels = labels - (labels > gone)
        fewer = Cascade.fit(pairs.examples[rows], labels, pairs.elsewhere(60), LEARNING)
        now = fewer.best.kernel.weights.told
        steps = [abs(np.log2(now[n] / told[n])) for n in ("mean", "last") if told[n] and now[n]]
        assert max(steps, default=0) <= 1


def test_classes_come_and_go_in_both_classifiers(pairs, cascade):
    late = pairs.labels >= 6
    grown = pairs.learnt(~late).with_classes(pairs.examples[late], pairs.labels[late])
    truth = np.arange(CLASSES).repeat(10)
    assert np.mean(best(grown, pairs.prompts(truth)) == truth) > 0.95
    gone = pairs.labels == 0
    less = cascade.without_class(0, pairs.examples[gone])
    rest = np.arange(1, CLASSES).repeat(10)
    assert np.mean(best(less, pairs.prompts(rest)) == rest - 1) > 0.97


def test_a_card_of_one_text_each_is_learnt_without_the_reader(pairs):
    one = [int(np.flatnonzero(pairs.labels == c)[0]) for c in range(CLASSES)]
    cascade = pairs.learnt(np.array(one))
    assert cascade.full is None
