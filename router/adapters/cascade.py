"""Two classifiers over the same cards: one that is quick, and one that the reader tells more.

The quick one decides where its word would stand. That is learnt from the examples, scored by both
without themselves (`fitting.py`): the least margin above which the full classifier would choose
another class for next to no example.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from router.adapters.classifier import Classifier, Learnt, Verdict
from router.adapters.features import Features, KernelWeights
from router.adapters.fitting import Crossed, LeftOut

# Share of the prompts for which the full classifier may choose otherwise, unasked: half of what may
# be lost, for what a few hundred examples foretell of so few is off by as much.
_CHANGED = 0.0015


@dataclass(frozen=True)
class Gate:
    """Where the quick classifier's word is final.

    Attributes:
        margin: between the probabilities of the best two; a larger one settles it.
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
        may_change = _CHANGED * len(by_quick.labels)
        margins = _margins(softmax(quick.temperature * by_quick.scores, axis=1))
        scope = quick.scope(by_quick.signals)
        accepted = full.scope(by_full.signals) >= full.scope.threshold
        changed = by_quick.best != by_full.best
        made = cls(
            # Of numbers between 0 and 1, what is nearest to 1 and to 0.
            margin=1 - _nearest(1 - margins[changed], may_change, default=1.0),
            foreign=_nearest(scope[accepted], may_change, default=0.0),
            asks=0.0,
        )
        asked = ~made._settles(margins, scope, quick.scope.threshold)
        return replace(made, asks=float(asked.mean()))

    def settles(self, verdict: Verdict, threshold: float) -> bool:
        """Whether what the quick classifier says of a prompt is final."""
        margins = _margins(verdict.probabilities[None, :2])
        return bool(self._settles(margins, np.array([verdict.scope]), threshold)[0])

    def _settles(self, margins: np.ndarray, scope: np.ndarray, threshold: float) -> np.ndarray:
        is_clear = (margins > self.margin) & (scope >= threshold)
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
        *,
        accept_rate: float,
        in_scope_share: float,
        max_landmarks: int,
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
            return Classifier.learn(
                seen,
                labels,
                beside,
                accept_rate=accept_rate,
                in_scope_share=in_scope_share,
                max_landmarks=max_landmarks,
                start=start,
            )

        first = crossed[0] if crossed else None
        quick, by_quick = learn(features.unread, background.unread, first)
        if features.states is None or by_quick is None or len(crossed) == 1:
            return cls(quick)
        full, by_full = learn(features, background, crossed[1] if crossed else quick.kernel.weights)
        if by_full is None or not full.kernel.weights.reads:
            return cls(quick)
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
        threshold = self.quick.scope.threshold
        unclear = [i for i, v in enumerate(verdicts) if not self.gate.settles(v, threshold)]
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


def _margins(probabilities: np.ndarray) -> np.ndarray:
    """(n,) difference between the best two of (n, c); of one alone it is its own."""
    two = -np.sort(-probabilities, axis=1)[:, :2]
    margins: np.ndarray = two[:, 0] - (two[:, 1] if two.shape[1] > 1 else 0)
    return margins


def _nearest(gaps: np.ndarray, most: float, default: float) -> float:
    """The gap below which so many more of the kind of these are to be expected, and no more.

    Where that is less than one, they are taken to thin out evenly towards 0: what is told with a
    probability that is right is wrong the less often, the surer it is.
    """
    if len(gaps) < max(most, 1):
        return default
    place = max(int(most), 1)
    return float(np.sort(gaps)[place - 1] * np.sqrt(min(most, 1.0)))
