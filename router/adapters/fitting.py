"""What is learnt from mistakes: the kernel's weights, who is like whom, what is reported.

All of it comes from examples that are scored as if they had not been learnt from, in closed form
(`ridge.py`), so that none need be held back.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import scipy.linalg

from cluster.settings import RouterSettings
from router.adapters.calibration.confidence import Confidence, fit_temperature, log_loss
from router.adapters.features import Features, Kernel, KernelWeights
from router.adapters.regression import NOISE, SAME, Regression, gain, unknown

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
# Of one prompt each, which a reader has read: fitted to one example of each of CLINC150's intents
# (validation prompts), MMLU's subjects and AGIEval's exams (halves of the cards), for the least
# mean log-loss. Prompts of intents are a line at most, and there what the reader says costs 4
# points of 64: texts of fewer n-grams count as such.
_OF_PROMPTS = KernelWeights(
    meaning=2.0, form=0.025, wording=0.5, mean=1.0, last=0.5, linear_form=0.1
)
_FEW_GRAMS = 200
# Adapters that take each other's prompts this often (a coin would: half) cannot be told apart.
_TWINS = 0.35

# Two classes that cannot be told apart, and how often they are confused.
Pair = tuple[int, int, float]


@dataclass(frozen=True)
class Learning:
    """How catalogues are learnt.

    Attributes:
        accept_rate: share of the examples that shall count as in scope.
        in_scope_share: share of the traffic that is expected to be.
        max_landmarks: time and memory grow with it: m^2 to learn, m per prompt.
        are_prompts: whether none of the texts is but a description.
    """

    accept_rate: float
    in_scope_share: float
    max_landmarks: int
    are_prompts: bool = False

    @classmethod
    def of(cls, settings: RouterSettings, *, are_prompts: bool = False) -> "Learning":
        """As the settings have it."""
        return cls(
            settings.accept_rate, settings.in_scope_share, settings.max_landmarks, are_prompts
        )


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
        cls, made: Regression, features: Features, labels: np.ndarray, order: np.ndarray
    ) -> "LeftOut | None":
        """Of some of the examples that a regression was fitted to; None when too few of them have
        others of their class.

        Args:
            order: (n,) of the examples; the first of it are the landmarks.
        """
        # From the end: what is no landmark comes nearest to a prompt never seen.
        held = np.flatnonzero(made.counts[labels[order]] > 1)[-_SAMPLE:]
        if len(held) < _MIN_LEFT_OUT:
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
        if chosen.sum() < _MIN_LEFT_OUT:
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
    *,
    are_prompts: bool = False,
) -> KernelWeights:
    """The kernel weights under which left-out examples of some classes are best foretold.

    Args:
        start: where the search begins; the defaults, by default.
        are_prompts: whether none of the texts is but a description.
    """
    if (np.bincount(labels)[labels] > 1).sum() < _MIN_LEFT_OUT:
        grams = np.median(features.wording.sum(axis=1).A1)
        is_told = are_prompts and features.states is not None and grams >= _FEW_GRAMS
        return _OF_PROMPTS if is_told else _OF_DESCRIPTIONS
    default = start or KernelWeights()
    rows = _few_of_some(labels, rng)
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
        temperature = fit_temperature(scores[scored], own[scored])
        return log_loss(temperature * scores[scored], own[scored])

    names = ("meaning", "form", "wording") + (() if chosen.states is None else ("mean", "last"))
    best, lowest = default, loss(default)
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


def _few_of_some(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows of at most so many classes, and at most so many of each."""
    some = rng.permutation(np.unique(labels))[:_TUNING_CLASSES]
    rows = [rng.permutation(np.flatnonzero(labels == c))[:_TUNING_EXAMPLES] for c in some]
    return np.concatenate(rows)
