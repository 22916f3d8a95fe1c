"""Examples as they would be seen had they not been learnt from, and what that says of a catalogue.

In closed form (`ridge.py`), so that none need be held back; or, where the encoder was tuned on
them, by folds (`training/crossing.py`).
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from router.adapters.calibration.confidence import Confidence
from router.adapters.features import Features, KernelWeights
from router.adapters.regression import SAME, Regression, gain

# Fewer examples that can be left out say nothing.
MIN_LEFT_OUT = 3
# Mistakes are counted on this many examples at most.
_SAMPLE = 2000
# Adapters that take each other's prompts this often (a coin would: half) cannot be told apart.
_TWINS = 0.35

# Two classes that cannot be told apart, and how often they are confused.
Pair = tuple[int, int, float]


@dataclass(frozen=True)
class Report:
    """What leaving out one example at a time says of a catalogue.

    Attributes:
        top1: share of the examples whose own adapter comes first; None with nothing to leave out.
        ece: expected calibration error of the probabilities, 15 bins.
        twins: pairs of classes that cannot be told apart, and how often they are confused.
    """

    examples: int
    landmarks: int
    top1: float | None = None
    ece: float | None = None
    twins: tuple[Pair, ...] = ()


@dataclass(frozen=True)
class LeftOut:
    """Examples as they would be seen had they not been learnt from.

    Attributes:
        scores: (n, c), as those of prompts to a catalogue that lacks the example.
        signals: (n, 3) as :meth:`Regression.signals` gives them.
        labels: (n,) class of each.
    """

    scores: np.ndarray
    signals: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(
        cls,
        made: Regression,
        features: Features,
        labels: np.ndarray,
        order: np.ndarray,
        crossed: "Crossed | None" = None,
    ) -> "LeftOut | None":
        """Of some of the examples that a regression was fitted to; None when too few of them have
        others of their class.

        Args:
            order: (n,) of the examples; the first of it are the landmarks.
            crossed: what is known already of those that the encoder was trained on.
        """
        if crossed is None:
            return cls._in_closed_form(made, features, labels, order, made.counts[labels] > 1)
        fresh = made.counts[labels] > 1
        fresh[crossed.rows] = False
        more = cls._in_closed_form(made, features, labels, order, fresh)
        return cls.joined([crossed.left_out, more] if more else [crossed.left_out])

    @classmethod
    def joined(cls, parts: "list[LeftOut]") -> "LeftOut":
        """Of several, one behind the other."""
        return cls(
            np.concatenate([p.scores for p in parts]),
            np.concatenate([p.signals for p in parts]),
            np.concatenate([p.labels for p in parts]),
        )

    @classmethod
    def _in_closed_form(
        cls,
        made: Regression,
        features: Features,
        labels: np.ndarray,
        order: np.ndarray,
        usable: np.ndarray,
    ) -> "LeftOut | None":
        # From the end: what is no landmark comes nearest to a prompt never seen.
        held = np.flatnonzero(usable[order])[-_SAMPLE:]
        if len(held) < MIN_LEFT_OUT:
            return None
        rows = order[held]
        own, regressors = labels[rows], made.kernel.regressors(features[rows])
        scores = made.score_left_out(regressors, own)
        blind = regressors[:, : len(made.landmarks)].copy()
        is_landmark = held < len(made.landmarks)
        blind[is_landmark, held[is_landmark]] = 0
        blind[blind > SAME] = 0
        everything = np.ones(made.classes, dtype=bool)
        known = made.familiarity(features[rows], blind, everything)
        # Examples that the variance is made from.
        inside = held < len(made.variance)
        known[inside, 1] = made.variance_left_out(held[inside])
        signals = np.column_stack([made.surest(scores), known])
        # Its class is left with one example less, whose scores would be lent more.
        counts = made.counts[own]
        scores[np.arange(len(own)), own] *= gain(counts - 1) / gain(counts)
        return cls(scores, signals, own)

    @classmethod
    def from_others(cls, made: Regression, features: Features, labels: np.ndarray) -> "LeftOut":
        """Of examples that a regression was not fitted to."""
        regressors = made.kernel.regressors(features)
        scores, blind = made.score(regressors), regressors[:, : len(made.landmarks)].copy()
        blind[blind > SAME] = 0
        known = made.familiarity(features, blind, np.ones(made.classes, dtype=bool))
        return cls(scores, np.column_stack([made.surest(scores), known]), labels)

    @property
    def best(self) -> np.ndarray:
        """(n,) the class that comes first."""
        found: np.ndarray = self.scores.argmax(axis=1)
        return found

    @property
    def is_right(self) -> np.ndarray:
        """(n,) whether that is its own."""
        found: np.ndarray = self.best == self.labels
        return found

    def confidence(self, alone: np.ndarray, each: float) -> Confidence:
        """What makes probabilities of scores.

        Args:
            alone: (c,) whether a class has no twin; those that have one do not shape it.
            each: examples of a class.
        """
        chosen = alone[self.labels]
        if chosen.sum() < MIN_LEFT_OUT:
            chosen[:] = True
        return Confidence.fit(self.scores, self.labels, chosen, each)

    def twins(self) -> tuple[Pair, ...]:
        """Pairs whose examples, left out, go to the other as often as to their own."""
        wrong = self.scores.argmax(axis=1)
        seen = np.bincount(self.labels, minlength=self.scores.shape[1])
        pairs: dict[tuple[int, int], int] = {}
        for own, taken in zip(self.labels.tolist(), wrong.tolist(), strict=True):
            if own != taken:
                pair = (min(own, taken), max(own, taken))
                pairs[pair] = pairs.get(pair, 0) + 1
        shares = ((a, b, n / (seen[a] + seen[b])) for (a, b), n in sorted(pairs.items()) if n > 3)
        return tuple((a, b, round(float(s), 3)) for a, b, s in shares if s >= _TWINS)

    def report(self, blank: Report, twins: tuple[Pair, ...], confidence: Confidence) -> Report:
        """The report with what these say."""
        probabilities = confidence(self.scores)
        return replace(
            blank,
            top1=float(self.is_right.mean()),
            ece=calibration_error(probabilities.max(axis=1), self.is_right),
            twins=twins,
        )


@dataclass(frozen=True)
class Crossed:
    """What examples are like under encoders that were not trained on them (`training/crossing.py`).

    An encoder that was has drawn each to the others of its class: left out of the regression alone,
    they seem better known than any prompt will be.

    Attributes:
        rows: (n,) which of the examples.
        weights: of the kernel under which they were best foretold.
    """

    rows: np.ndarray
    weights: KernelWeights
    left_out: LeftOut


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Naeini et al., AAAI 2015): mean gap between the two, by bins."""
    edges = np.linspace(0, 1, bins + 1)
    inside = [(confidence > low) & (confidence <= high) for low, high in pairwise(edges)]
    gaps = [m.mean() * abs(confidence[m].mean() - right[m].mean()) for m in inside if m.any()]
    return float(sum(gaps))
