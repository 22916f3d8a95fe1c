"""How well each class fits a text, and how well the text is known: one Gaussian process.

Its mean is the kernel ridge regression of `ridge.py` on the cards' texts, one target per class; its
variance (Rasmussen & Williams 2006, eq. 2.26) says how far a text is from all of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
import scipy.sparse

from router.adapters.features import Features, Kernel, KernelWeights
from router.adapters.ridge import Examples, Ridge, without_own

NOISE = 0.05
# An adapter with few examples has low scores even where it is right: k / n is what it lacks.
_FEW_EXAMPLES = 3.0
# That lends a score, but only so much counts as a sign that the prompt is known.
_SURE_GAIN = 1.5
# Of the posterior variance, which costs the square of them at each prompt.
_VARIANCE_LANDMARKS = 512
_BLOCK = 4096
# Likeness of a text and its copy, up to rounding. The same text on another card would be found
# again: of a prompt there is no copy.
SAME = 0.999


@dataclass(frozen=True)
class Regression:
    """Never changed once made: `fit` makes one, `with_classes` and `without_class` make others.

    Attributes:
        landmarks: (m,) class of each landmark; -1 when its class is gone.
        counts: (c,) examples of each class.
        typical: mean of the counts when it was fitted; the noise of an example is told by it.
        coefficients: (c, m + d + h) that make scores of regressors, a class in one piece of memory.
        variance: (v, v) of the first landmarks, that makes the posterior variance of likenesses.
        late: the likeness to the examples of classes that came later, and the class of each.
    """

    kernel: Kernel
    ridge: Ridge
    landmarks: np.ndarray
    counts: np.ndarray
    typical: float
    coefficients: np.ndarray
    variance: np.ndarray
    late: tuple[Kernel, np.ndarray] | None = None

    @classmethod
    def fit(
        cls, weights: KernelWeights, landmarks: np.ndarray, features: Features, labels: np.ndarray
    ) -> "Regression":
        """Learn n examples.

        Args:
            landmarks: (m,) rows of the examples that all texts are compared with.
            labels: (n,) class of each example; every class has one at least.
        """
        chosen = features[landmarks]
        kernel = Kernel(weights, chosen, chosen)
        counts = np.bincount(labels)
        typical = float(counts.mean())
        prior = kernel.prior()
        ridge = Ridge.fit(prior, _blocks(kernel, features, labels, _noise(counts[labels], typical)))
        near = min(len(landmarks), _VARIANCE_LANDMARKS)
        return cls(
            kernel,
            ridge,
            labels[landmarks],
            counts,
            typical,
            _coefficients(ridge, counts),
            _inverse(prior[:near, :near]),
        )

    @property
    def classes(self) -> int:
        return len(self.counts)

    # -- scores -----------------------------------------------------------------------------

    def score(self, regressors: np.ndarray, classes: np.ndarray | None = None) -> np.ndarray:
        """(n, c), of all classes or of some: about 1 for the right class, 0 for the others."""
        coefficients = self.coefficients if classes is None else self.coefficients[classes]
        counts = self.counts if classes is None else self.counts[classes]
        scores: np.ndarray = regressors @ coefficients.T + gain(counts) * unknown(self.classes)
        return scores

    def score_left_out(self, regressors: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """(n, c) what examples of these classes would score had they not been learnt from."""
        lent, offset = gain(self.counts), unknown(self.classes)
        targets = np.eye(self.classes, dtype=np.float32)[labels] - offset
        predicted = regressors @ (self.coefficients / lent[:, None]).T
        noise = _noise(self.counts[labels], self.typical)
        leverage = self.ridge.leverage(regressors, noise)
        scores: np.ndarray = (without_own(predicted, targets, leverage) + offset) * lent
        return scores

    def score_without(self, regressors: np.ndarray, label: int) -> np.ndarray:
        """(n, c) what examples of a class would score had none of its examples been learnt from;
        the class itself comes last."""
        lent, offset = gain(self.counts), unknown(self.classes)
        targets = np.full((len(regressors), self.classes), -offset)
        targets[:, label] += 1
        predicted = regressors @ (self.coefficients / lent[:, None]).T
        noise = _noise(np.full(len(regressors), self.counts[label]), self.typical)
        scores = (self.ridge.without_block(regressors, predicted, targets, noise) + offset) * lent
        scores[:, label] = -np.inf
        found: np.ndarray = scores
        return found

    def sure(self, scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Scores as they count for the scope: what a single example lacks may be lent to it to win
        over others, but is no sign that the prompt is known."""
        lent = gain(self.counts)[classes]
        sure: np.ndarray = np.minimum(scores / lent * np.minimum(lent, _SURE_GAIN), 1)
        return sure

    def surest(self, scores: np.ndarray) -> np.ndarray:
        """(n,) of the best of the scores (n, c)."""
        return self.sure(scores.max(axis=1), scores.argmax(axis=1))

    # -- how well a text is known -----------------------------------------------------------

    def signals(self, features: Features) -> np.ndarray:
        """(n, 3) best score, likeness of the nearest example, posterior variance."""
        regressors = self.kernel.regressors(features)
        likeness = regressors[:, : len(self.landmarks)]
        allowed = np.ones(self.classes, dtype=bool)
        best = self.surest(self.score(regressors))
        return np.column_stack([best, self.familiarity(features, likeness, allowed)])

    def familiarity(
        self, features: Features, likeness: np.ndarray, allowed: np.ndarray
    ) -> np.ndarray:
        """(n, 2) likeness of the nearest example of an allowed class, posterior variance.

        Args:
            likeness: (n, m) of the same texts to the landmarks.
        """
        nearest = _nearest(likeness, self.landmarks, allowed)
        if self.late is not None:
            kernel, labels = self.late
            nearest = np.maximum(nearest, _nearest(kernel(features), labels, allowed))
        part = likeness[:, : len(self.variance)]
        variance = 1 - np.einsum("ij,ij->i", part @ self.variance, part)
        return np.column_stack([nearest, variance])

    def variance_left_out(self, places: np.ndarray) -> np.ndarray:
        """(n,) posterior variance of some of the first landmarks had they not been learnt from:
        1 / Q_ii is what each has without itself."""
        found: np.ndarray = 1 / np.diag(self.variance)[places] - NOISE
        return found

    def variance_without(self, likeness: np.ndarray, label: int) -> np.ndarray:
        """(n,) posterior variance at likenesses (n, m), had the landmarks of a class not been
        learnt from."""
        own = np.flatnonzero(self.landmarks[: len(self.variance)] == label)
        part = likeness[:, : len(self.variance)].copy()
        part[:, own] = 0
        reach = part @ self.variance
        less = np.linalg.solve(self.variance[np.ix_(own, own)], reach[:, own].T)
        explained = np.einsum("ij,ij->i", reach, part) - np.einsum("ij,ji->i", reach[:, own], less)
        found: np.ndarray = 1 - explained
        return found

    # -- changes ----------------------------------------------------------------------------

    def with_classes(self, features: Features, labels: np.ndarray) -> "Regression":
        """With more classes, numbered on from the last. What the others had learnt follows
        exactly; the landmarks stay as they are."""
        added = np.bincount(labels - self.classes)
        targets = np.zeros((len(labels), self.classes + len(added)))
        targets[np.arange(len(labels)), labels] = 1
        noise = _noise(added[labels - self.classes], self.typical)
        ridge = self.ridge.with_examples(Examples(self.kernel.regressors(features), targets, noise))
        counts = np.concatenate([self.counts, added])
        return replace(
            self,
            ridge=ridge,
            counts=counts,
            coefficients=_coefficients(ridge, counts),
            late=self._later(features, labels),
        )

    def without_class(self, label: int, features: Features) -> "Regression":
        """Without a class whose examples these are; the classes after it move up by one."""
        targets = np.zeros((len(features), self.classes))
        targets[:, label] = 1
        noise = -_noise(np.full(len(features), len(features)), self.typical)
        examples = Examples(self.kernel.regressors(features), targets, noise)
        ridge = self.ridge.with_examples(examples).without_target(label)
        counts = np.delete(self.counts, label)
        return replace(
            self,
            ridge=ridge,
            landmarks=_moved_up(self.landmarks, label),
            counts=counts,
            coefficients=_coefficients(ridge, counts),
            late=self.late and (self.late[0], _moved_up(self.late[1], label)),
        )

    def _later(self, features: Features, labels: np.ndarray) -> tuple[Kernel, np.ndarray]:
        if self.late is None:
            return self.kernel.of(features), labels
        kernel, known = self.late
        both = Features.stack([kernel.landmarks, features])
        return self.kernel.of(both), np.concatenate([known, labels])


def gain(counts: np.ndarray) -> np.ndarray:
    """(c,) what the scores of classes with so many examples are multiplied by."""
    found: np.ndarray = (1 + _FEW_EXAMPLES / counts).astype(np.float32)
    return found


def unknown(classes: int) -> float:
    """Score of a text that is like no other: any of the classes, or none, alike."""
    return 1 / (classes + 1)


def _noise(counts: np.ndarray, typical: float) -> np.ndarray:
    """(n,) of examples by how many their classes have: a class speaks with the same total weight,
    however many examples it has."""
    noise: np.ndarray = NOISE * counts / typical
    return noise


def _coefficients(ridge: Ridge, counts: np.ndarray) -> np.ndarray:
    """(c, m) float32, a class in one piece of memory."""
    solved = ridge.coefficients(unknown(len(counts))).T
    return np.ascontiguousarray(solved * gain(counts)[:, None], dtype=np.float32)


def _blocks(
    kernel: Kernel, features: Features, labels: np.ndarray, noise: np.ndarray
) -> Iterator[Examples]:
    classes = int(labels.max()) + 1
    for start in range(0, len(labels), _BLOCK):
        rows = slice(start, start + _BLOCK)
        here = labels[rows]
        ones = np.ones(len(here))
        targets = scipy.sparse.csr_matrix(
            (ones, (np.arange(len(here)), here)), shape=(len(here), classes)
        )
        yield Examples(kernel.regressors(features[rows]), targets, noise[rows])


def _inverse(between: np.ndarray) -> np.ndarray:
    system = between.astype(np.float64)
    system[np.diag_indices_from(system)] += NOISE
    inverse: np.ndarray = scipy.linalg.inv(system, assume_a="pos").astype(np.float32)
    return inverse


def _nearest(likeness: np.ndarray, labels: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """(n,) likeness of the nearest landmark of an allowed class; 0 when there is none."""
    usable = (labels >= 0) & allowed[labels]
    nearest: np.ndarray = likeness[:, usable].max(axis=1, initial=0.0)
    return nearest


def _moved_up(labels: np.ndarray, gone: int) -> np.ndarray:
    moved = labels - (labels > gone)
    moved[labels == gone] = -1
    return moved
