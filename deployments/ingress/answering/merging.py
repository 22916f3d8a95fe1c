"""One answer out of several, as vLLM would have given it. Pure: JSON in, JSON out.

Of a list of prompts, each part of the answer is to some of them, numbered from 0 in its own order.
Choice k of prompt p of n choices each has, in the whole, the index n p + k.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Json = Mapping[str, Any]


class Places(NamedTuple):
    """Where the prompts of a part stand in the whole.

    Attributes:
        prompts: their numbers there, in the part's order.
        choices: answers to each.
    """

    prompts: tuple[int, ...]
    choices: int

    def place_of(self, index: int) -> int:
        """In the whole, of a choice of the part."""
        prompt, choice = divmod(index, self.choices)
        return self.prompts[prompt] * self.choices + choice


def merged(parts: Sequence[tuple[Places, Json]], head: Json) -> dict[str, Any]:
    """The whole of a completion: all choices in the order of the prompts, usage added up.

    Args:
        head: what stands in place of each part's own: `id`, `created`, `model`.
    """
    choices = [c for places, part in parts for c in placed(part, places)["choices"]]
    usages = [part["usage"] for _, part in parts if part.get("usage")]
    return {
        **parts[0][1],
        **head,
        "choices": sorted(choices, key=lambda choice: int(choice["index"])),
        "usage": summed(usages) if usages else None,
    }


def placed(part: Json, places: Places) -> dict[str, Any]:
    """A part, or a chunk of one, with the indices of the whole."""
    choices = [c | {"index": places.place_of(c["index"])} for c in part["choices"]]
    return {**part, "choices": choices}


def summed(usages: Iterable[Json]) -> dict[str, Any]:
    """Numbers added up, those within as well; of what is none, the first."""
    total: dict[str, Any] = {}
    for usage in usages:
        for name, value in usage.items():
            before = total.get(name)
            if before is None:
                total[name] = value
            elif isinstance(value, Mapping) and isinstance(before, Mapping):
                total[name] = summed([before, value])
            elif _is_number(value) and _is_number(before):
                total[name] = before + value
    return total


def is_usage(chunk: Json) -> bool:
    """Whether a chunk of a stream is the one at its end that tells the usage alone."""
    return chunk.get("choices") == [] and bool(chunk.get("usage"))


class Events:
    """The events of a stream, whatever pieces it comes in."""

    def __init__(self) -> None:
        self._rest = b""

    def of(self, piece: bytes) -> list[bytes]:
        """The data of those that the piece ends; the rest waits for the next one."""
        *whole, self._rest = (self._rest + piece).split(b"\n\n")
        lines = (event.strip() for event in whole)
        return [line.removeprefix(b"data:").strip() for line in lines if line.startswith(b"data:")]


def event_of(chunk: Json) -> bytes:
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
