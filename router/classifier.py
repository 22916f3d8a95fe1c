"""Adapter scores for a prompt: kernel ridge regression over meaning and wording, calibrated.

Two linear kernels are added: the inner product of sentence embeddings (meaning) and that of tf-idf
character and word n-grams (wording). Ridge has its leave-one-out predictions in closed form
(Rifkin & Lippert 2007: ``f_i - a_i / Q_ii`` with ``Q = (K + l I)^-1``), so confidence is calibrated
on scores that no example helped to make, without held-out data.
"""

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.sparse
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression

from router.encoder import Encoder

BACKGROUND = 0

_RIDGE = 0.3
_WORDING_WEIGHT = 0.5
# The confidence is fitted on balanced classes and on the hardest outsiders (neighbours whose own
# adapter is missing), so it understates what an ordinary prompt deserves.
_MAX_THRESHOLD = 0.3
# Counts only: signed hashes could cancel out to 0, which tf-idf has no logarithm for.
_HASHING = {"n_features": 2**18, "norm": None, "alternate_sign": False}
_CHARS = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 5), **_HASHING)
_WORDS = HashingVectorizer(analyzer="word", ngram_range=(1, 2), **_HASHING)


@dataclass(frozen=True)
class Features:
    """Of n texts: `meaning` (n, dimensions) dense, `wording` (n, hashes) sparse counts."""

    meaning: np.ndarray
    wording: scipy.sparse.csr_matrix

    @classmethod
    def of(cls, texts: list[str], encoder: Encoder) -> "Features":
        wording = scipy.sparse.hstack([_CHARS.transform(texts), _WORDS.transform(texts)])
        return cls(encoder.encode(texts), wording.tocsr())

    @classmethod
    def stack(cls, parts: list["Features"]) -> "Features":
        return cls(
            np.concatenate([p.meaning for p in parts]),
            scipy.sparse.vstack([p.wording for p in parts], format="csr"),
        )


class Classifier:
    """Fitted once and never changed: a new card makes a new classifier.

    Args:
        features: of the n examples.
        labels: (n,) class of each example; class 0 is the background (no adapter).
        classes: number of classes, the background included.
        accept_rate: share of in-scope prompts whose confidence shall reach `threshold`.
    """

    def __init__(
        self, features: Features, labels: np.ndarray, classes: int, *, accept_rate: float
    ) -> None:
        self._tfidf = TfidfTransformer(sublinear_tf=True).fit(features.wording)
        self._meaning = features.meaning
        self._wording = self._tfidf.transform(features.wording)
        self._labels = labels
        self._classes = classes
        targets = np.eye(classes)[labels]
        kernel = self._kernel(features)
        # A class speaks with the same total weight, however many examples it has.
        counts = np.bincount(labels, minlength=classes)
        noise = _RIDGE * counts[labels] / counts[labels].mean()
        inverse = scipy.linalg.inv(kernel + np.diag(noise))
        self._dual = inverse @ targets
        left_out = targets - self._dual / np.diag(inverse)[:, None]
        self._calibrate(left_out, kernel, accept_rate)

    def scores(self, features: Features) -> tuple[np.ndarray, np.ndarray]:
        """Scores (n, classes), about 1 for the right class and 0 for the others, and the
        confidence (n,) that the best adapter is right, between 0 and 1."""
        kernel = self._kernel(features)
        scores = kernel @ self._dual
        return scores, self._confidence(_signals(scores, self._nearest(kernel)))

    def _kernel(self, features: Features) -> np.ndarray:
        wording = self._tfidf.transform(features.wording) @ self._wording.T
        return features.meaning @ self._meaning.T + _WORDING_WEIGHT * wording.toarray()

    def _nearest(self, kernel: np.ndarray) -> np.ndarray:
        """Kernel value of the nearest example of each class: (n, classes)."""
        nearest = np.full((len(kernel), self._classes), -1.0)
        for label in range(self._classes):
            members = kernel[:, self._labels == label]
            if members.shape[1]:
                nearest[:, label] = members.max(axis=1)
        return nearest

    def _calibrate(self, left_out: np.ndarray, kernel: np.ndarray, accept_rate: float) -> None:
        """Learn when to believe a score: from examples scored without themselves (in scope), and
        scored as if their own class did not exist (out of scope), background always out."""
        nearest = self._nearest(kernel - 10 * np.eye(len(kernel)))
        rows = np.arange(len(left_out))
        is_background = self._labels == BACKGROUND
        inside = _signals(left_out[~is_background], nearest[~is_background])
        without_own, near_without = left_out.copy(), nearest.copy()
        own = rows[~is_background], self._labels[~is_background]
        without_own[own] = near_without[own] = -1.0
        outside = _signals(without_own, near_without)
        right = left_out[~is_background, 1:].argmax(axis=1) + 1 == self._labels[~is_background]
        signals = np.concatenate([inside, outside])
        truth = np.concatenate([right, np.zeros(len(outside), dtype=bool)])
        if truth.all() or not truth.any():
            self._trust, self.threshold = None, _MAX_THRESHOLD
            return
        self._trust = LogisticRegression(class_weight="balanced").fit(signals, truth)
        accepted = self._confidence(inside[right])
        self.threshold = float(min(_MAX_THRESHOLD, np.quantile(accepted, 1 - accept_rate)))

    def _confidence(self, signals: np.ndarray) -> np.ndarray:
        if self._trust is None:
            return np.clip(signals[:, 0], 0, 1)
        return self._trust.predict_proba(signals)[:, 1]


def _signals(scores: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """What tells in scope from out: (n, 3) best score, its lead, nearness of its best example."""
    adapters = scores[:, 1:]
    best = adapters.argmax(axis=1)
    rows = np.arange(len(scores))
    top = adapters[rows, best]
    others = scores.copy()
    others[rows, best + 1] = -np.inf
    return np.stack([top, top - others.max(axis=1), nearest[rows, best + 1]], axis=1)
