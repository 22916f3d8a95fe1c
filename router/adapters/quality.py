"""How well each candidate will answer a prompt, kept up to date from what tenants say."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cluster.decisions import Outcome
from cluster.settings import RouterSettings
from router.adapters.experts.lessons import Lesson, Lessons, lessons_of, weighed_table
from router.adapters.experts.predictor import Belief, QualityPredictor, total
from router.adapters.features import FeatureExtractor, Features, Glances
from router.adapters.outcomes.nearby import Nearby, Surroundings

# Of scores between 0 and 1 none is farther from its mean on average.
_UNTRIED_DOUBT = 0.5
# Outcomes that a candidate's own must outnumber to count for more than those of all others.
_PRIOR_RECORDS = 4.0


@dataclass(frozen=True)
class Foretold:
    """What outcomes say of one prompt.

    Attributes:
        qualities: predicted, by candidate, of those that enough outcomes are known of.
        nearest: how alike the nearest prompt of known outcome is.
        doubts: standard deviations of the qualities.
        hints: what is believed of those with few outcomes.
    """

    qualities: Mapping[str, float] = field(default_factory=dict)
    nearest: float = 0.0
    doubts: Mapping[str, float] = field(default_factory=dict)
    hints: Mapping[str, Belief] = field(default_factory=dict)

    @property
    def typical(self) -> float:
        """What is expected of a candidate that nothing is known of."""
        known = [*self.qualities.values()] or [hint.mean for hint in self.hints.values()]
        return float(np.mean(known)) if known else 1.0

    def belief(self, name: str) -> Belief:
        """Of a candidate's quality, whether or not it was ever tried."""
        if name in self.qualities:
            return Belief(self.qualities[name], self.doubts.get(name, 0.0))
        return self.hints.get(name, Belief(self.typical, _UNTRIED_DOUBT))


@dataclass(frozen=True)
class _Learnt:
    """Of a tenant's lesson."""

    predictor: QualityPredictor | None
    hints: Mapping[str, Belief]
    nearby: Nearby | None


class OutcomeLearner:
    """Keeps a predictor of the outcomes for each tenant; only prompts not seen before are embedded,
    and only tenants whose outcomes have changed learn anew.

    Args:
        background: prompts of all kinds.
    """

    def __init__(
        self, extract: FeatureExtractor, settings: RouterSettings, background: Features
    ) -> None:
        self._extract = extract
        self._settings = settings
        self._background = background
        self._lessons: Lessons = {}
        self._learnt: dict[str, _Learnt] = {}
        self._features: dict[str, Features] = {}

    @property
    def candidates(self) -> tuple[str, ...]:
        """Those that outcomes are known of which teach everybody."""
        learnt = self._learnt.get("")
        return learnt.predictor.candidates if learnt and learnt.predictor else ()

    def learn(self, outcomes: Iterable[Outcome]) -> None:
        """Learn anew how well each candidate answers."""
        lessons = lessons_of(outcomes, shared=self._settings.shared_feedback)
        self._embed({o.input for lesson in lessons.values() for o in lesson.outcomes})
        for owner in self._lessons.keys() - lessons.keys():
            del self._lessons[owner], self._learnt[owner]
        # Each is used as soon as it is there, the one for everybody first.
        for owner, lesson in lessons.items():
            if self._lessons.get(owner) != lesson:
                self._learnt[owner] = self._fit(lesson)
                self._lessons[owner] = lesson

    def _embed(self, texts: set[str]) -> None:
        known = {text: f for text, f in self._features.items() if text in texts}
        if new := sorted(texts - known.keys()):
            read = self._extract.glance(new).compact()
            known |= {text: read[i : i + 1] for i, text in enumerate(new)}
        self._features = known

    def _fit(self, lesson: Lesson) -> _Learnt:
        texts, scores, weights = weighed_table(lesson, self._settings.feedback_half_life_s)
        if not texts:
            return _Learnt(None, {}, None)
        unread = Features.stack([self._features[text].unread for text in texts])
        predictor = QualityPredictor.fit(
            unread,
            scores,
            weights=weights,
            texts=texts,
            read=lambda rows: self._read([texts[i] for i in rows.tolist()]),
        )
        known = predictor.candidates if predictor else ()
        nearby = Nearby.of(unread, scores, weights, self._background)
        return _Learnt(predictor, _hints(scores, weights, known), nearby)

    def _read(self, texts: list[str]) -> Features:
        """What the reader says of prompts, too; it is asked once about each."""
        if new := [text for text in texts if self._features[text].states is None]:
            glanced = Features.stack([self._features[text] for text in new])
            read = self._extract.read(new, glanced).compact()
            self._features |= {text: read[i : i + 1] for i, text in enumerate(new)}
        return Features.stack([self._features[text] for text in texts])

    def foretell(self, prompts: Glances, owner: str = "") -> list[Foretold]:
        """Of each of n prompts of a tenant."""
        learnt = self._of(owner)
        count = len(prompts.glanced)
        if learnt is None or learnt.predictor is None:
            return [Foretold(hints=learnt.hints if learnt else {})] * count
        predictor = learnt.predictor
        features = prompts.read(np.arange(count)) if predictor.reads else prompts.glanced
        predicted, nearest = predictor.foretell(features, prompts.texts)
        explores = self._settings.explore != "none"
        doubts = predictor.doubts(features) if explores else np.zeros_like(predicted)
        names = predictor.candidates
        return [
            Foretold(_named(names, row), float(near), _named(names, unsure), learnt.hints)
            for row, near, unsure in zip(predicted, nearest, doubts, strict=True)
        ]

    def around(self, features: Features, owner: str = "") -> list[Surroundings]:
        """How well prompts like each of n of a tenant's were answered; empty where nothing is
        known."""
        learnt = self._of(owner)
        return learnt.nearby(features) if learnt and learnt.nearby else []

    def _of(self, owner: str) -> _Learnt | None:
        return self._learnt.get(owner if owner in self._learnt else "")


def _named(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return dict(zip(names, values.tolist(), strict=True))


def _hints(
    scores: Mapping[str, np.ndarray], weights: np.ndarray, known: Sequence[str]
) -> dict[str, Belief]:
    """What few outcomes say: means, drawn towards that of all (empirical Bayes: James & Stein)."""
    said = {name: total(weights, found) for name, found in scores.items()}
    sums = {name: float(np.nansum(found * weights)) for name, found in scores.items()}
    typical = sum(sums.values()) / max(sum(said.values()), 1e-9)
    return {
        name: Belief(
            (sums[name] + _PRIOR_RECORDS * typical) / (said[name] + _PRIOR_RECORDS),
            _UNTRIED_DOUBT / float(np.sqrt(1 + said[name])),
        )
        for name in scores.keys() - set(known)
    }
