"""The cards of the store, learnt: one state of the catalogue at a time, ready to answer."""

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from cluster.adapters import Adapter, Card, Viewer
from cluster.settings import RouterSettings
from router.adapters.cascade import Cascade
from router.adapters.constraints import Constraints
from router.adapters.features import FeatureExtractor, Features
from router.adapters.fitting import Learning
from router.adapters.training.trained import HeldOut

# Up to this many texts learning anew takes well under a second; of more, changes are worked in.
_LEARN_ANEW = 500
# More texts at once are not worked in: that takes a matrix of their number squared.
_WORKED_IN = 1000
# Sets of adapters that are remembered, by the constraints that leave them.
_MASKS = 64

Texts = tuple[str, ...]


@dataclass(frozen=True)
class Index:
    """One state of the catalogue, ready to answer.

    Attributes:
        adapters: by class of the classifiers.
        silent: adapters whose cards say nothing to learn from.
        cascade: None without adapters.
        position: of the store, when it was made.
        is_whole: the classifiers were fitted to just these cards; else changes were worked in.
    """

    adapters: tuple[Adapter, ...] = ()
    silent: tuple[Adapter, ...] = ()
    cascade: Cascade | None = None
    position: str = ""
    is_whole: bool = True
    masks: dict[Constraints, np.ndarray] = field(default_factory=dict)

    def allowed(self, constraints: Constraints) -> np.ndarray:
        """(c,) whether a class may be chosen; kept, for ten thousand cards take milliseconds."""
        key = constraints.on_cards
        if not (key.viewer.sees_all or key.viewer.owner in self._owners):
            # Whoever has nothing private here sees the same.
            key = key.model_copy(update={"viewer": Viewer()})
        known = self.masks.get(key)
        if known is not None:
            return known
        found = [key.allows(a.card) for a in self.adapters]
        if len(self.masks) > _MASKS:
            self.masks.clear()
        return self.masks.setdefault(key, np.array(found, dtype=bool))

    @cached_property
    def by_name(self) -> dict[str, Adapter]:
        """All that may be chosen, with a card or without."""
        return {a.name: a for a in (*self.adapters, *self.silent)}

    @cached_property
    def _owners(self) -> frozenset[str]:
        """Tenants that have private adapters."""
        cards = (a.card for a in self.adapters)
        return frozenset(card.owner for card in cards if card.visibility == "private")


class CardLearner:
    """Keeps an index of the cards; only texts not seen before are embedded.

    A new index is built beside the one in use, so that whoever reads `index` always has a whole
    one. Safe for threads.

    Args:
        background: of prompts that no adapter was made for.
        held_out: what examples were like before the encoder was tuned on them, if it was.
    """

    def __init__(
        self,
        extract: FeatureExtractor,
        settings: RouterSettings,
        background: Features,
        held_out: HeldOut | None = None,
    ) -> None:
        self.index = Index()
        self._extract = extract
        self._settings = settings
        self._background = background
        self._held_out = held_out
        self._features: dict[Texts, Features] = {}
        self._changing = threading.Lock()

    def update(self, adapters: Mapping[str, Adapter], position: str) -> None:
        """Learn the cards of the store at a position."""
        known = {name: a for name, a in sorted(adapters.items()) if texts_of(a.card)}
        silent = tuple(a for name, a in sorted(adapters.items()) if name not in known)
        with self._changing:
            index = self._updated(self.index, known, position)
            self.index = replace(index, silent=silent)
            kept = {texts_of(a.card) for a in known.values()}
            self._features = {t: f for t, f in self._features.items() if t in kept}

    def refresh(self) -> None:
        """Learn everything anew when changes were worked in: takes seconds, changes nothing that
        was learnt meanwhile."""
        with self._changing:
            before = self.index
            learnt = [self._embed(texts_of(a.card)) for a in before.adapters]
        if before.is_whole:
            return
        fresh = replace(before, cascade=self._fit(learnt, before.adapters), is_whole=True, masks={})
        with self._changing:
            now = self.index
            known = {a.name: a for a in now.adapters}
            self.index = replace(self._updated(fresh, known, now.position), silent=now.silent)

    def _updated(self, index: Index, known: dict[str, Adapter], position: str) -> Index:
        """The index for other cards, by the way that is quicker."""
        before = {a.name: texts_of(a.card) for a in index.adapters}
        wanted = {name: texts_of(a.card) for name, a in known.items()}
        if before == wanted:
            # Versions and aliases moved, or tags: nothing of it is learnt from.
            adapters = tuple(known[a.name] for a in index.adapters)
            return replace(index, adapters=adapters, position=position, masks={})
        gone = {n: texts for n, texts in before.items() if wanted.get(n) != texts}
        new = {n: texts for n, texts in wanted.items() if before.get(n) != texts}
        size = sum(len(texts) for texts in wanted.values())
        changed = sum(len(texts) for texts in (*gone.values(), *new.values()))
        if index.cascade is None or size <= _LEARN_ANEW or changed > _WORKED_IN:
            learnt = [self._embed(texts) for texts in wanted.values()]
            cascade = self._fit(learnt, known.values()) if learnt else None
            return Index(tuple(known.values()), cascade=cascade, position=position)
        cascade = self._worked_in(index.cascade, list(before), gone, new)
        adapters = tuple(known[n] for n in (*(n for n in before if n not in gone), *new))
        return Index(adapters, cascade=cascade, position=position, is_whole=False)

    def _worked_in(
        self,
        cascade: Cascade,
        names: list[str],
        gone: Mapping[str, Texts],
        new: Mapping[str, Texts],
    ) -> Cascade:
        """The classifiers of the adapters of these names, less those that are gone; new ones come
        after the rest."""
        for name, texts in gone.items():
            label = names.index(name)
            cascade = cascade.without_class(label, self._embed(texts))
            names.pop(label)
        if not new:
            return cascade
        learnt = [self._embed(texts) for texts in new.values()]
        return cascade.with_classes(Features.stack(learnt), len(names) + _labels(learnt))

    def _fit(self, parts: list[Features], adapters: Collection[Adapter]) -> Cascade:
        are_prompts = not any(a.card.description for a in adapters)
        learning = Learning.of(self._settings, are_prompts=are_prompts)
        cards = {a.name: texts_of(a.card) for a in adapters}
        crossed = self._held_out.among(cards) if self._held_out else ()
        examples, labels = Features.stack(parts), _labels(parts)
        return Cascade.fit(examples, labels, self._background, learning, crossed)

    def _embed(self, texts: Texts) -> Features:
        if texts not in self._features:
            self._features[texts] = self._extract(list(texts)).compact()
        return self._features[texts]


def texts_of(card: Card) -> Texts:
    """What is learnt of a card; the same text twice says nothing more."""
    told = (*((card.description,) if card.description else ()), *card.examples)
    return tuple(dict.fromkeys(told))


def _labels(parts: list[Features]) -> np.ndarray:
    """(n,) of all the texts of all the parts, which part each is of."""
    return np.repeat(np.arange(len(parts)), [len(p) for p in parts])
