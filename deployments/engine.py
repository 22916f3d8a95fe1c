"""The engine seam: what a model replica needs of an inference engine, and nothing more."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cluster.state import AdapterRef, BaseModelFacts, Residency


@dataclass(frozen=True)
class ResponseStart:
    """Status line and headers of an answer; the body's chunks follow."""

    status: int
    headers: dict[str, str]


class Engine(Protocol):
    """One base model with slots for adapters, speaking OpenAI's HTTP protocol.

    Adapter methods are called by one task per version at a time; `answer` concurrently.
    """

    async def start(self) -> BaseModelFacts:
        """Load the base model; returns what adapters must match."""

    async def stop(self) -> None:
        """Free everything. The engine is not used again."""

    async def check_health(self) -> None:
        """Raise when the engine is broken beyond repair."""

    async def load(self, ref: AdapterRef, folder: Path) -> None:
        """Make a version usable and put it into a slot, moving another out where all are taken.

        Raises:
            AdapterLoadFailed: the engine refused it; nothing of it stays.
        """

    async def unload(self, ref: AdapterRef) -> None:
        """Free a version's slot and host copy. Unknown versions are ignored."""

    async def residency(self) -> Residency:
        """Where each loaded version is now, asked of the engine's worker."""

    def unfinished(self) -> int:
        """Requests that the engine itself is working on, waiting ones included."""

    def answer(
        self, path: str, body: bytes, headers: dict[str, str]
    ) -> AsyncIterator[ResponseStart | bytes]:
        """Serve one request: first the start, then the body as it is generated.

        `model` in the body is the base model's id or the `key` of a loaded version. Closing the
        iterator aborts the generation.
        """
