"""Names of adapters: which there may be, and how they stand in addresses and headers."""

import unicodedata
from collections.abc import Iterator
from string import punctuation
from typing import Annotated
from urllib.parse import quote, unquote

import regex
from pydantic import AfterValidator, WithJsonSchema

_MOST_BYTES = 255
# What `/v1/adapters/{name}` goes on with: in a name it could not be told from that.
_BELOW = frozenset({"versions", "aliases", "rollout", "rollback", "derive"})
# Printable, and yet nothing is printed: fillers, selectors of variants, an empty Braille cell; and
# what stands for bytes that were no character.
_UNSEEN = regex.compile(r"[\p{Default_Ignorable_Code_Point}\u2800\ufffd]")
# What a header can hold as it is.
_PLAIN = punctuation.replace("%", "").replace(",", "") + " "


def is_whole(name: str) -> bool:
    """Whether a part of an address can be the name of one adapter, and of nothing below it."""
    parts = name.split("/")
    return all(parts) and _BELOW.isdisjoint(parts[1:])


def in_address(name: str) -> str:
    """A name as one segment of a URL."""
    return quote(name, safe="")


def in_header(name: str) -> str:
    """A name as the value of a header, which has ASCII alone: what is plain stays as it is."""
    return quote(name, safe=_PLAIN)


def from_header(value: str) -> str:
    """The name again."""
    return unquote(value)


def _checked(name: str) -> str:
    if problem := next(_problems(name), None):
        raise ValueError(problem)
    return name


def _problems(name: str) -> Iterator[str]:
    if not name:
        yield "it is empty; give one, such as org/name"
    # First of all: half characters have no UTF-8.
    for character in name:
        if not character.isprintable() or _UNSEEN.match(character):
            yield f"the character U+{ord(character):04X} cannot be seen; leave it out"
    if name != name.strip():
        yield "there is white space at an end; leave it out"
    if (size := len(name.encode())) > _MOST_BYTES:
        yield f"it has {size} bytes of UTF-8, {_MOST_BYTES} are allowed; give a shorter one"
    if not unicodedata.is_normalized("NFC", name):
        yield "it is not in Unicode's form NFC; send it normalised"
    if "@" in name:
        yield "'@' stands between a name and a version; leave it out"
    if "\\" in name:
        yield "a backslash is not allowed; use '/'"
    yield from _problems_of_parts(name.split("/"))


def _problems_of_parts(parts: list[str]) -> Iterator[str]:
    if not all(parts):
        yield "a '/' stands between two parts; leave out those at an end, and the second in a row"
    if not {".", ".."}.isdisjoint(parts):
        yield "a part cannot be '.' or '..', which lead elsewhere in an address; rename it"
    if taken := [part for part in parts[1:] if part in _BELOW]:
        yield f"'/{taken[0]}' is an address below an adapter; rename that part"


def is_name(name: str) -> bool:
    """Whether an adapter may be called so."""
    return next(_problems(name), None) is None


AdapterName = Annotated[
    str,
    AfterValidator(_checked),
    # As far as a schema can say it.
    WithJsonSchema(
        {"type": "string", "maxLength": _MOST_BYTES, "pattern": r"^[^@\\/]+(/[^@\\/]+)*$"}
    ),
]
