"""How well each adapter fits a prompt, and whether any does.

The choice: kernel ridge regression on the cards' texts (`features.py`, `regression.py`), one target
per adapter, then calibrated probabilities (`calibration/confidence.py`). Whether any is meant:
`scope.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import scipy.sparse

from router.adapters.calibration.confidence import Confidence
from router.adapters.calibration.left_out import Crossed, LeftOut, Report
from router.adapters.calibration.strangers import signals_of_strangers
from router.adapters.features import Features, Kernel, KernelWeights, total_of
from router.adapters.fitting import Learning, tuned
from router.adapters.regression import Regression
from router.adapters.scope import Scope

# Up to this many adapters all are scored; of more, a shortlist.
_EXACT_CLASSES = 1024
_SHORTLIST = 256


@dataclass(frozen=True)
class Verdict:
    """Of one prompt; its classes are a shortlist where there are many.

    Attributes:
        classes: (s,) that are allowed, best first.
        before: classes with a better score than the first that are not allowed, best first.
        scores: (s,) about 1 for the right class, 0 for the others.
        probabilities: (s,) that the class is the right one, given that one is.
        scope: probability that one is.
        likeness: (m,) to the landmarks.
        shares: of the likeness, what each kind of it makes, by the kernel's name; (m,) each.
    """

    classes: np.ndarray
    before: np.ndarray
    scores: np.ndarray
    probabilities: np.ndarray
    scope: float
    likeness: np.ndarray
    shares: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Ground:
    """An example that speaks for a class.

    Attributes:
        example: which of its class it is.
        share: of the score of the class.
        kernels: by name, the share of its likeness to the prompt that each makes, 0 to 1.
    """

    example: int
    share: float
    kernels: Mapping[str, float]


@dataclass(frozen=True)
class Classifier:
    """Never changed once made: `learn` makes one, `with_classes` and `without_class` make others.

    Attributes:
        centroids: (c, d) mean meaning of each class; of many, the nearest are scored.
        rows: (m,) which example of its class each landmark is.
        confidence: makes probabilities of scores.
    """

    regression: Regression
    centroids: np.ndarray
    rows: np.ndarray
    confidence: Confidence
    scope: Scope
    report: Report

    @classmethod
    def learn(
        cls,
        features: Features,
        labels: np.ndarray,
        background: Features,
        learning: Learning,
        start: KernelWeights | Crossed | None = None,
    ) -> "Learnt":
        """Learn a catalogue.

        Args:
            features: of n examples of c classes; every class has one at least.
            labels: (n,) class of each.
            background: of prompts that no adapter was made for.
            start: kernel weights from which better ones are looked for; or, where the encoder was
                tuned on the examples, what is known of them, with the weights.
        """
        rng = np.random.default_rng(0)
        order = rng.permutation(len(labels))
        landmarks = order[: learning.max_landmarks]
        if isinstance(start, Crossed):
            crossed, weights = start, start.weights
        else:
            crossed = None
            weights = tuned(features, labels, rng, start, are_prompts=learning.are_prompts)
        regression = Regression.fit(weights, landmarks, features, labels)
        outside = regression.signals(background)
        made = cls(
            regression,
            _centroids(features, labels),
            _place_in_class(labels)[landmarks],
            Confidence.untaught(reads=weights.reads),
            Scope.without_examples(outside),
            Report(len(labels), len(landmarks)),
        )
        left_out = LeftOut.of(regression, features, labels, order, crossed)
        if left_out is None:
            return Learnt(made, None)
        twins = left_out.twins()
        alone = ~np.isin(np.arange(regression.classes), [c for a, b, _ in twins for c in (a, b)])
        confidence = left_out.confidence(alone, regression.typical)
        calibrated = replace(
            made,
            confidence=confidence,
            scope=Scope.fit(
                left_out.signals,
                outside,
                signals_of_strangers(regression, features, labels, rng, alone),
                accept_rate=learning.accept_rate,
                in_scope_share=learning.in_scope_share,
            ),
            report=left_out.report(made.report, twins, confidence),
        )
        return Learnt(calibrated, left_out)

    @property
    def classes(self) -> int:
        return self.regression.classes

    @property
    def kernel(self) -> Kernel:
        return self.regression.kernel

    @property
    def coefficients(self) -> np.ndarray:
        """(c, m + d + h) that make scores of regressors."""
        return self.regression.coefficients

    # -- judging ----------------------------------------------------------------------------

    def judge(self, features: Features, seen: np.ndarray, allowed: np.ndarray) -> list[Verdict]:
        """Of each of n prompts.

        Args:
            seen: (c,) classes that exist for whoever asks.
            allowed: (c,) which of them may be chosen; one at least.
        """
        kernel = self.kernel
        parts = kernel.parts(features)
        kinds = parts.shares(kernel.weights)
        likeness = total_of(kinds)
        known = self.regression.familiarity(features, likeness, allowed)
        regressors = np.concatenate([likeness, kernel.coordinates(features)], axis=1)
        thinkable = self._shortlists(features, seen, allowed)
        verdicts = []
        for i, row in enumerate(zip(regressors, known, thinkable, strict=True)):
            shares = {name: kind[i] for name, kind in kinds.items()}
            verdicts.append(self._verdict(*row, shares, allowed))
        return verdicts

    def contributions(self, likeness: np.ndarray, label: int) -> np.ndarray:
        """(m,) what each landmark adds to the score of a class for one prompt (m,)."""
        added: np.ndarray = likeness * self.coefficients[label][: len(likeness)]
        return added

    def grounds(self, verdict: Verdict, label: int, most: int) -> list[Ground]:
        """The examples of a class that made most of its score, so many at most."""
        made = self.contributions(verdict.likeness, label)
        own = np.flatnonzero(self.regression.landmarks == label)
        top = own[np.argsort(-made[own])][:most]
        total = max(float(verdict.scores[verdict.classes == label][0]), 1e-6)
        return [
            Ground(
                int(self.rows[i]),
                float(made[i]) / total,
                {n: float(s[i] / verdict.likeness[i]) for n, s in verdict.shares.items()},
            )
            for i in top
            if made[i] > 0
        ]

    def _verdict(
        self,
        regressors: np.ndarray,
        known: np.ndarray,
        thinkable: np.ndarray,
        shares: Mapping[str, np.ndarray],
        allowed: np.ndarray,
    ) -> Verdict:
        classes, scores = self._ranked(regressors, thinkable)
        usable = allowed[classes]
        chosen = scores[usable]
        best = self.regression.sure(chosen[:1], classes[usable][:1])
        scope = float(self.scope(np.concatenate([best, known])))
        # Better known to a class that may not be chosen: so much less likely to be this one's.
        scope *= float(np.clip(chosen[0] / max(scores[0], 1e-6), 0, 1))
        return Verdict(
            classes[usable],
            classes[: int(usable.argmax())],
            chosen,
            self.confidence(chosen[None])[0],
            scope,
            regressors[: len(self.regression.landmarks)],
            shares,
        )

    def _shortlists(
        self, features: Features, seen: np.ndarray, allowed: np.ndarray
    ) -> list[np.ndarray]:
        """Per prompt the classes worth scoring: all, or of many the nearest by their centroids, of
        those that are seen and of those that are allowed."""
        if self.classes <= _EXACT_CLASSES:
            return [np.flatnonzero(seen)] * len(features)
        near = features.meaning @ self.centroids.T
        masks = [seen] if np.array_equal(seen, allowed) else [seen, allowed]
        lists = []
        for mask in masks:
            masked = np.where(mask, near, -np.inf)
            found = np.argpartition(-masked, _SHORTLIST, axis=1)[:, :_SHORTLIST]
            lists.append([row[mask[row]] for row in found])
        return [np.unique(np.concatenate(rows)) for rows in zip(*lists, strict=True)]

    def _ranked(self, regressors: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The classes, best first, and their scores."""
        if self.classes <= _EXACT_CLASSES:
            # All in one product: to pick rows would copy them.
            scores = self.regression.score(regressors[None])[0][classes]
        else:
            scores = self.regression.score(regressors[None], classes)[0]
        order = np.argsort(-scores, kind="stable")
        return classes[order], scores[order]

    # -- changes ----------------------------------------------------------------------------

    def with_classes(self, features: Features, labels: np.ndarray) -> "Classifier":
        """With more classes, numbered on from the last. What the others had learnt follows
        exactly; the landmarks, the calibration and the scope stay as they are."""
        added = _centroids(features, labels - self.classes)
        return replace(
            self,
            regression=self.regression.with_classes(features, labels),
            centroids=np.concatenate([self.centroids, added]),
        )

    def without_class(self, label: int, features: Features) -> "Classifier":
        """Without a class whose examples these are; the classes after it move up by one."""
        return replace(
            self,
            regression=self.regression.without_class(label, features),
            centroids=np.delete(self.centroids, label, axis=0),
        )


class Learnt(NamedTuple):
    """A classifier, and the examples that it was calibrated on; None with too few to leave out."""

    classifier: Classifier
    left_out: LeftOut | None


def _place_in_class(labels: np.ndarray) -> np.ndarray:
    """(n,) how many examples of the same class come before each."""
    places = np.empty(len(labels), dtype=int)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        places[members] = np.arange(len(members))
    return places


def _centroids(features: Features, labels: np.ndarray) -> np.ndarray:
    """(c, d) mean meaning of each class."""
    rows = np.arange(len(labels))
    members = scipy.sparse.csr_matrix((np.ones(len(rows)), (labels, rows)))
    means: np.ndarray = (members @ features.meaning / np.bincount(labels)[:, None]).astype(
        np.float32
    )
    return means
