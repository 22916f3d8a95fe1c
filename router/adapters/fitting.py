"""What is learnt from mistakes: the kernel's weights, the temperature, what is reported.

All of it comes from examples that are scored as if they had not been learnt from, in closed form
(`ridge.py`), so that none need be held back.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import scipy.linalg
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from router.adapters.features import Features, Kernel, KernelWeights
from router.adapters.regression import NOISE, Regression, gain, unknown

# Fewer examples that can be left out say nothing.
_MIN_LEFT_OUT = 3
# Mistakes are counted on this many examples at most.
_SAMPLE = 2000
_TUNING_CLASSES, _TUNING_EXAMPLES = 40, 15
# Each weight of the kernel is tried so many times smaller and larger, as long as that helps.
_TUNING_STEPS = (0.5, 2.0)
_TUNING_ROUNDS = 4
# Where it begins, of what the reader says: at first that counts nothing.
_FIRST_SAY = 0.5
# A hair's breadth is luck, as a share of the loss: a few hundred examples say no more. Of a loss
# that is nearly nothing, no share says anything.
_LUCK = 0.02
# No weight goes further from its default, or from the first say.
_FURTHEST = 8.0
# Of a catalogue that has nothing to learn them from, such as descriptions alone: fitted as the
# scope's defaults are. Such a text describes prompts rather than being one: it shares their
# meaning, less their form and wording.
_OF_DESCRIPTIONS = KernelWeights(meaning=2.0, form=0.2, wording=0.05, linear_form=0.05)
# Of the softmax, where nothing can be left out to fit it to.
DEFAULT_TEMPERATURE = 10.0
# Adapters that take each other's prompts this often (a coin would: half) cannot be told apart.
_TWINS = 0.35
# Likeness of a text and its copy, up to rounding. The same text on another card would be found
# again: of a prompt there is no copy.
_SAME = 0.999

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
        scores: (n, c).
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
        if len(held) < _MIN_LEFT_OUT:
            return None
        rows = order[held]
        own, regressors = labels[rows], made.kernel.regressors(features[rows])
        scores = made.score_left_out(regressors, own)
        blind = regressors[:, : len(made.landmarks)].copy()
        is_landmark = held < len(made.landmarks)
        blind[is_landmark, held[is_landmark]] = 0
        blind[blind > _SAME] = 0
        everything = np.ones(made.classes, dtype=bool)
        known = made.familiarity(features[rows], blind, everything)
        # Examples that the variance is made from.
        inside = held < len(made.variance)
        known[inside, 1] = made.variance_left_out(held[inside])
        return cls(scores, np.column_stack([made.surest(scores), known]), own)

    @classmethod
    def from_others(cls, made: Regression, features: Features, labels: np.ndarray) -> "LeftOut":
        """Of examples that a regression was not fitted to."""
        regressors = made.kernel.regressors(features)
        scores, blind = made.score(regressors), regressors[:, : len(made.landmarks)].copy()
        blind[blind > _SAME] = 0
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

    def temperature(self, twins: Iterable[Pair]) -> float:
        """The sharpness of the softmax by all but the twins: that one is as good as the other must
        not make the probabilities of everything else flat."""
        alone = ~np.isin(self.labels, [c for a, b, _ in twins for c in (a, b)])
        if alone.sum() < _MIN_LEFT_OUT:
            return _fit_temperature(self.scores, self.labels)
        return _fit_temperature(self.scores[alone], self.labels[alone])

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

    def report(self, blank: Report, twins: tuple[Pair, ...], temperature: float) -> Report:
        """The report with what these say."""
        probabilities = softmax(temperature * self.scores, axis=1)
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


def tuned(
    features: Features,
    labels: np.ndarray,
    rng: np.random.Generator,
    start: KernelWeights | None = None,
) -> KernelWeights:
    """The kernel weights under which left-out examples of some classes are best foretold.

    Args:
        start: where the search begins; the defaults, by default.
    """
    if (np.bincount(labels)[labels] > 1).sum() < _MIN_LEFT_OUT:
        return _OF_DESCRIPTIONS
    default = start or KernelWeights()
    rows = few_of_some(labels, rng)
    _, own = np.unique(labels[rows], return_inverse=True)
    counts = np.bincount(own)
    scored = counts[own] > 1
    if len(counts) < 2 or scored.sum() < 8 * _MIN_LEFT_OUT:
        return default
    chosen = features[rows]
    kernel = Kernel(default, chosen, chosen)
    parts, places = kernel.parts(chosen), kernel.coordinates(chosen)
    targets = np.eye(len(counts))[own] - unknown(len(counts))
    beside = places @ places.T + np.diag(NOISE * counts[own] / counts.mean())

    def loss(weights: KernelWeights) -> float:
        inverse = scipy.linalg.inv(parts.combine(weights) + beside, assume_a="pos")
        left_out = targets - (inverse @ targets) / np.diag(inverse)[:, None]
        scores = (left_out + unknown(len(counts))) * gain(counts)
        return best_log_loss(scores[scored], own[scored])

    return searched(default, loss, reads=chosen.states is not None)


def searched(
    start: KernelWeights, loss: Callable[[KernelWeights], float], *, reads: bool
) -> KernelWeights:
    """Each weight made smaller and larger by steps, as long as the loss falls.

    Args:
        reads: whether there is something that the reader says.
    """
    names = ("meaning", "form", "wording") + (("mean", "last") if reads else ())
    best, lowest = start, loss(start)
    for _ in range(_TUNING_ROUNDS):
        before = best
        for name in names:
            for weights in _neighbours(best, name):
                found = loss(weights)
                if found < (1 - _LUCK) * lowest - _LUCK / 10:
                    best, lowest = weights, found
        if best == before:
            break
    return best


def _neighbours(weights: KernelWeights, name: str) -> list[KernelWeights]:
    """The same with one weight a step smaller, and a step larger."""
    now, first = getattr(weights, name), getattr(KernelWeights(), name) or _FIRST_SAY
    tried = [now * step for step in _TUNING_STEPS] if now else [first]
    inside = [v for v in tried if first / _FURTHEST <= v <= first * _FURTHEST]
    return [replace(weights, **{name: value}) for value in inside]


def few_of_some(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows of at most so many classes, and at most so many of each."""
    some = rng.permutation(np.unique(labels))[:_TUNING_CLASSES]
    rows = [rng.permutation(np.flatnonzero(labels == c))[:_TUNING_EXAMPLES] for c in some]
    return np.concatenate(rows)


def _fit_temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """The sharpness at which the probabilities of the right classes are largest."""

    def loss(log_temperature: float) -> float:
        return _log_loss(np.exp(log_temperature) * scores, labels)

    return float(np.exp(minimize_scalar(loss, bounds=(0.0, 5.0), method="bounded").x))


def best_log_loss(scores: np.ndarray, labels: np.ndarray) -> float:
    """Of n examples (n, c), at the temperature that is best for them."""
    return _log_loss(_fit_temperature(scores, labels) * scores, labels)


def _log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Of n examples, with Platt's targets (1999): n right ones do not prove that none is wrong."""
    logs = log_softmax(logits, axis=1)
    own = logs[np.arange(len(labels)), labels].mean()
    return -float(own + (logs.mean() - own) / (len(labels) + 2))
