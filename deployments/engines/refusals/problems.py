"""Of all that pydantic says of a body, the one problem to mend.

A value that may be one thing or another (the messages of a chat are of some twenty kinds) has a
problem with each of them. What was meant is the kind that its `role` or `type` fits.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Problem = Mapping[str, Any]

# What pydantic puts into a path beside fields and indices: kinds of a union, and its own wrappers.
_ALTERNATIVE = re.compile(
    r"^([A-Z]\w*|.*[\[\](){}-].*|str|int|float|bool|bytes|list|tuple|dict|set|none|nullable|default)$"
)
_TAGS = frozenset({"role", "type"})
_MOST = 2000
_LONGEST = 400


def place_of(path: Iterable[str | int]) -> str:
    """A field as clients write it: ``messages[0].content``."""
    place = ""
    for part in path:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    return place


def worst(problems: Sequence[Problem]) -> tuple[str | None, str]:
    """The field to mend, or None for the body itself, and what is wrong with it."""
    found = [(p, *_split(p)) for p in problems[:_MOST]]
    others = {kind for p, _, kind in found if _is_other_kind(p, kind)}
    fitting = [f for f in found if not any(_is_within(f[2], other) for other in others)]
    # The deepest: what is nearest to what was meant.
    left = fitting or found
    depth = max(len(place) for _, place, _ in left)
    place = next(place for _, place, _ in left if len(place) == depth)
    said = dict.fromkeys(_words(p) for p, there, _ in left if there == place)
    return place_of(place) or None, " or ".join(said)[:_LONGEST]


def _split(problem: Problem) -> tuple[tuple[str | int, ...], tuple[str | int, ...]]:
    """Fields and indices of a path; and all of it up to its last alternative."""
    path = tuple(problem["loc"])
    path = path[1:] if path[:1] == ("body",) else path
    names = [i for i, part in enumerate(path) if isinstance(part, str) and _ALTERNATIVE.match(part)]
    kind = path[: names[-1] + 1] if names else ()
    return tuple(part for i, part in enumerate(path) if i not in names), kind


def _is_other_kind(problem: Problem, kind: tuple[str | int, ...]) -> bool:
    *above, tag = problem["loc"]
    is_tag = tag in _TAGS and above[-1:] == [*kind[-1:]]
    return is_tag and kind != () and problem["type"] == "literal_error"


def _is_within(kind: tuple[str | int, ...], other: tuple[str | int, ...]) -> bool:
    return other != () and kind[: len(other)] == other


def _words(problem: Problem) -> str:
    return str(problem["msg"]).removeprefix("Value error, ")
