"""The registry and the blobs in one file, and back: a tar that any tool can look into.

blobs/DIGEST/adapter_config.json, blobs/DIGEST/adapter_model.safetensors, ...
registry.jsonl    a line with the schema, then one line per adapter
"""

import asyncio
import io
import json
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from adapter_store.files.blobs import FILES, BlobGone, BlobStore, digest_of, sync
from adapter_store.registry import SCHEMA, BlobUnreserved
from adapter_store.store import Store
from cluster import rollouts
from cluster.adapters import Adapter
from cluster.errors import Conflict, InvalidRequest, Unavailable
from cluster.values import Record, Value

REGISTRY = "registry.jsonl"
_TRIES = 5

# Told how many adapters of how many are done.
Progress = Callable[[int, int], None]


class BackedUp(Value):
    """What a backup holds."""

    adapters: int
    blobs: int
    size_bytes: int


class Restored(Value):
    """What a restore did."""

    restored: tuple[str, ...]
    kept: tuple[str, ...]


class Header(Record):
    """The first line of a backup's registry."""

    schema_number: int
    made_at: float
    issued: dict[str, int]


async def back_up(store: Store, blobs: BlobStore, target: Path, progress: Progress) -> BackedUp:
    """Write everything into the file `target`, which appears whole or not at all.

    Others may go on changing adapters: each is saved as it was at one moment.

    Raises:
        InvalidRequest: the file cannot be written.
        Unavailable: the files of an adapter are gone or damaged; its name is told.
    """
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise InvalidRequest(f"{target} must be a file in a folder that is there")
    draft = target.with_name(target.name + ".new")
    adapters = [a async for a in store.registry.all()]
    header = Header(schema_number=SCHEMA, made_at=time.time(), issued=await store.registry.issued())
    saved: set[str] = set()
    try:
        with tarfile.open(draft, "w") as tar:
            for done, adapter in enumerate(adapters):
                progress(done, len(adapters))
                for digest in {v.digest for v in adapter.versions.values()} - saved:
                    await _save(store, blobs, tar, adapter.name, digest)
                    saved.add(digest)
            lines = [value.model_dump_json() for value in (header, *adapters)]
            _add(tar, REGISTRY, "\n".join(lines).encode())
        sync(draft)
        draft.replace(target)
    except OSError as e:
        raise InvalidRequest(f"{target} cannot be written: {e}") from e
    finally:
        draft.unlink(missing_ok=True)
    progress(len(adapters), len(adapters))
    return BackedUp(adapters=len(adapters), blobs=len(saved), size_bytes=target.stat().st_size)


async def restore(store: Store, blobs: BlobStore, source: Path, progress: Progress) -> Restored:
    """Put back what a backup holds; adapters whose names are taken stay as they are.

    Nothing is written before the whole registry of the backup has been read. May be run again
    after it was cut off. A rollout that was under way is not taken up again.

    Raises:
        InvalidRequest: the file is not a backup, or a damaged one.
    """
    try:
        with tarfile.open(source, "r:") as tar:
            header, adapters = _read_registry(tar)
            await store.registry.raise_issued(header.issued)
            restored: list[str] = []
            kept: list[str] = []
            for done, adapter in enumerate(adapters):
                progress(done, len(adapters))
                is_new = await _restore_one(store, blobs, tar, adapter)
                (restored if is_new else kept).append(adapter.name)
    except (OSError, tarfile.TarError) as e:
        raise InvalidRequest(f"{source} cannot be read as a backup: {e}") from e
    progress(len(adapters), len(adapters))
    return Restored(restored=tuple(restored), kept=tuple(kept))


async def _save(
    store: Store, blobs: BlobStore, tar: tarfile.TarFile, name: str, digest: str
) -> None:
    # Deleted meanwhile, its files stay until they are in here.
    reservation = await store.blob_refs.reserve(digest)
    await asyncio.to_thread(_save_blob, tar, blobs, name, digest)
    if reservation is not None:
        await store.blob_refs.release(digest, reservation)


async def _restore_one(
    store: Store, blobs: BlobStore, tar: tarfile.TarFile, adapter: Adapter
) -> bool:
    if adapter.rollout is not None:
        reason = "restored from a backup while it was under way"
        adapter = rollouts.stop(adapter, reason, adapter.rollout.evaluation, time.time())
    for _ in range(_TRIES):
        if await store.registry.get(adapter.name) is not None:
            return False
        reservations: dict[str, str] = {}
        for digest in {v.digest for v in adapter.versions.values()}:
            reservation = await store.blob_refs.reserve(digest)
            if reservation is None:
                raise Unavailable("the collector is at work; restore when it has ended")
            reservations[digest] = reservation
            await asyncio.to_thread(_restore_blob, tar, blobs, adapter.name, digest)
        try:
            await store.registry.restore(adapter, reservations)
        except Conflict:
            return False  # registered meanwhile
        except BlobUnreserved:
            continue
        return True
    raise Unavailable(f"the blob store is too slow for {adapter.name}; restore again")


def _save_blob(tar: tarfile.TarFile, blobs: BlobStore, name: str, digest: str) -> None:
    try:
        with blobs.opened(digest) as folder:
            for file in FILES:
                tar.add(folder / file, f"blobs/{digest}/{file}")
    except BlobGone as e:
        raise Unavailable(f"the files of {name} {e}; register it again, or remove it") from e


def _restore_blob(tar: tarfile.TarFile, blobs: BlobStore, name: str, digest: str) -> None:
    with tempfile.TemporaryDirectory(prefix="rh-restore-") as temporary:
        folder = Path(temporary)
        for file in FILES:
            packed = _packed(tar, f"blobs/{digest}/{file}")
            if packed is None:
                raise InvalidRequest(f"the backup lacks {file} of {name}")
            with packed, (folder / file).open("wb") as out:
                shutil.copyfileobj(packed, out)
        if digest_of(folder) != digest:
            raise InvalidRequest(f"the files of {name} are damaged in the backup")
        blobs.commit(folder, digest)


def _read_registry(tar: tarfile.TarFile) -> tuple[Header, list[Adapter]]:
    packed = _packed(tar, REGISTRY)
    if packed is None:
        raise InvalidRequest(
            f"not a backup: its {REGISTRY} is missing or damaged (it is not there)"
        )
    try:
        with packed:
            # Not at what else separates lines: texts of cards may have it.
            lines = packed.read().decode().split("\n")
        schema = json.loads(lines[0])["schema_number"]
        if schema > SCHEMA:
            raise InvalidRequest(
                f"the backup was made by a newer release (schema {schema}, this one knows {SCHEMA})"
            )
        header = Header.model_validate_json(lines[0])
        return header, [Adapter.model_validate_json(line) for line in lines[1:]]
    except (KeyError, TypeError, IndexError, UnicodeDecodeError, json.JSONDecodeError) as e:
        raise InvalidRequest(f"not a backup: its {REGISTRY} is missing or damaged ({e})") from e
    except ValidationError as e:
        raise InvalidRequest(f"a damaged backup: {e.errors()[0]['msg']} in {REGISTRY}") from e


def _packed(tar: tarfile.TarFile, name: str) -> IO[bytes] | None:
    """A plain file of the backup, or None."""
    try:
        return tar.extractfile(name)
    except KeyError:
        return None


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(content), int(time.time())
    tar.addfile(info, io.BytesIO(content))
