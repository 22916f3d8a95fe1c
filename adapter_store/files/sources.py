"""From wherever an adapter is to a private folder here: bounded, and nothing outside its place.

/a/folder, file:///a/folder          s3://bucket/folder   gs://...   az://container/folder
hf://ORG/REPO[@REVISION][/FOLDER]    https://host/folder/ upload://ID
... or any of these with an archive in the place of the folder: .zip, .tar, .tar.gz
"""

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from adapter_store.files.blobs import WEIGHTS
from adapter_store.files.filesystems import storage
from adapter_store.files.inbound import archives
from adapter_store.files.inbound.confined import MB, Bounds, Overrun, Progress, TooSlow, confined
from adapter_store.files.inbound.fetching import STAGING, fetch, scheme_of
from adapter_store.files.inbound.guard import Reach
from adapter_store.files.inbound.lanes import Lanes
from adapter_store.files.inbound.looking import bring, check, open_up
from adapter_store.files.uploads import UPLOAD, Uploads
from cluster.adapters import BaseModelFacts
from cluster.addresses import HostEntry, host_entry
from cluster.errors import AdapterRefused, Unavailable
from cluster.members import Arrival
from cluster.settings import StoreSettings

# At a time, of one owner: from one host, from all of a kind, and of what has come, looked into.
_FETCHED, _FETCHED_IN_ALL, _LOOKED_INTO = 4, 16, 2
# Enough for anything that was not made to ask for more.
_FETCH_MEMORY, _UNPACK_MEMORY, _CHECK_MEMORY = 512 * MB, 256 * MB, 1024 * MB
_CPU_S = 300
_LOOK_S = 600.0


class Sources:
    """Fetches adapters from the kinds of places that the settings allow, and looks into them.

    All of it is done by children (:mod:`.inbound`), which end when their caller is cancelled.
    """

    def __init__(self, settings: StoreSettings, uploads: Uploads) -> None:
        # Children are told them: the store's URL can have a password.
        self._settings = settings.model_copy(update={"url": None})
        self._uploads = uploads
        self._fetches = Lanes(_FETCHED, "are being fetched from there for the same owner")
        self._owners = Lanes(_FETCHED_IN_ALL, "of this kind are being fetched for the same owner")
        self._looks = Lanes(_LOOKED_INTO, "are being checked for the same owner")
        self._arrivals: dict[Path, Arrival] = {}

    def arrivals(self) -> tuple[Arrival, ...]:
        """What is on its way in."""
        return tuple(self._arrivals.values())

    @contextlib.asynccontextmanager
    async def arrived(
        self, source: str, tenant: str, progress: Progress
    ) -> AsyncIterator[tuple[Path, dict[str, Any]]]:
        """A folder with what there is of an adapter's files, and its card; gone after the block.

        Raises:
            AdapterRefused: the source is not allowed, is not there, leaves its place, or asks for
                too much.
            Unavailable: it cannot be reached now, is too slow, or there is no room for it
                (StorageFull).
        """
        self._check(source)
        folder = _staged(staging_of(self._settings))
        self._arrivals[folder] = Arrival(source=_shown(source), owner=tenant, since=time.time())
        try:
            yield folder, await self._brought(source, folder, tenant, progress)
        finally:
            del self._arrivals[folder]
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _brought(
        self, source: str, folder: Path, tenant: str, progress: Progress
    ) -> dict[str, Any]:
        def told(what: str, done: int, total: int | None) -> None:
            arrival = self._arrivals[folder]
            self._arrivals[folder] = arrival.model_copy(
                update={"doing": what, "done_bytes": done, "of_bytes": total}
            )
            progress(what, done, total)

        settings = self._settings
        reach = self._reach(source)
        if reach is None:  # nothing is waited for
            work: tuple[Any, ...] = (bring, settings, self._rooted(source), folder)
        else:
            await self._fetched(source, folder, reach, tenant, told)
            work = (open_up, settings, folder)
        card: dict[str, Any] = await self._looked(work, _UNPACK_MEMORY, tenant, told)
        told("checking", 0, None)
        return card

    async def _fetched(
        self, source: str, folder: Path, reach: Reach, tenant: str, progress: Progress
    ) -> None:
        settings = self._settings
        bounds = Bounds(
            memory_bytes=_FETCH_MEMORY,
            file_bytes=settings.max_adapter_bytes + MB,
            cpu_s=_CPU_S,
            wall_s=settings.fetch_timeout_s,
            stall_s=settings.fetch_stall_s,
            reach=reach,
        )
        kind, host = scheme_of(source), urlsplit(source).netloc
        async with (
            self._fetches.turn((tenant, kind, host)),
            self._owners.turn((tenant, kind)),
            _refused_when_too_much(),
        ):
            try:
                await confined(fetch, settings, source, folder, bounds=bounds, progress=progress)
            except TooSlow as e:
                raise Unavailable(
                    f"{_shown(source)} was not fetched: {e} (store.fetch_timeout_s, "
                    "store.fetch_stall_s)",
                    param="source",
                ) from e

    async def checked(
        self,
        folder: Path,
        base: BaseModelFacts,
        sha256: str | None,
        tenant: str,
        progress: Progress,
    ) -> dict[str, Any]:
        """The checks at the door: what a version says of its files; raises AdapterRefused."""
        keys, is_needed = self._settings.trusted_keys, self._settings.require_signature
        # The weights are mapped, twice at most.
        memory_bytes = _CHECK_MEMORY + 2 * (folder / WEIGHTS).stat().st_size
        found: dict[str, Any] = await self._looked(
            (check, folder, base, sha256, keys, is_needed), memory_bytes, tenant, progress
        )
        return found

    async def _looked(
        self, work: tuple[Any, ...], memory_bytes: int, tenant: str, progress: Progress
    ) -> Any:
        """What strangers' files say, by a child without network."""
        bounds = Bounds(
            memory_bytes=memory_bytes,
            file_bytes=self._settings.max_adapter_bytes + MB,
            cpu_s=_CPU_S,
            wall_s=_LOOK_S,
            stall_s=_LOOK_S,
        )
        async with self._looks.turn(tenant), _refused_when_too_much():
            return await confined(*work, bounds=bounds, progress=progress)

    def name_of(self, source: str) -> str:
        """The name that a place suggests: its last folder, or its archive without the ending."""
        if source.startswith(UPLOAD):
            source = self._uploads.filename(source.removeprefix(UPLOAD))
        name = source.partition("?")[0].rstrip("/").rpartition("/")[2]
        ending = next((e for e in archives.ENDINGS if name.lower().endswith(e)), "")
        return name[: len(name) - len(ending)]

    def _check(self, source: str) -> None:
        if not source or not source.isprintable():
            raise AdapterRefused(
                "source must be the path of a folder or archive, or a URL", param="source"
            )
        try:
            urlsplit(source)
        except ValueError as e:
            raise AdapterRefused(f"source is no URL: {e}", param="source") from e
        scheme, allowed = scheme_of(source), self._settings.sources
        if scheme not in allowed:
            raise AdapterRefused(
                f"{scheme[:20]}:// is not a source here; allowed are {', '.join(allowed)} "
                "(store.sources)",
                param="source",
            )

    def _rooted(self, source: str) -> str:
        """Links may lead to the folders of `store.resolve`, which an operator has named; below
        them, where names are asked for, none is followed."""
        for pattern in self._settings.resolve:
            root = pattern.removesuffix("/*")
            if root.startswith("/") and source.startswith(f"{root}/"):
                return os.path.realpath(root) + source.removeprefix(root)
        return source

    def _reach(self, source: str) -> Reach | None:
        settings, kind = self._settings, scheme_of(source)
        hosts = tuple(host_entry(entry) for entry in settings.allow_hosts)
        if kind == "file" or (kind == "upload" and "://" not in settings.blob_root):
            return None
        if kind in ("http", "https"):
            return Reach(is_private=settings.allow_private, hosts=hosts)
        if kind == "hf":
            return Reach(is_private=settings.allow_private, hosts=(*hosts, *_of_the_hub()))
        return Reach(is_free=True)  # object storage, by the operator's endpoints


@contextlib.asynccontextmanager
async def _refused_when_too_much() -> AsyncIterator[None]:
    try:
        yield
    except Overrun as e:
        raise AdapterRefused(f"the files ask for too much: {e}", param="source") from e


def _of_the_hub() -> Iterator[HostEntry]:
    """The operator's mirror of the model hub, and the proxies on the way to it."""
    for url in (os.environ.get("HF_ENDPOINT", ""), *urllib.request.getproxies().values()):
        place = urlsplit(url)
        if place.hostname:
            port = place.port or (443 if place.scheme == "https" else 80)
            host = f"[{place.hostname}]" if ":" in place.hostname else place.hostname
            yield host_entry(f"{host}:{port}")


def staging_of(settings: StoreSettings) -> Path:
    """Where adapters are on their way in."""
    return settings.root / "staging"


def _staged(staging: Path) -> Path:
    with storage(STAGING):
        staging.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=staging))


def _shown(source: str) -> str:
    """A place without what may be a secret: who asks, and a signature."""
    if "://" not in source:
        return source
    place = urlsplit(source)
    return f"{place.scheme}://{place.netloc.rpartition('@')[2]}{place.path}"
