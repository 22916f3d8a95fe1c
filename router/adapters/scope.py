"""Whether any adapter was made for a prompt, and how sure that must be.

A logistic regression on three signals of how well the prompt is known (`regression.py`): the best
score, the likeness of the nearest example, and the posterior variance. Which of them count, and how
much, is learnt between the examples, each scored without itself, and two kinds of prompts out of
scope: a shipped list of everyday prompts, which are far, and examples scored without their whole
class, which are near (`calibration/strangers.py`). How sure that makes is learnt from the everyday
prompts alone: of a catalogue's own near misses nobody knows how often they will be asked.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

# Of a catalogue that has nothing to learn them from, such as descriptions alone: fitted to twelve
# catalogues of 3 to 100 descriptions of CLINC150's intents and its validation prompts.
_DEFAULT_WEIGHTS, _DEFAULT_THRESHOLD = np.array([2.8, 18.8, 0.0]), 0.3
# How alike prompts and descriptions are differs between catalogues; how many everyday prompts may
# seem in scope does not.
_EVERYDAY_IN_SCOPE = 0.3
# Everyday prompts that must be told apart before prompts may be less alike than the examples.
_EVERYDAY_OUT = 0.8
_NEARER = 1 / 3
# Of the signals, where more of each points.
_SIGNS, _NOWHERE = np.array([1, 1, -1]), np.zeros(3)


@dataclass(frozen=True)
class Scope:
    """Probability that a prompt is one that some adapter was made for: logistic in the signals.

    Attributes:
        threshold: below it a prompt is out of scope.
        auroc: how well it tells examples from everyday prompts; None when it was not fitted.
    """

    weights: np.ndarray
    intercept: float
    threshold: float
    auroc: float | None = None

    def __call__(self, signals: np.ndarray) -> np.ndarray:
        """(n,) of signals (n, 3)."""
        probability: np.ndarray = expit(signals @ self.weights + self.intercept)
        return probability

    @classmethod
    def fit(
        cls,
        inside: np.ndarray,
        outside: np.ndarray,
        near: np.ndarray,
        *,
        accept_rate: float,
        in_scope_share: float,
    ) -> "Scope":
        """Learn from signals of examples (n, 3), of everyday prompts (e, 3) and of examples without
        their class (s, 3).

        Args:
            accept_rate: share of the examples that shall count as in scope.
            in_scope_share: share of the traffic that is expected to be.
        """
        direction = _between(inside, [outside, near]) if len(near) else _NOWHERE
        if not direction.any():
            direction = _between(inside, [outside])
        scale, intercept = _odds(inside @ direction, outside @ direction)
        weights = scale * direction
        # Balanced classes were a half each; the traffic is not.
        intercept += float(logit(in_scope_share))
        known, unknown = inside @ weights + intercept, outside @ weights + intercept
        above = (known[:, None] > unknown).mean() + (known[:, None] == unknown).mean() / 2
        # As low as the examples need. Where most of the everyday prompts lie lower still, nearer to
        # them: prompts are less like the examples than these are like each other.
        least, most = np.quantile(known, 1 - accept_rate), np.quantile(unknown, _EVERYDAY_OUT)
        threshold = float(expit(min(least, most + _NEARER * (least - most))))
        return cls(weights, intercept, threshold, float(above))

    @classmethod
    def without_examples(cls, outside: np.ndarray) -> "Scope":
        """The default weights, with the odds at which a set share of everyday prompts (e, 3) is in
        scope."""
        evidence = np.quantile(outside @ _DEFAULT_WEIGHTS, 1 - _EVERYDAY_IN_SCOPE)
        intercept = float(logit(_DEFAULT_THRESHOLD) - evidence)
        return cls(_DEFAULT_WEIGHTS, intercept, _DEFAULT_THRESHOLD)


def _between(inside: np.ndarray, outside: list[np.ndarray]) -> np.ndarray:
    """(3,) the direction of signals that tells some from several kinds of others, of which each
    counts the same, and all of them as much as the first."""
    signals = np.concatenate([inside, *outside])
    shares = [0.5 / len(inside)] * len(inside)
    for kind in outside:
        shares += [0.5 / len(outside) / len(kind)] * len(kind)
    mean, spread = signals.mean(axis=0), signals.std(axis=0) + 1e-6
    truth = np.arange(len(signals)) < len(inside)
    weights = len(signals) * np.array(shares)
    fitted = LogisticRegression().fit((signals - mean) / spread, truth, sample_weight=weights)
    # Known better is never less in scope: where adapters are alike, near misses are, too, and what
    # little tells them from hits may point anywhere.
    direction: np.ndarray = np.where(fitted.coef_[0] * _SIGNS > 0, fitted.coef_[0], 0) / spread
    return direction


def _odds(inside: np.ndarray, outside: np.ndarray) -> tuple[float, float]:
    """What makes log-odds of (n,) and (e,) numbers, were both as many: slope and intercept."""
    both = np.concatenate([inside, outside])
    mean, spread = both.mean(), both.std() + 1e-6
    truth = np.arange(len(both)) < len(inside)
    fitted = LogisticRegression(class_weight="balanced").fit((both[:, None] - mean) / spread, truth)
    slope = float(fitted.coef_[0, 0] / spread)
    return slope, float(fitted.intercept_[0] - slope * mean)
