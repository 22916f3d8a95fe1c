"""Two classifiers over the same cards: one that is quick, and one that the reader tells more.

The quick one decides where its word would stand. That is learnt from the examples, scored by both
without themselves (`calibration/left_out.py`): the least margin above which the full classifier
would choose another class for no more prompts than may be, with a reserve for how few examples say
so (`calibration/bound.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit

from router.adapters.calibration.bound import below_all, sure_enough
from router.adapters.calibration.left_out import Crossed, LeftOut
from router.adapters.classifier import Classifier, Learnt, Verdict
from router.adapters.features import Features, KernelWeights
from router.adapters.fitting import Learning

# Share of the prompts for which the full classifier may choose otherwise, unasked.
_CHANGED = 0.003
_LEAST = 1e-6


@dataclass(frozen=True)
class Gate:
    """Where the quick classifier's word is final.

    Attributes:
        margin: between the scores of the best two, in log-odds; from this one on it is settled.
        foreign: below this probability of being in scope, a prompt is out of it for both.
        asks: share of the examples that the reader is asked about.
    """

    margin: float
    foreign: float
    asks: float

    @classmethod
    def fit(
        cls, quick: Classifier, full: Classifier, by_quick: LeftOut, by_full: LeftOut
    ) -> "Gate":
        """Learn from the same examples, left out by both."""
        margins = quick.confidence.temperature * _margins(by_quick.scores)
        scope = quick.scope(by_quick.signals)
        accepted = full.scope(by_full.signals) >= full.scope.threshold
        made = cls(
            margin=sure_enough(margins, by_quick.best != by_full.best, _CHANGED),
            foreign=float(
                expit(below_all(logit(scope[accepted].clip(_LEAST, 1 - _LEAST)), _CHANGED))
            ),
            asks=0.0,
        )
        asked = ~made._settles(margins, scope, quick.scope.threshold)
        return replace(made, asks=float(asked.mean()))

    @classmethod
    def closed(cls) -> "Gate":
        """Where nothing tells when the quick one is right: the reader is always asked."""
        return cls(margin=np.inf, foreign=0.0, asks=1.0)

    def settles(self, verdict: Verdict, by: Classifier) -> bool:
        """Whether what the quick classifier says of a prompt is final."""
        margins = by.confidence.temperature * _margins(verdict.scores[None])
        scope = np.array([verdict.scope])
        return bool(self._settles(margins, scope, by.scope.threshold)[0])

    def _settles(self, margins: np.ndarray, scope: np.ndarray, threshold: float) -> np.ndarray:
        is_clear = (margins >= self.margin) & (scope >= threshold)
        found: np.ndarray = is_clear | (scope < min(self.foreign, threshold))
        return found


class Judged(NamedTuple):
    """What is known of one prompt, and by which of the classifiers."""

    verdict: Verdict
    by: Classifier
    has_read: bool


@dataclass(frozen=True)
class Cascade:
    """Never changed once made, as its classifiers.

    Attributes:
        full: None where the reader says nothing that the choice would be better for.
    """

    quick: Classifier
    full: Classifier | None = None
    gate: Gate | None = None

    @classmethod
    def fit(
        cls,
        features: Features,
        labels: np.ndarray,
        background: Features,
        learning: Learning,
        crossed: Sequence[Crossed] = (),
    ) -> "Cascade":
        """Learn a catalogue; the arguments are :meth:`Classifier.learn`'s.

        Args:
            crossed: for the quick classifier, then, where the reader said something that the choice
                was better for, for the full one. Of a trained encoder.
        """

        def learn(
            seen: Features, beside: Features, start: KernelWeights | Crossed | None
        ) -> Learnt:
            return Classifier.learn(seen, labels, beside, learning, start)

        first = crossed[0] if crossed else None
        quick, by_quick = learn(features.unread, background.unread, first)
        if features.states is None or len(crossed) == 1:
            return cls(quick)
        begin = quick.kernel.weights if by_quick else None
        full, by_full = learn(features, background, crossed[1] if crossed else begin)
        if not full.kernel.weights.reads:
            return cls(quick)
        if by_quick is None or by_full is None:
            return cls(quick, full, Gate.closed())
        return cls(quick, full, Gate.fit(quick, full, by_quick, by_full))

    @property
    def best(self) -> Classifier:
        """The one that knows most."""
        return self.full or self.quick

    def judge(
        self,
        features: Features,
        seen: np.ndarray,
        allowed: np.ndarray,
        read: Callable[[np.ndarray], Features],
    ) -> list[Judged]:
        """Of each of n prompts.

        Args:
            seen: (c,) classes that exist for whoever asks.
            allowed: (c,) which of them may be chosen; one at least.
            read: gives the features of some of the prompts with what the reader says of them.
        """
        verdicts = self.quick.judge(features, seen, allowed)
        judged = [Judged(verdict, self.quick, False) for verdict in verdicts]
        if self.full is None or self.gate is None:
            return judged
        unclear = [i for i, v in enumerate(verdicts) if not self.gate.settles(v, self.quick)]
        if unclear:
            again = self.full.judge(read(np.array(unclear)), seen, allowed)
            for i, verdict in zip(unclear, again, strict=True):
                judged[i] = Judged(verdict, self.full, True)
        return judged

    def with_classes(self, features: Features, labels: np.ndarray) -> "Cascade":
        """With more classes, numbered on from the last; the gate stays as it is."""
        return replace(
            self,
            quick=self.quick.with_classes(features.unread, labels),
            full=self.full and self.full.with_classes(features, labels),
        )

    def without_class(self, label: int, features: Features) -> "Cascade":
        """Without a class whose examples these are; the classes after it move up by one."""
        return replace(
            self,
            quick=self.quick.without_class(label, features.unread),
            full=self.full and self.full.without_class(label, features),
        )


def _margins(scores: np.ndarray) -> np.ndarray:
    """(n,) difference between the best two of (n, c); where there is but one, nothing is nearer."""
    if scores.shape[1] == 1:
        return np.full(len(scores), np.inf)
    two = -np.partition(-scores, 1, axis=1)[:, :2]
    margins: np.ndarray = two[:, 0] - two[:, 1]
    return margins
