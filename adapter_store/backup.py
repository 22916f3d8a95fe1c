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

from pydantic import ValidationError

from adapter_store.blobs import FILES, BlobGone, BlobStore, digest_of, sync
from adapter_store.store import SCHEMA, AdapterStore
from cluster.errors import Conflict, InvalidRequest, Unavailable
from cluster.state import Adapter, Value

REGISTRY = "registry.jsonl"

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


class Record(Value):
    """One adapter in a backup."""

    adapter: Adapter
    issued: int


async def back_up(
    store: AdapterStore, blobs: BlobStore, target: Path, progress: Progress
) -> BackedUp:
    """Write everything into the file `target`, which appears whole or not at all.

    Others may go on changing adapters: each is saved as it was at one moment.

    Raises:
        Unavailable: the files of an adapter are gone or damaged; its name is told.
    """
    draft = target.with_name(target.name + ".new")
    records = [Record(adapter=a, issued=await store.issued(a.name)) async for a in store.all()]
    saved: set[str] = set()
    try:
        with tarfile.open(draft, "w") as tar:
            for done, record in enumerate(records):
                progress(done, len(records))
                for version in record.adapter.versions.values():
                    if version.digest not in saved:
                        # Deleted meanwhile, its files stay until they are in here.
                        await store.reserve(version.digest)
                        await asyncio.to_thread(
                            _save_blob, tar, blobs, record.adapter.name, version.digest
                        )
                        saved.add(version.digest)
            header = {"schema": SCHEMA, "made_at": time.time()}
            lines = [json.dumps(header), *(r.model_dump_json() for r in records)]
            _add(tar, REGISTRY, "\n".join(lines).encode())
        sync(draft)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    progress(len(records), len(records))
    return BackedUp(adapters=len(records), blobs=len(saved), size_bytes=target.stat().st_size)


async def restore(
    store: AdapterStore, blobs: BlobStore, source: Path, progress: Progress
) -> Restored:
    """Put back what a backup holds; adapters whose names are taken stay as they are.

    Nothing is written before the whole registry of the backup has been read. May be run again
    after it was cut off.

    Raises:
        InvalidRequest: the file is not a backup, or a damaged one.
    """
    try:
        with tarfile.open(source, "r:") as tar:
            records = _read_registry(tar)
            restored, kept = [], []
            for done, record in enumerate(records):
                progress(done, len(records))
                is_new = await _restore_one(store, blobs, tar, record)
                (restored if is_new else kept).append(record.adapter.name)
    except (OSError, tarfile.TarError) as e:
        raise InvalidRequest(f"{source} cannot be read as a backup: {e}") from e
    progress(len(records), len(records))
    return Restored(restored=tuple(restored), kept=tuple(kept))


async def _restore_one(
    store: AdapterStore, blobs: BlobStore, tar: tarfile.TarFile, record: Record
) -> bool:
    if await store.get(record.adapter.name) is not None:
        return False
    for version in record.adapter.versions.values():
        if not await store.reserve(version.digest):
            raise Unavailable("the collector is at work; restore when it has ended")
        await asyncio.to_thread(_restore_blob, tar, blobs, record.adapter.name, version.digest)
    try:
        await store.restore(record.adapter, record.issued)
    except Conflict:
        return False  # registered meanwhile
    return True


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
            try:
                packed = tar.extractfile(f"blobs/{digest}/{file}")
            except KeyError:
                packed = None
            if packed is None:
                raise InvalidRequest(f"the backup lacks {file} of {name}")
            with packed, (folder / file).open("wb") as out:
                shutil.copyfileobj(packed, out)
        if digest_of(folder) != digest:
            raise InvalidRequest(f"the files of {name} are damaged in the backup")
        blobs.commit(folder)


def _read_registry(tar: tarfile.TarFile) -> list[Record]:
    try:
        with tar.extractfile(REGISTRY) as file:
            lines = file.read().decode().splitlines()
        schema = json.loads(lines[0])["schema"]
        if schema > SCHEMA:
            raise InvalidRequest(
                f"the backup was made by a newer release (schema {schema}, this one knows {SCHEMA})"
            )
        return [Record.model_validate_json(line) for line in lines[1:]]
    except (KeyError, TypeError, IndexError, UnicodeDecodeError, json.JSONDecodeError) as e:
        raise InvalidRequest(f"not a backup: its {REGISTRY} is missing or damaged ({e})") from e
    except ValidationError as e:
        raise InvalidRequest(f"a damaged backup: {e.errors()[0]['msg']} in {REGISTRY}") from e


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(content), int(time.time())
    tar.addfile(info, io.BytesIO(content))
