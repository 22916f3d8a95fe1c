"""What is made of scores by left-out examples, against what happens with fresh ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from router.adapters.calibration.bound import below_all, sure_enough
from router.adapters.calibration.confidence import Confidence
from router.adapters.calibration.left_out import calibration_error
from router.adapters.calibration.strangers import signals_of_strangers
from router.adapters.classifier import Classifier
from router.adapters.fitting import Learning
from tests.test_classifier import Catalogue

LEARNING = Learning(accept_rate=0.98, in_scope_share=0.9, max_landmarks=2048)


def scored(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Scores that no temperature makes right: a third of the prompts are coins tossed between two
    classes, whatever the scores of these say."""
    labels = rng.integers(0, 12, n)
    scores = rng.standard_normal((n, 12)) * 0.15
    scores[np.arange(n), labels] += 1.0
    coins = rng.random(n) < 0.33
    other = (labels + 1) % 12
    scores[coins, other[coins]] += rng.choice([0.6, 1.6], coins.sum())
    return scores, labels


def test_the_first_is_as_likely_right_as_said_where_no_temperature_makes_it_so():
    rng = np.random.default_rng(0)
    scores, labels = scored(400, rng)
    made = Confidence.fit(scores, labels, np.ones(400, dtype=bool), each=33)
    fresh, truth = scored(6000, rng)
    right = fresh.argmax(axis=1) == truth
    plain = softmax(made.temperature * fresh, axis=1).max(axis=1)
    found = calibration_error(made(fresh).max(axis=1), right)
    assert found < 0.04 < calibration_error(plain, right)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1, 2), min_size=1, max_size=9),
    st.tuples(st.floats(0, 4), st.floats(0, 4), st.floats(-4, 4)),
)
def test_probabilities_sum_to_one_and_leave_the_order(scores, shape):
    row = np.array([sorted(scores, reverse=True)])
    found = Confidence(8.0, shape)(row)[0]
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all()
    assert (np.diff(found) <= 1e-9).all()


@pytest.mark.parametrize("n", [60, 400])
def test_a_word_is_taken_where_it_is_not_wrong_too_often(n):
    """Of what is wrong by the law that it learns, on prompts never seen."""
    rng = np.random.default_rng(1)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        sureness = rng.gamma(2.0, 2.0, n)
        return sureness, rng.random(n) < 1 / (1 + np.exp(1.5 * sureness - 1))

    losses = []
    for _ in range(40):
        least = sure_enough(*draw(n), 0.01)
        sureness, wrong = draw(4000)
        losses.append(float((wrong & (sureness >= least)).mean()))
    assert np.mean(losses) < 0.01
    assert np.mean(np.array(losses) > 0.01) < 0.3
    assert sure_enough(*draw(400), 0.01) < 8


def test_few_examples_foretell_how_low_the_next_ones_lie():
    rng = np.random.default_rng(2)
    lower = [(rng.standard_normal(2000) < below_all(rng.standard_normal(30), 0.01)).mean()
             for _ in range(50)]  # fmt: skip
    assert np.mean(lower) <= 0.0105
    assert below_all(np.array([1.0]), 0.01) == -np.inf


def test_examples_seen_without_their_class_are_seen_as_by_a_catalogue_that_lacks_it():
    catalogue = Catalogue(6, each=8, spread=0.6)
    whole = catalogue.fit()
    found = signals_of_strangers(
        whole.regression,
        catalogue.examples,
        catalogue.labels,
        np.random.default_rng(0),
        np.ones(6, dtype=bool),
    )
    order = np.random.default_rng(0).permutation(6)
    for place, label in enumerate(order[:2]):
        kept = catalogue.labels != label
        labels = catalogue.labels[kept]
        less = Classifier.learn(
            catalogue.examples[kept],
            labels - (labels > label),
            catalogue.elsewhere(60),
            LEARNING,
            whole.kernel.weights,
        ).classifier
        wanted = less.regression.signals(catalogue.examples[~kept])
        # The kernel's centre and scales, the noise and the offset are those of the whole catalogue.
        assert np.abs(found[8 * place : 8 * place + 8] - wanted).max() < 0.15
        assert np.corrcoef(found[8 * place : 8 * place + 8, 0], wanted[:, 0])[0, 1] > 0.9


def test_a_catalogue_of_one_has_no_strangers():
    catalogue = Catalogue(1, each=8)
    made = catalogue.fit().regression
    rng = np.random.default_rng(0)
    usable = np.ones(1, dtype=bool)
    found = signals_of_strangers(made, catalogue.examples, catalogue.labels, rng, usable)
    assert found.shape == (0, 3)
