"""The id of a request: the client's own where it sends one, in one form for all who know of it.

The answer has it (`x-request-id`), and so do logs, decisions, feedback and the engine.
"""

from collections.abc import Iterator
from contextlib import suppress
from string import ascii_letters, digits, punctuation
from urllib.parse import quote

from cluster.errors import InvalidRequest

HEADER = b"x-request-id"
# What OpenAI takes of a client's own id; in the form that is known here.
LONGEST = 512
# What a header holds as it is, and every log shows.
_PLAIN = ascii_letters + digits + punctuation + " "


def known_as(sent: bytes) -> str:
    """The id that a header's value stands for: printable ASCII as it is (`Root=1-67891233-abc`,
    slashes, spaces within), every other byte as %XX. Empty where nothing was sent."""
    return quote(sent.strip(), safe=_PLAIN)


def check(sent: bytes) -> None:
    """Raises InvalidRequest for an id that is too long: cut, it might be another request's."""
    if (length := len(known_as(sent))) > LONGEST:
        raise InvalidRequest(
            f"the header x-request-id has {length} characters, {LONGEST} are allowed; send a "
            "shorter one, or none",
            param="x-request-id",
        )


def meant(told: str, raw: str = "") -> Iterator[str]:
    """The ids that somebody may mean who tells one, the likeliest first.

    Args:
        raw: it as it stands in an address, still encoded: an id may have a % of its own.
    """
    yield known_as(told.encode(errors="replace"))
    with suppress(UnicodeEncodeError):
        yield known_as(told.encode("latin-1"))
    if raw and raw != told:
        yield raw
