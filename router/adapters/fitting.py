"""How catalogues are learnt, and with which weights of the kernel.

The weights come from examples that are scored as if they had not been learnt from, in closed form
(`ridge.py`), so that none need be held back.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg

from cluster.settings import RouterSettings
from router.adapters.calibration.confidence import best_log_loss
from router.adapters.calibration.left_out import MIN_LEFT_OUT
from router.adapters.features import Features, Kernel, KernelWeights
from router.adapters.regression import NOISE, gain, unknown

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
    if (np.bincount(labels)[labels] > 1).sum() < MIN_LEFT_OUT:
        grams = np.median(features.wording.sum(axis=1).A1)
        is_told = are_prompts and features.states is not None and grams >= _FEW_GRAMS
        return _OF_PROMPTS if is_told else _OF_DESCRIPTIONS
    default = start or KernelWeights()
    rows = few_of_some(labels, rng)
    _, own = np.unique(labels[rows], return_inverse=True)
    counts = np.bincount(own)
    scored = counts[own] > 1
    if len(counts) < 2 or scored.sum() < 8 * MIN_LEFT_OUT:
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
