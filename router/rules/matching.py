"""Whether a prompt and its request are what a rule is about."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cluster.decisions import Prompt
from cluster.foreign.patterns import search_of, searched
from cluster.rules import ANY, When
from router.adapters.constraints import all_of
from router.adapters.prompts import SHIPPED, ends_of, prompt_of, whole
from router.adapters.question.wrappers import Wrappers

# Of longer texts what lies between is not searched: the worst pattern takes 0.1 s for so much.
HEAD_CHARS = TAIL_CHARS = 20_000
# Written without blanks between words.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_is_unspaced = search_of(f"[{_UNSPACED}]")
_is_of_words = search_of(r"\w")

Test = Callable[["Text"], bool]


@dataclass(frozen=True)
class Text:
    """What is searched of a text, and how long it is in all."""

    searched: str
    chars: int

    @classmethod
    def of(cls, text: str) -> "Text":
        legible = text.encode("utf-8", "replace").decode()
        ends = ends_of(legible, HEAD_CHARS, TAIL_CHARS)
        return cls(unicodedata.normalize("NFC", ends), len(text))

    @cached_property
    def folded(self) -> str:
        """Without the case of letters, with single blanks."""
        return _folded(self.searched)


@dataclass(frozen=True)
class Asked:
    """A prompt as its client sent it, with the headers that came with it.

    Attributes:
        value: a string, a list of them, or messages.
        wrappers: what of it is not the user's.
    """

    value: Any
    headers: Mapping[str, str]
    wrappers: Wrappers = SHIPPED

    @cached_property
    def prompt(self) -> Prompt:
        """What the classifier reads of it."""
        return prompt_of(self.value, self.wrappers)

    @cached_property
    def question(self) -> Text:
        """What the user asked, as the classifier reads it."""
        return Text.of(self.prompt.text)

    @cached_property
    def turn(self) -> Text:
        return Text.of(self._whole[0])

    @cached_property
    def conversation(self) -> Text:
        return Text.of(self._whole[1])

    @cached_property
    def _whole(self) -> tuple[str, str]:
        return whole(self.value)


class Matcher:
    """The conditions of a rule, ready to be held against prompts."""

    def __init__(self, when: When) -> None:
        self._when = when
        self._tests = tuple(_tests(when))

    def matches(self, asked: Asked, tenant: str) -> bool:
        """Whether all conditions hold; what costs least is asked first."""
        when = self._when
        if when.tenant and tenant not in when.tenant:
            return False
        if not all(_has(asked.headers, name, value) for name, value in when.header.items()):
            return False
        text: Text = getattr(asked, when.within)
        if not (when.min_chars or 0) <= text.chars:
            return False
        if when.max_chars is not None and text.chars > when.max_chars:
            return False
        return all(test(text) for test in self._tests)


def _has(headers: Mapping[str, str], name: str, value: str) -> bool:
    """Any of several: one that a proxy adds counts, whatever the client has sent."""
    found = all_of(headers, name)
    return value in found or (value == ANY and bool(found))


def _tests(when: When) -> list[Test]:
    tests: list[Test] = []
    if when.script:
        tests.append(_written_in(when.script))
    if when.words:
        has_word = search_of(_any_of(when.words))
        tests.append(lambda text: has_word(text.folded))
    if when.pattern is not None:
        has_pattern = searched(when.pattern)
        tests.append(lambda text: has_pattern(text.searched))
    return tests


def _written_in(scripts: tuple[str, ...]) -> Test:
    of_script = search_of("[" + "".join(rf"\p{{Script={name}}}" for name in scripts) + "]")

    def is_written(text: Text) -> bool:
        letters = {c: n for c, n in Counter(text.searched).items() if c.isalpha()}
        of_these = sum(n for c, n in letters.items() if of_script(c))
        return 2 * of_these > sum(letters.values())

    return is_written


def _any_of(words: tuple[str, ...]) -> str:
    """A pattern for any of them, as a whole, in a text that is folded."""
    groups: dict[tuple[str, str], list[str]] = {}
    for word in map(_folded, words):
        edges = (
            rf"(?:^|[\W{_UNSPACED}])" if _has_edge(word[0]) else "",
            rf"(?:$|[\W{_UNSPACED}])" if _has_edge(word[-1]) else "",
        )
        groups.setdefault(edges, []).append(re.escape(word))
    return "|".join(
        f"{before}(?:{'|'.join(group)}){after}" for (before, after), group in groups.items()
    )


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", " ".join(text.casefold().split()))


def _has_edge(character: str) -> bool:
    """Whether a word that begins or ends so must not go on there."""
    return _is_of_words(character) and not _is_unspaced(character)
