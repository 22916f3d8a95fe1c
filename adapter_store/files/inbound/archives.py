"""Zip and tar archives, in which an adapter may come."""

import contextlib
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import IO, NamedTuple

from adapter_store.files.blobs import CONFIG, WEIGHTS
from cluster.errors import AdapterRefused

ENDINGS = (".zip", ".tar.gz", ".tar.xz", ".tar.bz2", ".tar", ".tgz")
_LONG_HEADER_BYTES = 1 << 20
_LONG_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_MAX_MEMBERS = 10_000
# RuntimeError: encrypted, or packed in a way that Python does not know (NotImplementedError).
_BROKEN_ARCHIVE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    ValueError,
    RuntimeError,
)


class Packed(NamedTuple):
    """A member of an archive."""

    name: str
    path: PurePosixPath
    size_bytes: int
    is_plain: bool
    open: Callable[[], IO[bytes]]


def listed(archive: IO[bytes], max_bytes: int) -> list[PurePosixPath]:
    """Paths of the members, none of which leaves the archive; raises AdapterRefused."""
    paths, total = [], 0
    with members(archive) as found:
        for member in found:
            paths.append(member.path)
            total += member.size_bytes
            if member.path.is_absolute() or ".." in member.path.parts:
                raise _refused(f"the archive's member {member.name[:100]!r} leaves the archive")
            if len(paths) > _MAX_MEMBERS or total > max_bytes:
                raise _refused(
                    f"the archive has more than {_MAX_MEMBERS} members or {max_bytes} bytes "
                    "(store.max_adapter_bytes)"
                )
    return paths


def place_in(paths: list[PurePosixPath]) -> PurePosixPath:
    """Where in an archive its adapter is: the folder of the weights that lie highest."""
    own = [path for path in paths if "__MACOSX" not in path.parts]
    places = {p.parent for p in own if p.name == WEIGHTS} or {
        p.parent for p in own if p.name == CONFIG
    }
    depth = min((len(place.parts) for place in places), default=0)
    highest = [place for place in places if len(place.parts) == depth]
    if len(highest) > 1:
        raise _refused("the archive holds more than one adapter; register them one by one")
    return highest[0] if highest else PurePosixPath(".")


@contextlib.contextmanager
def members(archive: IO[bytes]) -> Iterator[Iterator[Packed]]:
    """The members of a zip or tar, read as they are asked for."""
    try:
        archive.seek(0)
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                yield (_in_zip(zipped, member) for member in zipped.infolist())
        else:
            archive.seek(0)
            with tarfile.open(fileobj=archive, mode="r:*", tarinfo=_TarInfo) as tar:
                yield (_in_tar(tar, member) for member in tar)
    except _BROKEN_ARCHIVE as e:
        why = " ".join(str(e).split())[:300]
        raise AdapterRefused(
            f"not an archive that can be read ({', '.join(ENDINGS)}): {why}", param="source"
        ) from e


class _TarInfo(tarfile.TarInfo):
    """Refuses headers that would fill the memory: tarfile reads long names and the like whole."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _LONG_HEADERS and self.size > _LONG_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        member: tarfile.TarInfo = super()._proc_member(tar)  # type: ignore[misc]  # not in its stubs
        return member


def _in_zip(zipped: zipfile.ZipFile, member: zipfile.ZipInfo) -> Packed:
    is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
    is_plain = not member.is_dir() and not is_link
    return Packed(
        member.filename,
        _path(member.filename),
        member.file_size,
        is_plain,
        lambda: zipped.open(member),
    )


def _in_tar(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Packed:
    def open_plain() -> IO[bytes]:
        data = tar.extractfile(member)
        if data is None:
            raise tarfile.ReadError(f"{member.name} is not a plain file")
        return data

    return Packed(member.name, _path(member.name), member.size, member.isreg(), open_plain)


def _path(name: str) -> PurePosixPath:
    return PurePosixPath(name.replace("\\", "/"))  # as old ones of Windows have it


def _refused(message: str) -> AdapterRefused:
    return AdapterRefused(message, param="source")
