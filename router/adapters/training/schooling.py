"""A whole training: is the encoder better for it, by examples that it was not tuned on?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from router.adapters.calibration.confidence import best_log_loss
from router.adapters.calibration.left_out import Crossed
from router.adapters.encoder import SentenceEncoder
from router.adapters.features import FeatureExtractor, Features, KernelWeights
from router.adapters.reader import Reader
from router.adapters.training.contrast import Course, tuned
from router.adapters.training.crossing import Fold, crossed, dealt
from router.adapters.training.lessons import Lessons

# Told what is done, how many steps of how many are, and the last loss.
Tell = Callable[[str, int, int, float], None]


class Terms(Protocol):
    """Of the settings, what a training goes by."""

    @property
    def steps(self) -> int: ...
    @property
    def folds(self) -> int: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Marks:
    """What examples that were held out say of two encoders.

    Attributes:
        before, after: share whose own adapter comes first.
        error: standard error of the difference, example by example.
        loss_before, loss_after: log-loss, each at its best temperature.
    """

    examples: int
    before: float
    after: float
    error: float
    loss_before: float
    loss_after: float

    @property
    def gain(self) -> float:
        return self.after - self.before

    @property
    def is_better(self) -> bool:
        """By more than its standard error."""
        return self.gain > self.error

    @classmethod
    def of(cls, before: Crossed, after: Crossed) -> "Marks":
        """The same examples, in the same order."""
        old, new = before.left_out, after.left_out
        change = new.is_right.astype(float) - old.is_right
        return cls(
            len(change),
            float(old.is_right.mean()),
            float(new.is_right.mean()),
            float(change.std(ddof=1) / np.sqrt(len(change))),
            best_log_loss(old.scores, old.labels),
            best_log_loss(new.scores, new.labels),
        )


@dataclass(frozen=True)
class Schooled:
    """What a training came to.

    Attributes:
        encoder: None where it is no better.
        sides: what the examples are like to it: for the quick classifier, then for the full one.
    """

    marks: Marks
    encoder: SentenceEncoder | None
    sides: tuple[Crossed, ...]


def school(
    encoder: SentenceEncoder,
    reader: Reader | None,
    lessons: Lessons,
    terms: Terms,
    max_landmarks: int,
    tell: Tell,
) -> Schooled:
    """Tune an encoder on all but each fold, and, where that is better, on everything."""
    course = Course(terms.steps, terms.seed)
    labels = lessons.labels[: lessons.of_cards]
    texts = list(lessons.texts[: lessons.of_cards])
    held = [rows for rows in dealt(labels, terms.folds, terms.seed) if len(rows)]
    steps = course.steps_for(lessons.labels)
    total = steps * (len(held) + 1)
    tell("reading the cards", 0, total, 0.0)
    states = reader.read(texts) if reader else None

    def seen_by(who: SentenceEncoder) -> Features:
        return replace(FeatureExtractor(who).glance(texts), states=states)

    def teach(rows: np.ndarray, done: int, doing: str) -> SentenceEncoder:
        def stepped(step: int, of: int, loss: float) -> None:
            tell(doing, done * steps + step * steps // of, total, loss)

        taught = [lessons.texts[i] for i in rows]
        return tuned(encoder, taught, lessons.labels[rows], course, stepped)

    everything = np.arange(len(lessons.texts))
    plain = seen_by(encoder)
    before = _sides([Fold(rows, plain) for rows in held], labels, max_landmarks)
    folds = []
    for i, rows in enumerate(held):
        doing = f"without fold {i + 1} of {len(held)}"
        folds.append(Fold(rows, seen_by(teach(np.setdiff1d(everything, rows), i, doing))))
    after = _sides(folds, labels, max_landmarks)
    marks = Marks.of(before[-1], after[-1])
    if not marks.is_better:
        return Schooled(marks, None, ())
    return Schooled(marks, teach(everything, len(held), "on everything"), after)


def _sides(folds: Sequence[Fold], labels: np.ndarray, max_landmarks: int) -> tuple[Crossed, ...]:
    """Without the reader, and with it where it says something that the choice is better for."""
    quick = crossed([f.unread for f in folds], labels, max_landmarks, KernelWeights())
    if folds[0].features.states is None:
        return (quick,)
    full = crossed(folds, labels, max_landmarks, quick.weights)
    return (quick, full) if full.weights.reads else (quick,)
