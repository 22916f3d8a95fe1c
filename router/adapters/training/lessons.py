"""What an encoder is tuned on: the cards' texts, and prompts that were answered well."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from cluster.decisions import Outcome
from cluster.errors import Conflict
from router.adapters.experts.lessons import lessons_of

# Of fewer classes with two texts each there is nothing to be told apart.
LEAST_CLASSES = 4
# Of large catalogues some texts of each card: more take longer and teach little.
_MOST_TEXTS, _EACH = 20_000, 4
# A prompt that was answered so well was for the adapter that answered it.
_GOOD = 0.5


@dataclass(frozen=True)
class Lessons:
    """n texts of c adapters; first those of the cards, then those of feedback.

    Attributes:
        names: (c,) adapters.
        labels: (n,) of which each is.
        of_cards: how many are of cards: the others only teach, and are never scored.
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]
    labels: np.ndarray
    of_cards: int

    @classmethod
    def of(
        cls, cards: Mapping[str, tuple[str, ...]], outcomes: Iterable[Outcome], *, shared: bool
    ) -> "Lessons":
        """Of the cards' texts by adapter, and of feedback.

        Args:
            shared: whether what one tenant says teaches the choices of all
                (`router.shared_feedback`); else only what is nobody's does.

        Raises:
            Conflict: there is nothing to learn from.
        """
        names = tuple(name for name, texts in sorted(cards.items()) if texts)
        most = max(_EACH, _MOST_TEXTS // max(len(names), 1))
        told = [(text, i) for i, name in enumerate(names) for text in cards[name][:most]]
        of_cards, known = len(told), set(told)
        for outcome in lessons_of(outcomes, shared=shared)[""].outcomes:
            if outcome.score > _GOOD and outcome.candidate in names:
                pair = (outcome.input, names.index(outcome.candidate))
                if pair not in known:
                    known.add(pair)
                    told.append(pair)
        labels = np.array([label for _, label in told], dtype=int)
        several = int((np.bincount(labels[:of_cards], minlength=1) > 1).sum())
        if several < LEAST_CLASSES:
            raise Conflict(
                f"there is nothing to learn from: {several} adapters have two texts on their cards "
                f"(description and examples), {LEAST_CLASSES} are needed; give them examples"
            )
        return cls(names, tuple(text for text, _ in told), labels, of_cards)

    @property
    def digest(self) -> str:
        """Of all that is learnt from."""
        whole = hashlib.sha256()
        for text, label in zip(self.texts, self.labels, strict=True):
            whole.update(key_of(self.names[label], text).encode())
        return whole.hexdigest()

    @property
    def keys(self) -> tuple[str, ...]:
        """(of_cards,) as :func:`key_of` gives them."""
        pairs = zip(self.texts[: self.of_cards], self.labels, strict=False)
        return tuple(key_of(self.names[label], text) for text, label in pairs)


def key_of(name: str, text: str) -> str:
    """A text on the card of an adapter; tells neither."""
    return hashlib.blake2b(f"{name}\0{text}".encode(), digest_size=12).hexdigest()
