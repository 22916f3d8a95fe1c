"""From scores to probabilities.

softmax(T * score), with T by the likelihood of left-out examples (Guo et al., ICML 2017), is right
in the mean, and too sure or not sure enough of the first in between, for one number also shapes how
likely all the others are. So the probability p of the first is mapped once more, by what share of
the left-out examples it was right for:

    logit q = a log p - b log(1 - p) + c

(beta calibration: Kull et al., AISTATS 2017, eq. 5), with a prior at a = b = 1, c = 0, where q = p.
To c is added 1 / n where classes have n examples: a left-out example lacks one of them, a prompt
does not. The other probabilities follow: where q < p all are drawn towards alike, where q > p
towards a softmax that is much sharper. So their order stays, and equals stay equal.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_softmax, softmax

# Where nothing can be left out to fit it to: with the weights of the kernel, as `fitting.py` has
# them for such catalogues.
_DEFAULT_TEMPERATURE, _WITH_READER = 10.0, 6.0
# Nothing is surer, and nothing less sure.
_LEAST = 1e-6
# Times the temperature: where equals are not first, all but one to the first.
_SHARPER = 6.0
# What departing from q = p must be worth: the log-likelihood of two examples at a distance of one.
_PRIOR = 2.0
_AS_IT_IS = (1.0, 1.0, 0.0)
# In log-odds, over their number; by 3, 5, 10 and 20 examples of CLINC150's intents (validation
# prompts), MMLU's subjects and AGIEval's exams (halves of the cards).
_ONE_MORE = 1.0


@dataclass(frozen=True)
class Confidence:
    """Attributes: shape: a, b and c of the module's formula."""

    temperature: float
    shape: tuple[float, float, float] = _AS_IT_IS

    @classmethod
    def untaught(cls, *, reads: bool) -> "Confidence":
        """Of a catalogue without examples to leave out; `reads`: what a reader says counts."""
        return cls(_WITH_READER if reads else _DEFAULT_TEMPERATURE)

    @classmethod
    def fit(
        cls, scores: np.ndarray, labels: np.ndarray, alone: np.ndarray, each: float
    ) -> "Confidence":
        """Learn from left-out examples.

        Args:
            scores: (n, c).
            labels: (n,) class of each.
            alone: (n,) whether its class can be told from the others: that one twin is as good as
                the other must not make the probabilities of everything else flat.
            each: examples of a class.
        """
        scores, labels = scores[alone], labels[alone]
        temperature = fit_temperature(scores, labels)
        first = softmax(temperature * scores, axis=1).max(axis=1)
        a, b, c = _fit_shape(first, scores.argmax(axis=1) == labels)
        return cls(temperature, (a, b, c + _ONE_MORE / each))

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """(n, c) probabilities of scores (n, c)."""
        plain: np.ndarray = softmax(self.temperature * scores, axis=1)
        classes = plain.shape[1]
        if self.shape == _AS_IT_IS or classes == 1:
            return plain
        best = plain.argmax(axis=1)[:, None]
        first = np.take_along_axis(plain, best, axis=1)
        wanted = np.maximum(expit(_terms(first[:, 0]) @ self.shape), 1 / classes)[:, None]
        sharp: np.ndarray = softmax(_SHARPER * self.temperature * scores, axis=1)
        towards = np.where(wanted <= first, 1 / classes, sharp)
        gap = np.take_along_axis(towards, best, axis=1) - first
        way = (wanted - first) / np.where(np.abs(gap) > _LEAST, gap, np.inf)
        mixed: np.ndarray = plain + way.clip(0, 1) * (towards - plain)
        return mixed


def fit_temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """The sharpness at which the probabilities of the right classes are largest."""

    def loss(log_temperature: float) -> float:
        return log_loss(np.exp(log_temperature) * scores, labels)

    return float(np.exp(minimize_scalar(loss, bounds=(0.0, 5.0), method="bounded").x))


def best_log_loss(scores: np.ndarray, labels: np.ndarray) -> float:
    """Of n examples (n, c), at the temperature that is best for them."""
    return log_loss(fit_temperature(scores, labels) * scores, labels)


def log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Of n examples, with Platt's targets (1999): n right ones do not prove that none is wrong."""
    logs = log_softmax(logits, axis=1)
    own = logs[np.arange(len(labels)), labels].mean()
    return -float(own + (logs.mean() - own) / (len(labels) + 2))


def _fit_shape(first: np.ndarray, right: np.ndarray) -> tuple[float, float, float]:
    terms, start = _terms(first), np.array(_AS_IT_IS)

    def loss(shape: np.ndarray) -> float:
        logit = terms @ shape
        likely = np.logaddexp(0, logit) - right * logit
        return float(likely.sum() + _PRIOR * ((shape - start) ** 2).sum())

    # Surer is never less likely: a and b are not negative.
    found = minimize(loss, start, bounds=[(0, None), (0, None), (None, None)], method="L-BFGS-B").x
    return float(found[0]), float(found[1]), float(found[2])


def _terms(first: np.ndarray) -> np.ndarray:
    """(n, 3) what a, b and c are multiplied by."""
    inside = np.clip(first, _LEAST, 1 - _LEAST)
    return np.column_stack([np.log(inside), -np.log1p(-inside), np.ones(len(inside))])
