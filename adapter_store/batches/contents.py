"""What is in the files of batches: bytes in parts, beside the blobs.

A file is a folder of objects that are named by the time of their writing. So what comes in pieces,
as uploads and results do, is kept piece by piece, in a folder and in object storage alike, and each
piece is whole or not there. Two who write the same file, which a lost lease may allow for a moment,
take nothing from each other.
"""

import contextlib
import time
import uuid
from collections.abc import Iterator
from typing import Any

from adapter_store.files.filesystems import open_filesystem, storage
from cluster.settings import StoreSettings

_PLACE = "the place of batch files"
_READ_BYTES = 2**20
_HIDDEN = ".new"


class Contents:
    """Its methods block: call them in a thread.

    All raise Unavailable when the place cannot be used, StorageFull when it has no room.
    """

    def __init__(self, settings: StoreSettings) -> None:
        self._url = f"{settings.blob_root}/batches"

    def add(self, file_id: str, piece: bytes) -> None:
        """Keep a piece behind those that are there."""
        files, folder = self._folder(file_id)
        path = f"{folder}/{time.time_ns():020}-{uuid.uuid4().hex[:8]}"
        with storage(_PLACE):
            files.makedirs(folder, exist_ok=True)
            # Shown when whole, as object storage does it by itself.
            hidden = f"{path}{_HIDDEN}" if self._is_local else path
            files.pipe_file(hidden, piece)
            if hidden != path:
                files.mv(hidden, path)

    def pieces(self, file_id: str) -> Iterator[bytes]:
        """The content, in pieces of any size; nothing where there is no such file."""
        files, _ = self._folder(file_id)
        for path in self._paths(file_id):
            with storage(_PLACE), files.open(path, "rb") as file:
                while piece := file.read(_READ_BYTES):
                    yield piece

    def lines(self, file_id: str) -> Iterator[bytes]:
        """The content line by line, without the line ends."""
        rest = b""
        for piece in self.pieces(file_id):
            *whole, rest = (rest + piece).split(b"\n")
            yield from whole
        if rest:
            yield rest

    def size(self, file_id: str) -> int:
        """In bytes."""
        files, _ = self._folder(file_id)
        with storage(_PLACE):
            return sum(files.size(path) for path in self._paths(file_id))

    def remove(self, file_id: str) -> None:
        """Nothing happens where there is none."""
        files, folder = self._folder(file_id)
        with storage(_PLACE), contextlib.suppress(FileNotFoundError):
            files.rm(folder, recursive=True)

    @property
    def _is_local(self) -> bool:
        return "://" not in self._url

    def _paths(self, file_id: str) -> list[str]:
        files, folder = self._folder(file_id)
        with storage(_PLACE), contextlib.suppress(FileNotFoundError):
            names = (str(path) for path in files.ls(folder, detail=False))
            return sorted(name for name in names if not name.endswith(_HIDDEN))
        return []

    def _folder(self, file_id: str) -> tuple[Any, str]:
        files, root = open_filesystem(self._url)
        return files, f"{root}/{file_id}"
