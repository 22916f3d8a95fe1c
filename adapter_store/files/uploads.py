"""Uploads that wait to be registered: bytes that come in parts, over as many requests as it takes.

Each part is an object named by its offset, beside the blobs: any process may take the next part,
and an upload goes on where it broke off.
"""

import contextlib
import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapter_store.files.filesystems import open_filesystem, storage
from cluster.errors import Conflict, InvalidRequest, NotFound, PayloadTooLarge
from cluster.settings import StoreSettings

UPLOAD = "upload://"
PART_BYTES = 8 * 2**20
KEPT_S = 24 * 3600.0
_ABOUT = "about.json"
_PLACE = "the place of uploads"


class Uploads:
    """Unfinished and finished uploads. Its methods block: call them in a thread."""

    def __init__(self, settings: StoreSettings) -> None:
        self._url = f"{settings.blob_root}/uploads"
        self._max_bytes = settings.max_adapter_bytes

    def create(self, length: int, filename: str = "") -> str:
        """Announce an upload of `length` bytes; returns its id."""
        if not 0 < length <= self._max_bytes:
            raise PayloadTooLarge(
                f"an upload has 1 to {self._max_bytes} bytes (store.max_adapter_bytes)",
                param="upload-length",
            )
        files, root = open_filesystem(self._url)
        upload_id = uuid.uuid4().hex
        about = {"length": length, "filename": filename}
        with storage(_PLACE):
            files.makedirs(f"{root}/{upload_id}", exist_ok=True)
            files.pipe_file(f"{root}/{upload_id}/{_ABOUT}", json.dumps(about).encode())
        return upload_id

    def state(self, upload_id: str) -> tuple[int, int]:
        """Bytes that are there, and bytes announced; raises NotFound."""
        length = self._about(upload_id)["length"]
        return sum(size for _, size in self._parts(upload_id)), length

    def filename(self, upload_id: str) -> str:
        """What the client called the file; raises NotFound."""
        filename: str = self._about(upload_id)["filename"]
        return filename

    def append(self, upload_id: str, offset: int, data: bytes) -> int:
        """Add bytes at `offset`, which is where the upload ends now; returns where it ends then.

        Raises:
            Conflict: it ends elsewhere.
            PayloadTooLarge: it would be longer than announced.
        """
        there, length = self.state(upload_id)
        if offset != there:
            raise Conflict(f"the upload has {there} bytes; go on from there", param="upload-offset")
        if offset + len(data) > length:
            raise PayloadTooLarge(f"the upload was announced with {length} bytes")
        files, folder = self._folder(upload_id)
        if data:
            with storage(_PLACE):
                files.pipe_file(f"{folder}/{offset:020d}", data)
        return offset + len(data)

    def save(self, upload_id: str, target: Path) -> None:
        """Write a finished upload into a file; raises InvalidRequest when bytes are missing."""
        there, length = self.state(upload_id)
        if there < length:
            raise InvalidRequest(
                f"the upload has {there} of {length} bytes; send the rest first", param="source"
            )
        files, _ = open_filesystem(self._url)
        with target.open("wb") as out:
            for path, _ in self._parts(upload_id):
                with storage(_PLACE):
                    part = files.cat_file(path)
                out.write(part)

    def remove(self, upload_id: str) -> None:
        files, folder = self._folder(upload_id)
        self._about(upload_id)
        with storage(_PLACE), contextlib.suppress(FileNotFoundError):
            files.rm(folder, recursive=True)

    def outdated(self) -> Iterator[str]:
        """Uploads begun more than a day ago."""
        files, root = open_filesystem(self._url)
        for path in files.find(root):
            upload_id, name = path.rsplit("/", 2)[-2:]
            if name == _ABOUT and time.time() - files.modified(path).timestamp() > KEPT_S:
                yield upload_id

    def _about(self, upload_id: str) -> dict[str, Any]:
        files, folder = self._folder(upload_id)
        try:
            with storage(_PLACE):
                about: dict[str, Any] = json.loads(files.cat_file(f"{folder}/{_ABOUT}"))
        except FileNotFoundError as e:
            raise _unknown(upload_id) from e
        return about

    def _parts(self, upload_id: str) -> list[tuple[str, int]]:
        files, folder = self._folder(upload_id)
        with storage(_PLACE):
            found = files.ls(folder, detail=True)
        parts = {f["name"]: int(f["size"]) for f in found if not f["name"].endswith(_ABOUT)}
        end = 0
        for path, size in sorted(parts.items()):
            if int(path.rpartition("/")[2]) != end:
                raise Conflict("the upload's parts overlap: two clients sent it; begin a new one")
            end += size
        return sorted(parts.items())

    def _folder(self, upload_id: str) -> tuple[Any, str]:
        if not (len(upload_id) == 32 and set(upload_id) <= set("0123456789abcdef")):
            raise _unknown(upload_id)
        files, root = open_filesystem(self._url)
        return files, f"{root}/{upload_id}"


def _unknown(upload_id: str) -> NotFound:
    return NotFound(
        f"there is no upload {upload_id[:40]!r}; POST /v1/uploads begins one", param="source"
    )
