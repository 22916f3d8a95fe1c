"""Where a replica's loads read from: the node's cache, filled from the blob store."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from adapter_store.files.blobs import BlobGone, BlobStore, digest_of
from adapter_store.files.node_cache import NodeCache
from cluster.adapters import AdapterRef, Tier
from cluster.errors import AdapterLoadFailed, EngineRefused
from deployments.engines.engine import Engine

CHECKSUM = "sha256"

logger = logging.getLogger(__name__)


class AdapterFiles:
    """Adapter versions in the form that the engine takes over, ready on this node.

    Reading, checking and converting happen in threads of the replica, never in the engine's loop.
    """

    def __init__(self, blobs: BlobStore, cache: NodeCache, engine: Engine) -> None:
        self._blobs = blobs
        self._cache = cache
        self._engine = engine
        # Behind the engine, which needs the processor for requests that run.
        self._threads = ThreadPoolExecutor(4, "adapter-files", initializer=os.nice, initargs=(10,))
        # One by one, and behind everything that somebody waits for.
        self._ahead = ThreadPoolExecutor(1, "prepare-ahead", initializer=os.nice, initargs=(19,))

    def tier(self, ref: AdapterRef) -> Tier:
        return Tier.NODE if self._cache.has(self._key(ref)) else Tier.REMOTE

    @contextlib.asynccontextmanager
    async def opened(self, ref: AdapterRef) -> AsyncIterator[Path]:
        """The folder to load a version from, held for the length of the block.

        Raises:
            AdapterLoadFailed: the files are gone, damaged, or the engine cannot take them.
        """
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as held:
            try:
                folder = await loop.run_in_executor(self._threads, self._ready, ref, held)
            except OSError as e:
                raise AdapterLoadFailed(f"could not read {ref.key}: {e}") from e
            yield folder

    async def prepare_ahead(self, ref: AdapterRef, size_bytes: int) -> None:
        """Have a version ready on this node before anybody asks for it, unless others would have
        to leave the node's cache for it."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._ahead, self._prepare_ahead, ref, size_bytes)

    def _prepare_ahead(self, ref: AdapterRef, size_bytes: int) -> None:
        if self.tier(ref) is Tier.NODE or not self._cache.has_room(size_bytes):
            return
        with contextlib.ExitStack() as held:
            try:
                self._ready(ref, held)
            except (AdapterLoadFailed, OSError) as e:
                # Whoever asks for it is told.
                logger.warning("%s cannot be prepared: %s", ref.key, e)

    def discard(self, ref: AdapterRef) -> None:
        """The engine refused what is in the cache: make it anew, should it be asked for again."""
        self._cache.discard(self._key(ref))

    def _ready(self, ref: AdapterRef, held: contextlib.ExitStack) -> Path:
        for _ in range(2):
            with contextlib.ExitStack() as entry:
                folder = entry.enter_context(
                    self._cache.entry(self._key(ref), lambda target: self._prepare(ref, target))
                )
                # Reading it whole also brings it into memory here, outside the engine's loop.
                if (folder / CHECKSUM).read_text() == checksum(folder):
                    held.callback(entry.pop_all().close)
                    return folder
            logger.warning("%s is damaged in the node's cache and made anew", ref.key)
            self.discard(ref)
        raise AdapterLoadFailed(f"the node's cache damages {ref.key}; is its disk all right?")

    def _prepare(self, ref: AdapterRef, target: Path) -> None:
        try:
            with self._blobs.opened(ref.digest) as source:
                self._engine.prepare(source, target)
        except BlobGone as e:
            raise AdapterLoadFailed(f"the files of {ref.key} {e}; register it again") from e
        except OSError as e:
            raise AdapterLoadFailed(f"{ref.key} cannot be read or prepared here: {e}") from e
        except Exception as e:
            raise EngineRefused(f"the engine cannot use {ref.key}: {e}") from e
        (target / CHECKSUM).write_text(checksum(target))

    def _key(self, ref: AdapterRef) -> str:
        return f"{ref.digest}-{self._engine.layout}"


def checksum(folder: Path) -> str:
    """sha256 of what is in a cache entry."""
    return digest_of(folder, sorted(f.name for f in folder.iterdir() if f.name != CHECKSUM))
