"""Whether an adapter answers prompts like one better than the base model, and how sure that is.

A prompt's neighbours are the prompts of known outcome that are at least so much like it (Nadaraya
1964, with a window), and less alike ones only where there are too few of those. With s the scores
of a candidate on n of them, each counted by its likeness, how well it does is the mean of a Beta
posterior under Jeffreys' prior,

    q = (Σ s + 1/2) / (n + 1),     variance q (1 - q) / (n + 2),

for scores that vary as right and wrong answers do, or less. Where both have answered the same
prompts, the differences d of their scores are told apart from luck with fewer of them:

    gain = Σ d / (n + 1),          variance ((Σ d² + 1) / (n + 1) - gain²) / (n + 2),

which is the same with one more prompt, half won and half lost. An adapter helps where gain less z
standard deviations is above 0; z is that of the wanted confidence, shared among all comparisons
that are made (Bonferroni), so that the luckiest of many adapters is not taken for a good one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from router.adapters.features import Features, Kernel, KernelWeights

# Likeness from which on a prompt's outcomes speak for another, the nearest evidence first: everyday
# prompts are seldom above the lower one with prompts of any task, and most prompts of one task of
# BBH are above the upper one, with hardly any of two tasks.
_WINDOWS = (0.35, 0.25)
# Of each candidate; with fewer, normal bounds are not to be believed.
FEWEST = 5
# Prompts that others are compared with, the newest.
_MOST = 2048


@dataclass(frozen=True)
class Gain:
    """By how much an adapter answers prompts like one better than a base model.

    Attributes:
        adapter, base: predicted quality of each, 0 to 1.
        mean, spread: of their difference, and its standard deviation.
        tests: comparisons that were made.
    """

    adapter: float
    base: float
    mean: float
    spread: float
    tests: int = 1

    @property
    def confidence(self) -> float:
        """Probability that there is any, at least."""
        doubt = float(norm.sf(self.mean / self.spread))
        return max(0.0, 1 - self.tests * doubt)


@dataclass(frozen=True)
class Neighbours:
    """Of one prompt, those within a window.

    Attributes:
        scores: by candidate, (n,) of the neighbours; NaN where it was not tried.
        weights: (n,) how much each counts.
        whole: (n,) how much of a prompt each is, 1 at most.
    """

    scores: Mapping[str, np.ndarray]
    weights: np.ndarray
    whole: np.ndarray

    def knows(self, name: str) -> bool:
        """Whether a candidate was tried often enough here."""
        return name in self.scores and self._count(name) >= FEWEST

    def gain(self, adapter: str, base: str, compared: int) -> Gain:
        """Of two that are known, one of so many gains that are looked at."""
        # Each is told twice: on all prompts, and on those that both have answered.
        return self._gain(adapter, base, 2 * compared)

    def _gain(self, adapter: str, base: str, tests: int) -> Gain:
        (ours, our_variance), (theirs, their_variance) = (self._mean(n) for n in (adapter, base))
        apart = Gain(ours, theirs, ours - theirs, (our_variance + their_variance) ** 0.5, tests)
        difference = self.scores[adapter] - self.scores[base]
        if self._effective(~np.isnan(difference)) < FEWEST:
            return apart
        paired = Gain(ours, theirs, *self._paired(difference), tests)
        return max(apart, paired, key=lambda gain: gain.mean / gain.spread)

    def _mean(self, name: str) -> tuple[float, float]:
        scores = self.scores[name]
        count, share = self._count(name), self._average(scores)
        quality = (share * count + 0.5) / (count + 1)
        return quality, quality * (1 - quality) / (count + 2)

    def _paired(self, difference: np.ndarray) -> tuple[float, float]:
        count = self._effective(~np.isnan(difference))
        mean = self._average(difference) * count / (count + 1)
        square = (self._average(difference**2) * count + 1) / (count + 1)
        return mean, float(((square - mean**2) / (count + 2)) ** 0.5)

    def _count(self, name: str) -> float:
        return self._effective(~np.isnan(self.scores[name]))

    def _effective(self, known: np.ndarray) -> float:
        """Prompts that these are worth: as many as would vary as much with equal weights (Kish
        1965), and no more than they are in whole."""
        weights = self.weights[known]
        if not weights.any():
            return 0.0
        return float(min(weights.sum() ** 2 / (weights**2).sum(), self.whole[known].sum()))

    def _average(self, values: np.ndarray) -> float:
        known = ~np.isnan(values)
        return float(np.average(values[known], weights=self.weights[known]))


@dataclass(frozen=True)
class Surroundings:
    """Of one prompt.

    Attributes:
        rings: its neighbours, by window, the narrowest first.
    """

    rings: tuple[Neighbours, ...]

    @property
    def candidates(self) -> Iterable[str]:
        return self.rings[-1].scores

    def gains(self, adapters: Sequence[str], base: str) -> dict[str, Gain]:
        """Of those adapters of which enough is known here, beside a base model."""
        informed = [ring for ring in self.rings if ring.knows(base)]
        nearest = {
            name: ring
            for ring in reversed(informed)
            for name in adapters
            if name != base and ring.knows(name)
        }
        return {name: ring.gain(name, base, len(nearest)) for name, ring in nearest.items()}


@dataclass(frozen=True)
class Nearby:
    """Prompts of known outcome, to find a prompt's neighbours among.

    Attributes:
        scores: by candidate, (m,); NaN where it was not tried.
        weights: (m,) how much each prompt counts.
    """

    kernel: Kernel
    scores: Mapping[str, np.ndarray]
    weights: np.ndarray

    @classmethod
    def of(
        cls,
        features: Features,
        scores: Mapping[str, np.ndarray],
        weights: np.ndarray,
        background: Features,
    ) -> "Nearby":
        """Of n prompts, the oldest first.

        Args:
            background: prompts of all kinds, beside which those of one task are alike.
        """
        newest = features[-_MOST:]
        kernel = Kernel(KernelWeights(), Features.stack([background, newest]), newest)
        kept = {name: found[-_MOST:] for name, found in scores.items()}
        return cls(kernel, kept, weights[-_MOST:])

    def __call__(self, features: Features) -> list[Surroundings]:
        """Of each of n prompts."""
        return [
            Surroundings(tuple(self._within(window, likeness) for window in _WINDOWS))
            for likeness in self.kernel(features)
        ]

    def _within(self, window: float, likeness: np.ndarray) -> Neighbours:
        rows = np.flatnonzero(likeness >= window)
        counted = likeness[rows] * self.weights[rows]
        some = {name: found[rows] for name, found in self.scores.items()}
        return Neighbours(some, counted, np.minimum(self.weights[rows], 1))
