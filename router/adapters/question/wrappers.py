"""A turn without what programs put around it: `<system-reminder>...</system-reminder>`, files that
an editor attaches, the prompt that a retrieval makes of a question."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from operator import attrgetter
from typing import NamedTuple

from cluster.settings import WrapperSettings
from router.adapters.question.templates import Template

# Bounded, so that a text of openings alone is read in time that grows with its length.
_TAG = re.compile(r"<(/?)([A-Za-z_][A-Za-z0-9_.-]{0,63})(?:\s[^<>]{0,500})?/?>")
# One plain word: people write of such tags, too, so they count where a line begins with them.
_PLAIN = re.compile(r"[a-z]+")
_AFTER = re.compile(r"[ \t\r]*(?:\n|<|\Z)")
_BLANK_LINES = re.compile(r"\n{3,}")
# Before a tag, where its line is looked at.
_NEAR = 200
# Of one text; what stands behind more is taken as it is.
_MOST_TAGS = 5000
TEMPLATE = "a template"


@dataclass(frozen=True)
class Unwrapped:
    """Of a text, what the user asked.

    Attributes:
        left_out: names of what was not the user's.
    """

    text: str
    left_out: tuple[str, ...] = ()


class _Region(NamedTuple):
    """A tag with what is in it: where it starts, and ends; where what is in it does."""

    start: int
    inner_start: int
    inner_end: int
    end: int
    name: str


class Wrappers:
    """Those of the settings, ready to be left out."""

    def __init__(self, settings: WrapperSettings) -> None:
        self._left_out = frozenset(settings.left_out)
        self._asked = frozenset(settings.asked)
        self._names = self._left_out | self._asked
        self._plain = frozenset(filter(_PLAIN.fullmatch, self._names))
        self._templates = [Template(written) for written in settings.templates]

    def unwrapped(self, text: str) -> Unwrapped:
        """What of it the user asked; may be nothing at all.

        A tag that is not closed, and one that closes nothing, is text like any other.
        """
        first = self._without_template(text)
        second = self._without_tags(first.text)
        # A template may begin behind a tag.
        third = self._without_template(second.text) if second.left_out else Unwrapped(second.text)
        names = (*first.left_out, *second.left_out, *third.left_out)
        return Unwrapped(third.text, tuple(dict.fromkeys(names))) if names else Unwrapped(text)

    def _without_template(self, text: str) -> Unwrapped:
        for template in self._templates:
            if (question := template.question_in(text)) is not None:
                return Unwrapped(question, (TEMPLATE,))
        return Unwrapped(text)

    def _without_tags(self, text: str) -> Unwrapped:
        if "<" not in text or not self._names:
            return Unwrapped(text)
        regions = sorted(self._regions(text))
        hidden = _outermost(r for r in regions if r.name in self._left_out)
        seen = [r for r in _outermost_not_in(hidden, regions) if r.name in self._asked]
        asked = [*_telling(text, hidden, seen)]
        if not hidden and not asked:
            return Unwrapped(text)
        spans = [(r.inner_start, r.inner_end) for r in asked] or [(0, len(text))]
        kept = "\n".join(_without(text, start, end, hidden) for start, end in spans)
        names = [region.name for region in (*hidden, *asked)]
        return Unwrapped(_BLANK_LINES.sub("\n\n", kept).strip(), tuple(dict.fromkeys(names)))

    def _regions(self, text: str) -> Iterator[_Region]:
        opened: dict[str, list[tuple[int, int, bool]]] = {}
        known = (tag for tag in _TAG.finditer(text) if tag[2] in self._names)
        for tag in islice(known, _MOST_TAGS):
            closes, name, is_empty = tag[1], tag[2], tag[0].endswith("/>")
            if not closes:
                counts = name not in self._plain or _begins_line(text, tag.start())
                if is_empty:
                    if counts:
                        yield _Region(tag.start(), tag.end(), tag.end(), tag.end(), name)
                else:
                    opened.setdefault(name, []).append((tag.start(), tag.end(), counts))
            elif opened.get(name):
                start, inner_start, counts = opened[name].pop()
                if counts:
                    yield _Region(start, inner_start, tag.start(), tag.end(), name)


@lru_cache(maxsize=16)
def wrappers_of(settings: WrapperSettings) -> Wrappers:
    """Compiled once for each."""
    return Wrappers(settings)


def _outermost(regions: Iterator[_Region]) -> list[_Region]:
    """Of regions in the order of their starts, those that begin in no other."""
    found: list[_Region] = []
    for region in regions:
        if not found or region.start >= found[-1].end:
            found.append(region)
        elif region.end > found[-1].end:
            found[-1] = found[-1]._replace(end=region.end)  # they cross
    return found


def _outermost_not_in(hidden: Sequence[_Region], regions: Sequence[_Region]) -> list[_Region]:
    """Of regions in the order of their starts, those that begin in none of the hidden ones."""
    found: list[_Region] = []
    at = 0
    for region in regions:
        while at < len(hidden) and hidden[at].end <= region.start:
            at += 1
        if at == len(hidden) or region.start < hidden[at].start:
            found.append(region)
    return found


def _telling(text: str, hidden: Sequence[_Region], asked: Sequence[_Region]) -> Iterator[_Region]:
    """Those that say what was asked: of a plain word, a tag before which nothing else stands, and
    nothing else behind it in its line. Else the user may be writing of it."""
    ends = 0
    is_first = True
    for region in asked:
        if region.start < ends:
            continue  # within another
        if _PLAIN.fullmatch(region.name):
            is_first = is_first and not _without(text, ends, region.start, hidden).strip()
            if not is_first or not _AFTER.match(text, region.end):
                continue
        ends = region.end
        yield region


def _begins_line(text: str, at: int) -> bool:
    """Whether only blanks stand before a place in its line, or another tag."""
    near = text[max(0, at - _NEAR) : at]
    line = near.rpartition("\n")[2]
    is_whole = len(line) < len(near) or at <= _NEAR
    return line.rstrip().endswith(">") or (is_whole and not line.strip())


def _without(text: str, start: int, end: int, hidden: Sequence[_Region]) -> str:
    """A part of a text, without the hidden regions."""
    pieces = []
    at = bisect_right(hidden, start, key=attrgetter("end"))
    while at < len(hidden) and hidden[at].start < end:
        pieces.append(text[start : hidden[at].start])
        start = hidden[at].end
        at += 1
    return "".join([*pieces, text[start:end]])
