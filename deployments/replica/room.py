"""The host memory of one replica: what is in it, what it is worth, what leaves for what comes."""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass

from cluster.adapters import AdapterKey, AdapterRef
from cluster.errors import AdapterLoadFailed
from deployments.replica.worth import Expected, UsageLog


@dataclass
class Amount:
    """Of versions, and of the bytes of their prepared files together."""

    entries: int = 0
    bytes: float = 0.0


@dataclass(frozen=True)
class Held:
    """What the engine has for certain: from the end of its load until its unload begins."""

    ref: AdapterRef
    size_bytes: int


class Room:
    """Decides what leaves, so that no version ever goes while a request uses it: the one that is
    worth least, among those without a lease. Where every version has one, loads wait in the order
    in which they came.

    Args:
        limit: what the engine holds at most, in slots or in host memory.
        is_used: whether requests hold a version, by key, in place.
        is_pinned: whether an adapter, by name, leaves only when nothing else can.
    """

    def __init__(
        self,
        limit: Amount,
        usage: UsageLog,
        is_used: Callable[[AdapterKey], bool],
        is_pinned: Callable[[str], bool],
    ) -> None:
        self._limit = limit
        self.usage = usage
        self.expected = Expected()
        self._is_used = is_used
        self._is_pinned = is_pinned
        self._kept: frozenset[AdapterKey] = frozenset()
        self._held: dict[AdapterKey, Held] = {}
        # With the loads and unloads under way.
        self._taken = Amount()
        self._lock = asyncio.Lock()
        self._changed = asyncio.Event()

    def __contains__(self, key: AdapterKey) -> bool:
        return key in self._held

    def left(self, coming: Iterable[AdapterKey]) -> int:
        """How many more versions fit without moving another out, beside those on their way in."""
        return self._limit.entries - len(self._held.keys() | set(coming))

    def has_spare(
        self, size_bytes: int, coming: Iterable[AdapterKey], beside: AdapterKey | None
    ) -> bool:
        """Whether one more of that size would fit, if only what is neither wanted here nor needed
        soon moved out.

        Args:
            beside: a version that is about to be used.
        """
        spare = [h for h in self._unused() if h.ref.key != beside and not any(self._need(h.ref))]
        free_bytes = self._limit.bytes - self._taken.bytes
        fits = free_bytes + sum(h.size_bytes for h in spare) >= size_bytes
        return fits and self.left(coming) + len(spare) > 0

    def keep(self, keys: Iterable[AdapterKey]) -> None:
        """Versions that others are moved out for, not they."""
        self._kept = frozenset(keys)

    def worths(self) -> dict[AdapterKey, float]:
        """What is worth keeping in a slot, by key."""
        return {
            key: math.inf if self._is_pinned(held.ref.name) else self.usage.worth(key)
            for key, held in self._held.items()
        }

    async def make(
        self, key: AdapterKey, size_bytes: int, move_out: Callable[[AdapterRef], Awaitable[None]]
    ) -> None:
        """Take room for one more version; `fill` or `give_back` must follow.

        Raises:
            AdapterLoadFailed: it would not fit though it were alone.
        """
        if size_bytes > self._limit.bytes:
            raise AdapterLoadFailed(
                f"{key} takes {size_bytes} bytes of host memory; lora.host_bytes allows "
                f"{self._limit.bytes} for all adapters"
            )
        async with self._lock:
            while not self._has_room(size_bytes):
                victim = self._least_worth(per_byte=self._taken.entries < self._limit.entries)
                if victim is None:
                    self._changed.clear()
                    await self._changed.wait()
                else:
                    await move_out(victim)
            self._taken.entries += 1
            self._taken.bytes += size_bytes

    def fill(self, ref: AdapterRef, size_bytes: int) -> None:
        """The room that was made for a version has it."""
        self._held[ref.key] = Held(ref, size_bytes)
        self.usage.cost(ref.key, size_bytes)

    def give_back(self, size_bytes: int) -> None:
        """The room of a version is free, whether it came or not."""
        self._taken.entries -= 1
        self._taken.bytes -= size_bytes
        self._changed.set()

    @contextlib.contextmanager
    def leaving(self, ref: AdapterRef) -> Iterator[None]:
        """While the engine lets go of a version: it counts as gone, its room as taken."""
        held = self._held.pop(ref.key)
        try:
            yield
        finally:
            self.give_back(held.size_bytes)

    def is_free(self) -> None:
        """A version has lost its last lease: a load may wait for that."""
        self._changed.set()

    def _has_room(self, size_bytes: int) -> bool:
        has_bytes = self._taken.bytes + size_bytes <= self._limit.bytes
        return self._taken.entries < self._limit.entries and has_bytes

    def _least_worth(self, *, per_byte: bool) -> AdapterRef | None:
        """What leaves first of what no request uses.

        Args:
            per_byte: bytes are short, not entries: what is large must be worth more to stay.
        """
        return min(
            (held.ref for held in self._unused()),
            key=lambda ref: (*self._need(ref), self.usage.rank(ref.key, per_byte=per_byte)),
            default=None,
        )

    def _unused(self) -> list[Held]:
        """What no request uses."""
        return [held for key, held in self._held.items() if not self._is_used(key)]

    def _need(self, ref: AdapterRef) -> tuple[bool, bool, float]:
        """Why a version should stay whatever its use, the strongest reason first; falsy is none."""
        return self._is_pinned(ref.name), ref.key in self._kept, self.expected.nearness(ref.key)
