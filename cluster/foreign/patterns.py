"""Regular expressions of other people: matched in time that grows with the text, and with it alone.

They are Rust's, by way of pydantic: finite automata, so no pattern takes for ever on some text, as
it may where a matcher goes back and tries again (CVE lists call that ReDoS).
"""

import re
from collections.abc import Callable
from functools import lru_cache

from pydantic_core import SchemaError, SchemaValidator, core_schema

# Where counts are written out, each position may be alive at each character: 5 ns a pair at worst.
MOST_POSITIONS = 300

_TOKEN = re.compile(
    r"(?P<one>\\[pP]\{[^}]*\}|\\[xuU]\{[^}]*\}|\\[pP].|\\.|\[\^?\]?(?:\\.|[^\]\\])*\])"
    r"|\{(?P<least>\d+)(?:(?P<open>,)(?P<most>\d*))?\}"
    r"|(?P<flags>\(\?[a-zA-Z-]+\))"
    r"|(?P<enter>\((?:\?(?:P?<\w+>|[a-zA-Z-]*:))?)"
    r"|(?P<leave>\))"
    r"|(?P<mark>[*+?|^$])"
    r"|(?P<other>.)",
    re.DOTALL,
)


def searched(pattern: str) -> Callable[[str], bool]:
    """What tells whether a text has the pattern in it.

    Raises:
        ValueError: it is no pattern, or one that would take long.
    """
    if (found := positions(pattern)) > MOST_POSITIONS:
        raise ValueError(
            f"the pattern has {found} positions once its counts, as in {{9}}, are written out; "
            f"{MOST_POSITIONS} are allowed"
        )
    return search_of(pattern)


@lru_cache(maxsize=512)
def search_of(pattern: str) -> Callable[[str], bool]:
    """As :func:`searched`, for patterns that this program makes."""
    schema = core_schema.str_schema(pattern=pattern, regex_engine="rust-regex")
    try:
        return SchemaValidator(schema).isinstance_python
    except SchemaError as e:
        _, _, reason = str(e).rpartition("error: ")
        raise ValueError(f"not a pattern: {reason.strip().splitlines()[-1]}") from e


def positions(pattern: str) -> int:
    """How many single characters it has once its counts are written out."""
    groups, last = [0], 0
    for token in _TOKEN.finditer(pattern):
        match token.lastgroup:
            case "least" | "open" | "most":
                most = max(int(token["least"]), int(token["most"] or 0))
                times = most + 1 if token["open"] and not token["most"] else most
                groups[-1] += last * (times - 1)
                last *= times
            case "enter":
                groups.append(0)
            case "leave" if len(groups) > 1:
                last = groups.pop()
                groups[-1] += last
            case "flags" | "mark" | "leave":
                pass
            case _:
                last = 1
                groups[-1] += 1
    return sum(groups)
