"""Which adapter a prompt needs, learnt from the cards in the store."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from cluster.settings import RouterSettings
from cluster.state import OPERATOR, Adapter, Candidate, Card, Decision, Route, Value, Viewer
from router.classifier import Classifier, Features
from router.encoder import Encoder

SHOWN_CANDIDATES = 5
_EVERYDAY = Path(__file__).parent / "data" / "everyday_prompts.txt"


class Constraints(Value):
    """What the caller demands of the choice; every one is hard."""

    adapters: tuple[str, ...] | None = Field(None, description="choose among these only")
    exclude: tuple[str, ...] = Field((), description="never choose these")
    base_model: str | None = Field(None, description="only adapters of this base model")
    tags: tuple[str, ...] = Field((), description="only adapters that carry all of these tags")
    min_confidence: float | None = Field(None, ge=0, le=1, description="abstain below this")
    viewer: Viewer = Field(OPERATOR, description="who asks; set by the endpoint, not by callers")

    def allow(self, card: Card) -> bool:
        return (
            (self.adapters is None or card.name in self.adapters)
            and card.name not in self.exclude
            and self.base_model in (None, card.base_model)
            and set(self.tags) <= set(card.tags)
            and self.viewer.may_see(card)
        )


@dataclass(frozen=True)
class _Index:
    """One state of the catalogue, ready to answer."""

    adapters: tuple[Adapter, ...]
    classifier: Classifier | None


class PromptRouter:
    """Chooses an adapter per prompt, or none.

    `update` builds a new index beside the one in use; `choose` always sees a whole one.
    """

    def __init__(self, encoder: Encoder, settings: RouterSettings) -> None:
        self._encoder = encoder
        self._settings = settings
        self._features: dict[tuple[str, ...], Features] = {}
        self._background = self._embed(tuple(_EVERYDAY.read_text().splitlines()))
        self._index = _Index((), None)

    def update(self, adapters: Mapping[str, Adapter]) -> None:
        """Learn the cards anew; only texts not seen before are embedded."""
        known = tuple(a for _, a in sorted(adapters.items()) if _texts(a.card))
        if _lessons(known) == _lessons(self._index.adapters):
            # Versions and aliases moved, or tags: nothing of it is learnt from.
            self._index = _Index(known, self._index.classifier)
            return
        self._forget_all_but(_texts(a.card) for a in known)
        self._index = _Index(known, self._fit(known) if known else None)

    def choose(self, texts: list[str], constraints: Constraints) -> list[Decision]:
        """One decision per text."""
        index = self._index
        if index.classifier is None:
            return [_nothing("no adapter has a card to learn from") for _ in texts]
        allowed = np.array([constraints.allow(a.card) for a in index.adapters])
        if not allowed.any():
            return [_nothing("the constraints leave no adapter") for _ in texts]
        scores, confidences = index.classifier.scores(Features.of(texts, self._encoder))
        threshold = constraints.min_confidence
        if threshold is None:
            threshold = index.classifier.threshold
        return [
            _decide(index.adapters, row, float(confidence), allowed, threshold)
            for row, confidence in zip(scores, confidences, strict=True)
        ]

    def _fit(self, adapters: tuple[Adapter, ...]) -> Classifier:
        parts = [self._background, *(self._embed(_texts(a.card)) for a in adapters)]
        labels = np.repeat(np.arange(len(parts)), [len(p.meaning) for p in parts])
        return Classifier(
            Features.stack(parts), labels, len(parts), accept_rate=self._settings.accept_rate
        )

    def _embed(self, texts: tuple[str, ...]) -> Features:
        if texts not in self._features:
            self._features[texts] = Features.of(list(texts), self._encoder)
        return self._features[texts]

    def _forget_all_but(self, kept: Iterable[tuple[str, ...]]) -> None:
        kept = set(kept)
        self._features = {t: f for t, f in self._features.items() if t in kept}


def _lessons(adapters: tuple[Adapter, ...]) -> list[tuple[str, tuple[str, ...]]]:
    return [(a.name, _texts(a.card)) for a in adapters]


def _texts(card: Card) -> tuple[str, ...]:
    return card.examples or ((card.description,) if card.description else ())


def _nothing(reason: str) -> Decision:
    return Decision(adapter=None, confidence=0, route=Route.AUTO, reason=reason)


def _decide(
    adapters: tuple[Adapter, ...],
    scores: np.ndarray,
    confidence: float,
    allowed: np.ndarray,
    threshold: float,
) -> Decision:
    """The best allowed adapter, or the base model when it is not convincing enough."""
    of_adapters = scores[1:]
    order = [i for i in np.argsort(-of_adapters) if allowed[i]]
    best, unconstrained = order[0], int(of_adapters.argmax())
    if best != unconstrained:
        # The confidence speaks of the best of all; what the constraints left is less sure.
        confidence *= max(0.0, min(1.0, of_adapters[best] / max(of_adapters[unconstrained], 1e-6)))
    candidates = [
        Candidate(adapter=adapters[i].name, score=round(float(of_adapters[i]), 4))
        for i in order[:SHOWN_CANDIDATES]
    ]
    candidates.append(Candidate(adapter=None, score=round(float(scores[0]), 4)))
    candidates.sort(key=lambda c: -c.score)
    abstains = confidence < threshold
    verb = "below" if abstains else "reaches"
    chosen = adapters[best]
    return Decision(
        adapter=None if abstains else chosen.name,
        version=None if abstains else chosen.stable.number,
        confidence=round(confidence, 4),
        route=Route.AUTO,
        reason=f"{chosen.name}: confidence {confidence:.2f} {verb} the threshold {threshold:.2f}",
        candidates=tuple(candidates),
    )
