"""Counts in a schema that nobody can mean.

A library behind vLLM writes a list of at least a billion items out item by item: 18 GiB, and the
replica was gone. More than this many no answer has.
"""

import json
from collections.abc import Iterator
from typing import Any

MOST = 65_536
_COUNTS = ("minItems", "minProperties", "minContains", "minLength")


def check_bounds(schema: Any) -> None:
    """Raises ValueError for a least number that no answer comes to; other mistakes are not its."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            return
    for part in _objects(schema):
        for name in _COUNTS:
            count = part.get(name)
            if isinstance(count, int | float) and count > MOST:
                raise ValueError(f"{name} is {count:g}; at most {MOST} can be asked for")


def _objects(schema: Any) -> Iterator[dict[str, Any]]:
    left = [schema]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            yield part
            left += part.values()
        elif isinstance(part, list):
            left += part
