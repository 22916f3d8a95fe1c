"""The engine seam: what a model replica needs of an inference engine, and nothing more."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from cluster.adapters import AdapterKey, AdapterRef, BaseModelFacts
from cluster.members import Residency
from deployments.process.call import Reply


class Engine(Protocol):
    """One base model with slots for adapters, speaking HTTP as the calls of its tasks do.

    Adapter methods are called by one task per version at a time; `answer` concurrently. Versions
    that are loaded never exceed the capacity for host memory: the caller unloads first.
    """

    @property
    def layout(self) -> str:
        """Names what `prepare` writes, so that it is kept apart from what other engines want."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """What it can do, as `cluster/calls.py` names it; known once it has started."""

    async def start(self) -> BaseModelFacts:
        """Load the base model; returns what adapters must match."""

    async def stop(self) -> None:
        """Free everything. The engine is not used again."""

    async def check_health(self) -> None:
        """Raise when the engine is broken beyond repair."""

    def prepare(self, source: Path, target: Path) -> None:
        """Write into the folder `target` what `load` reads of the adapter in `source`.

        Called in a thread, so that `load`, which running requests wait for, has little left to do.

        Raises:
            ValueError, OSError: the adapter cannot be used; says why.
        """

    async def load(self, ref: AdapterRef, folder: Path) -> None:
        """Hold a prepared version in host memory, and in a slot where one is free.

        Raises:
            AdapterLoadFailed: the engine refused it; nothing of it stays.
        """

    async def unload(self, ref: AdapterRef) -> None:
        """Free a version's slot and host copy. Unknown versions are ignored."""

    async def residency(self, worth: Mapping[AdapterKey, float]) -> Residency:
        """Where each loaded version is now, asked of the engine's worker.

        `worth`, by `key` of the version, says which ones lose their slots last.
        """

    def kv_use(self) -> float | None:
        """Part of the KV cache that is in use, 0 to 1; None where there is none."""

    def unfinished(self) -> int:
        """Requests that the engine itself is working on, waiting ones included."""

    def trouble(self) -> str:
        """Why it cannot answer now, although it is well itself; empty when it can."""

    def answer(
        self, path: str, body: bytes, headers: dict[str, str]
    ) -> AbstractAsyncContextManager[Reply]:
        """Serve one request; yields its reply once that has begun.

        `path` is one of `cluster/calls.py`; `content-type` in the headers says what the body is.
        `model` in the body is the base model's id or the `key` of a loaded version. A stream begins
        with its first token. The end of the block aborts a generation that is still going on.
        """
