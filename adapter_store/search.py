"""Finding adapters in the catalogue."""

from dataclasses import dataclass

from cluster.adapters import Adapter


@dataclass(frozen=True)
class Search:
    """What a listing is narrowed to; fields left empty narrow nothing."""

    text: str = ""
    base_model: str = ""
    tag: str = ""
    owner: str = ""

    def matches(self, adapter: Adapter) -> bool:
        card = adapter.card
        return (
            self.base_model in ("", card.base_model)
            and self.owner in ("", card.owner)
            and (not self.tag or self.tag in card.tags)
            and all(word in _haystack(adapter) for word in self.text.lower().split())
        )


def _haystack(adapter: Adapter) -> str:
    card = adapter.card
    return " ".join((card.name, card.description, *card.tags)).lower()
