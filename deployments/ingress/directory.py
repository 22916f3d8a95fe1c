"""What there is, for whoever asks: names and what they mean, listings, nothing of others."""

import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from adapter_store.catalogue import Catalogue
from adapter_store.search import Search
from adapter_store.telemetry import STEPS
from cluster import rollouts
from cluster.adapters import Adapter, AdapterKey, AdapterRef, BaseModelFacts, Viewer
from cluster.decisions import Decision, Prompt, Route
from cluster.errors import ModelNotFound, Unavailable
from cluster.members import Eyes
from deployments.ingress.views import model_card, row, summarise

AUTO = "auto"

# Of base models, by id.
Facts = Mapping[str, BaseModelFacts]


@dataclass(frozen=True)
class Chosen:
    """What answers a request, and who said so."""

    base_model: str
    adapter: AdapterRef | None
    route: Route
    decision: Decision | None = None
    prompt: Prompt | None = None

    @property
    def name(self) -> str:
        """Of the adapter, or of the base model."""
        return self.adapter.name if self.adapter else self.base_model


class Directory:
    """The names of this cluster.

    Args:
        base_models: those that replicas serve.
    """

    def __init__(self, catalogue: Catalogue, base_models: Collection[str]) -> None:
        self._catalogue = catalogue
        self.base_models = tuple(base_models)

    @property
    def position(self) -> str:
        """How far the store was followed."""
        return self._catalogue.position

    @property
    def is_stale(self) -> bool:
        """Whether the store does not answer."""
        return self._catalogue.is_stale

    def resolve(self, model: str, viewer: Viewer, key: str) -> Chosen:
        """What a client means by a model name; raises :class:`ModelNotFound`.

        Args:
            key: of the request: while a version is rolled out, the same key gets the same one.
        """
        if model in self.base_models:
            return Chosen(model, None, Route.EXPLICIT)
        name = self.meant(model, viewer)
        found = self._catalogue.find(name)
        if found is None or not viewer.may_see(found[0].card):
            raise ModelNotFound(model, self.names_like(name, viewer))
        adapter, version = found
        if adapter.card.base_model not in self.base_models:
            raise Unavailable(f"no replicas serve {adapter.card.base_model}, the base of {model}")
        if name == adapter.name:
            version = rollouts.pick(adapter, key)
        return Chosen(adapter.card.base_model, AdapterRef.of(adapter, version), Route.EXPLICIT)

    def meant(self, model: str, viewer: Viewer) -> str:
        """The name (or `name@version`) without the base model that may stand before it, as in
        `base:name` and `base|name`.

        A name that is an adapter's own comes first; one of no adapter is given back.
        """
        base = self._base_before(model)
        if base is None or self.seen(_plain(model), viewer):
            return model
        rest = model[len(base) + 1 :]
        adapter = self.seen(_plain(rest), viewer)
        return rest if adapter is not None and adapter.card.base_model == base else model

    def names_like(self, model: str, viewer: Viewer) -> list[str]:
        """Names that the client may have meant; versions, when the adapter is there."""
        if adapter := self.seen(_plain(model), viewer):
            return [adapter.key(version) for version in adapter.versions.values()]
        if base := self._base_before(model):
            before = model[: len(base) + 1]
            return [before + a.name for a in self._visible(viewer) if a.card.base_model == base]
        return [AUTO, *self.base_models, *self.visible(viewer)]

    def seen(self, name: str, viewer: Viewer) -> Adapter | None:
        """An adapter, for those who may know of it."""
        adapter = self._catalogue.adapters.get(name)
        return adapter if adapter is not None and viewer.may_see(adapter.card) else None

    def shows(self, name: str, viewer: Viewer) -> bool:
        """Whether a caller may know of an adapter."""
        return self.seen(name, viewer) is not None

    def visible(self, viewer: Viewer) -> list[str]:
        """The names of all adapters that a caller may know of."""
        return [a.name for a in self._visible(viewer)]

    def _visible(self, viewer: Viewer) -> Iterator[Adapter]:
        return (a for a in self._catalogue.adapters.values() if viewer.may_see(a.card))

    def _base_before(self, model: str) -> str | None:
        """The base model that stands before a name."""
        return next((b for b in self.base_models if model.startswith((f"{b}:", f"{b}|"))), None)

    def began(self, name: str) -> float:
        """Since when what is counted under a name is of this adapter (Unix time), as far as it may
        have been another's: numbers are never given twice, so the first version is the name's."""
        adapter = self._catalogue.adapters.get(name)
        if adapter is None or 1 in adapter.versions:
            return 0.0
        return min(version.created_at for version in adapter.versions.values())

    def counts(self, name: str, viewer: Viewer) -> bool:
        """Whether a caller may know what was counted under a name of late."""
        if viewer.sees_all:
            return True
        return self.shows(name, viewer) and self.began(name) < time.time() - STEPS[0].keep_s

    def holds(self, key: AdapterKey, viewer: Viewer) -> bool:
        """Whether a version is one of an adapter that a caller may know of."""
        adapter = self.seen(key.name, viewer)
        return adapter is not None and key in map(adapter.key, adapter.versions.values())

    def eyes(self, viewer: Viewer) -> Eyes:
        """What of other processes' reports a caller may see."""
        return Eyes(
            viewer.owner,
            lambda name: name in self.base_models or self.shows(name, viewer),
            lambda key: self.holds(key, viewer),
            lambda name: self.counts(name, viewer),
        )

    # -- listings ---------------------------------------------------------------------------

    def models(self, viewer: Viewer, facts: Facts) -> list[dict[str, Any]]:
        """Model cards: ``auto``, base models, adapters."""
        adapters = (a for a in self._catalogue.ordered() if viewer.may_see(a.card))
        named = [AUTO, *self.base_models]
        cards = [self._card(name, facts) for name in named]
        return cards + [_card_of(adapter, facts) for adapter in adapters]

    def model(self, model: str, viewer: Viewer, facts: Facts) -> dict[str, Any]:
        """One of them; raises :class:`ModelNotFound`."""
        if model == AUTO:
            return self._card(AUTO, facts)
        chosen = self.resolve(model, viewer, key="")
        if chosen.adapter is None:
            return self._card(model, facts)
        return _card_of(self._catalogue.adapters[chosen.adapter.name], facts) | {"id": model}

    def _card(self, model: str, facts: Facts) -> dict[str, Any]:
        """Of a base model; of `auto`, which is as old as the oldest of them."""
        known = [facts[base].created_at for base in self.base_models if base in facts]
        own = facts.get(model)
        return model_card(model, own.created_at if own else min(known, default=0), own)

    def page(
        self, search: Search, viewer: Viewer, *, after: str, limit: int
    ) -> tuple[list[dict[str, Any]], str | None]:
        """A page of adapters that match, ordered by name, and the cursor of the next."""
        found = (a for a in self._catalogue.ordered(after) if viewer.may_see(a.card))
        page = list(islice((a for a in found if search.matches(a)), limit + 1))
        following = page[limit - 1].name if len(page) > limit else None
        return [summarise(a) for a in page[:limit]], following

    def rows(self, viewer: Viewer) -> list[dict[str, Any]]:
        """Every adapter, as briefly as a table has it."""
        return [row(a) for a in self._catalogue.ordered() if viewer.may_see(a.card)]

    def adapter(self, name: str, viewer: Viewer) -> Adapter:
        """One adapter; raises :class:`ModelNotFound`."""
        adapter = self.seen(name, viewer)
        if adapter is None:
            raise ModelNotFound(name, self.visible(viewer), param="name")
        return adapter


def _card_of(adapter: Adapter, facts: Facts) -> dict[str, Any]:
    """It is as old as the version that its name means."""
    base = facts.get(adapter.card.base_model)
    return model_card(adapter.name, adapter.stable.created_at, base, adapter)


def _plain(model: str) -> str:
    """The name without a version."""
    return model.partition("@")[0]
