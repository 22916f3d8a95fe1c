import numpy as np
import pytest

from router.adapters.ridge import Examples, Ridge, without_own


@pytest.fixture
def problem():
    """Sixty points, a Gaussian kernel, three targets."""
    rng = np.random.default_rng(0)
    points = rng.standard_normal((60, 4))
    kernel = np.exp(-((points[:, None] - points[None]) ** 2).sum(axis=2) / 4)
    return kernel, np.eye(3)[rng.integers(0, 3, 60)], rng.uniform(0.05, 0.2, 60)


def solve(kernel, targets, noise, rows, landmarks):
    likeness = kernel[np.ix_(rows, landmarks)]
    between = kernel[np.ix_(landmarks, landmarks)]
    return Ridge.fit(between, [Examples(likeness, targets[rows], noise[rows])])


def test_with_every_example_a_landmark_it_is_kernel_ridge_regression(problem):
    kernel, targets, noise = problem
    everything = np.arange(60)
    ridge = solve(kernel, targets, noise, everything, everything)
    textbook = np.linalg.solve(kernel + np.diag(noise), targets)
    assert np.allclose(kernel @ ridge.coefficients(), kernel @ textbook, atol=1e-4)


def test_examples_in_blocks_are_the_same_as_in_one(problem):
    kernel, targets, noise = problem
    blocks = [Examples(kernel[s, :20], targets[s], noise[s]) for s in (slice(0, 25), slice(25, 60))]
    parts = Ridge.fit(kernel[:20, :20], blocks)
    whole = solve(kernel, targets, noise, np.arange(60), np.arange(20))
    assert np.allclose(parts.coefficients(), whole.coefficients())


def test_leaving_one_out_in_closed_form_is_leaving_it_out(problem):
    kernel, targets, noise = problem
    everything = np.arange(60)
    ridge = solve(kernel, targets, noise, everything, everything)
    told = without_own(kernel @ ridge.coefficients(), targets, ridge.leverage(kernel, noise))
    for i in (0, 17, 59):
        others = np.delete(everything, i)
        without = solve(kernel, targets, noise, others, others)
        assert np.allclose(kernel[i, others] @ without.coefficients(), told[i], atol=1e-3)


def test_examples_added_later_count_as_if_they_had_been_there(problem):
    kernel, targets, noise = problem
    landmarks = np.arange(20)
    before = solve(kernel, targets[:, :2], noise, np.arange(40), landmarks)
    late = np.arange(40, 60)
    added = before.with_examples(
        Examples(kernel[np.ix_(late, landmarks)], targets[late], noise[late])
    )
    padded = np.vstack([np.c_[targets[:40, :2], np.zeros(40)], targets[40:]])
    whole = solve(kernel, padded, noise, np.arange(60), landmarks)
    for offset in (0.0, 1 / 3):
        assert np.allclose(added.coefficients(offset), whole.coefficients(offset), atol=1e-6)


def test_examples_taken_away_were_never_there(problem):
    kernel, targets, noise = problem
    landmarks = np.arange(20)
    whole = solve(kernel, targets, noise, np.arange(60), landmarks)
    gone = np.arange(40, 60)
    less = whole.with_examples(
        Examples(kernel[np.ix_(gone, landmarks)], targets[gone], -noise[gone])
    ).without_target(2)
    never = solve(kernel, targets[:, :2], noise, np.arange(40), landmarks)
    assert np.allclose(less.coefficients(), never.coefficients(), atol=1e-6)
