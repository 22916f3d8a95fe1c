"""Brings an adapter's files into a private folder: bounded, and nothing outside its place.

It runs in children (:mod:`.confined`), in two steps: `fetch` may connect to where the source is;
`unpack` opens what came as an archive, and connects to nothing.
"""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NoReturn, Protocol
from urllib.parse import unquote, urlsplit

import httpx

from adapter_store.files.beside import CHAT_TEMPLATE, TOKENIZER, TOKENIZER_CONFIG
from adapter_store.files.blobs import CONFIG, FILES, WEIGHTS
from adapter_store.files.filesystems import full, is_full, open_filesystem
from adapter_store.files.handles import Folder, Linked, NotPlain, opened, reader
from adapter_store.files.inbound import archives
from adapter_store.files.inbound.confined import Progress
from adapter_store.files.inbound.web import WebSite
from adapter_store.files.signatures import SIGNATURE
from adapter_store.files.uploads import UPLOAD, Uploads
from cluster.errors import AdapterRefused, RoundhouseError, SourceMissing, Unavailable
from cluster.settings import StoreSettings

CARD_FILE = "card.json"
WANTED = (*FILES, CARD_FILE, SIGNATURE)
# Looked at where they are, and never missed; a tokenizer only where it need not be fetched.
_BESIDE = (CHAT_TEMPLATE, TOKENIZER_CONFIG)
_BESIDE_HERE = (*_BESIDE, TOKENIZER)
# What the command line sends of a folder.
SENT = (*WANTED, *_BESIDE)
# What came as one, until it is unpacked.
_ARCHIVE = "archive"
# A file of a folder without an adapter's weights -> what the folder is, and what to do.
_OTHER_FOLDERS = {
    r"adapter_model(-\d+-of-\d+\.safetensors|\.safetensors\.index\.json)": (
        "is a part of an adapter that was saved in shards; load it with peft and save it again, "
        "with a max_shard_size that holds all of it"
    ),
    r"adapter_model.*\.(bin|pt|pth|ckpt)": (
        "is a pickle file, which can run code when it is read; save the adapter as "
        f"{WEIGHTS} (peft: save_pretrained(..., safe_serialization=True))"
    ),
    r"(\d+_)?adapters\.(safetensors|npz)": (
        "is an adapter of MLX; convert it to peft's form (names, and transposed matrices)"
    ),
    r"pytorch_lora_weights\.(safetensors|bin)": (
        "is an adapter of an image model, as diffusers saves it; this serves language models"
    ),
    r"train_config\.json": (
        "is of a policy that LeRobot trained; robots' policies are not language models"
    ),
    r".*\.gguf": "is llama.cpp's; register the peft folder that it was made from",
    r"(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?": (
        "is a whole model, not an adapter; serve it as a base model, or register the adapter's own "
        "folder"
    ),
    r"checkpoint-\d+": "is a folder of a training run; register one such folder, not the run",
    r".*\.(bin|pt|pth|ckpt)": (
        f"is a pickle file, which can run code when it is read; an adapter here is {WEIGHTS}"
    ),
}
STAGING = "the folder of adapters on their way in (store.data_dir)"
# Of a path that leads nowhere, and of an archive that is none (no number): what else a disk has to
# say is not the caller's fault.
_NO_PLACE = (None, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL)
_CHUNK = 4 << 20
# What is asked of object storage at a time.
_BLOCK = 8 << 20
_SMALL_BYTES = 1 << 20
_TOKENIZER_BYTES = 32 << 20
_WEB = ("http", "https")


def scheme_of(source: str) -> str:
    """The kind of place that a source is."""
    return source.partition("://")[0] if "://" in source else "file"


def fetch(settings: StoreSettings, source: str, folder: Path, progress: Progress) -> None:
    """Bring what there is of an adapter's files, its card, its signature; or the archive of them.

    Raises:
        AdapterRefused: the source is not there, or leaves its place.
        Unavailable: it cannot be reached now.
    """
    fetching = _Fetching(settings, folder, progress)
    with _explained(source):
        if source.startswith(UPLOAD):
            fetching.upload(source.removeprefix(UPLOAD))
        elif scheme_of(source) == "file":
            fetching.local(_local_path(source))
        else:
            fetching.remote(source)


def unpack(settings: StoreSettings, folder: Path, progress: Progress) -> None:
    """Open the archive that came, if one did; raises AdapterRefused."""
    archive = folder / _ARCHIVE
    if not archive.exists():
        return
    with archive.open("rb") as data:
        _Fetching(settings, folder, progress).extract(data)
    archive.unlink()


class _Fetching:
    def __init__(self, settings: StoreSettings, folder: Path, progress: Progress) -> None:
        self._settings = settings
        self._folder = folder
        self._progress = progress

    def upload(self, upload_id: str) -> None:
        self._copy(*Uploads(self._settings).content(upload_id), to=_ARCHIVE)

    def local(self, path: Path) -> None:
        if self._settings.follow_links:
            path = Path(os.path.realpath(path))
        home, place = _home_of(path)
        try:
            with opened(home) as handle:
                if stat.S_ISDIR(os.fstat(handle).st_mode):
                    self._local_folder(path, Folder(handle, place))
                else:
                    self._local_file(path, handle)
        except (FileNotFoundError, NotADirectoryError) as e:
            raise SourceMissing(f"{path} is not a folder or an archive", param="source") from e
        except Linked as e:
            real = os.path.realpath(path)
            _refuse(f"{e}; give the place itself, {real}, or set store.follow_links")
        except NotPlain as e:
            _refuse(f"{path}: {e}")

    def _local_file(self, path: Path, handle: int) -> None:
        if path.name in FILES:
            _refuse(f"{path} is a file of an adapter; give its folder, {path.parent}")
        with reader(handle) as data:
            self.extract(data)

    def _local_folder(self, path: Path, folder: Folder) -> None:
        for name in (*WANTED, *_BESIDE_HERE):
            try:
                with folder.open(name) as data:
                    size = os.fstat(data.fileno()).st_size
                    if name in WANTED or _is_small(name, size):
                        self._copy(_chunks(data), size, to=name)
            except FileNotFoundError:
                continue
            except (NotPlain, PermissionError) as e:
                if name not in WANTED:
                    continue
                if isinstance(e, PermissionError):
                    raise
                _refuse(f"{name} leads out of {path}, or is not a plain file; copy the file itself")
        _check_complete(self._folder, folder.names(), folder.above(WEIGHTS))

    def remote(self, source: str) -> None:
        place = _place(self._settings, source)
        if source.partition("?")[0].lower().endswith(archives.ENDINGS):
            with place.opened(source) as (data, size):
                self._copy(data, size, to=_ARCHIVE)
            return
        folder, query = _parted(source)
        found = []
        for name in (*WANTED, *_BESIDE):
            # Object stores that may not be listed call what is missing forbidden.
            forbidden = () if name in FILES else (PermissionError,)
            with (
                contextlib.suppress(FileNotFoundError, *forbidden),
                place.opened(f"{folder}/{name}{query}") as (data, size),
            ):
                if name in _BESIDE and (size is None or not _is_small(name, size)):
                    continue
                self._copy(data, size, to=name)
                found.append(name)
        _check_complete(self._folder, found if WEIGHTS in found else _listing(place, folder))

    def extract(self, archive: IO[bytes]) -> None:
        paths = archives.listed(archive, self._settings.max_adapter_bytes)
        place = archives.place_in(paths)
        with archives.members(archive) as members:
            for path, member in zip(paths, members, strict=True):
                if path.parent != place or path.name not in (*WANTED, *_BESIDE_HERE):
                    continue
                is_beside = path.name in _BESIDE_HERE
                if is_beside and not (member.is_plain and _is_small(path.name, member.size_bytes)):
                    continue
                if not member.is_plain:
                    _refuse(
                        f"the archive's member {member.name[:100]!r} is a link, or is not a plain "
                        "file; pack the file itself (tar -h --hard-dereference, zip without -y)"
                    )
                with member.open() as data:
                    self._copy(_chunks(data), member.size_bytes, to=path.name)
        _check_complete(self._folder, [path.name for path in paths])

    def _copy(self, data: Iterable[bytes], size: int | None, *, to: str) -> None:
        is_large = to in (WEIGHTS, _ARCHIVE)
        limit = self._settings.max_adapter_bytes if is_large else _limit_of(to)
        done = 0
        with _room(), (self._folder / to).open("wb") as out:
            for chunk in data:
                done += len(chunk)
                if done > limit:
                    setting = " (store.max_adapter_bytes)" if is_large else ""
                    _refuse(f"{to} is larger than {limit} bytes{setting}")
                out.write(chunk)
                self._progress(f"fetching {to}", done, size)


class _Place(Protocol):
    """Where something lies, by its URL."""

    def opened(
        self, url: str
    ) -> contextlib.AbstractContextManager[tuple[Iterable[bytes], int | None]]:
        """The bytes of a file, and how many they should be; raises FileNotFoundError,
        PermissionError."""

    def listing(self, url: str) -> list[str]:
        """Names in a folder."""


class _Bucket:
    """By fsspec. Its places and credentials are the operator's; clients name buckets and files."""

    @contextlib.contextmanager
    def opened(self, url: str) -> Iterator[tuple[Iterable[bytes], int | None]]:
        files, path = open_filesystem(url)
        size = files.info(path).get("size")
        with files.open(path, "rb", block_size=_BLOCK) as data:
            yield _chunks(data), None if size is None else int(size)

    def listing(self, url: str) -> list[str]:
        files, path = open_filesystem(url)
        entries = files.ls(path, detail=False)
        return [str(entry).rstrip("/").rpartition("/")[2] for entry in entries]


def _place(settings: StoreSettings, source: str) -> _Place:
    scheme = scheme_of(source)
    if scheme in _WEB:
        return WebSite([s for s in settings.sources if s in _WEB])
    # fsspec's ways to chain places, and to name another account's host: no container has a dot.
    if "::" in source or (scheme == "az" and ("@" in source or "." in urlsplit(source).netloc)):
        _refuse(f"{scheme}:// names one place: a bucket or repository, and what is in it")
    return _Bucket()


def _parted(source: str) -> tuple[str, str]:
    """A folder's URL, and what web servers' have behind it: it is of the URLs of its files, too."""
    if scheme_of(source) not in _WEB:
        return source.rstrip("/"), ""
    folder, mark, query = source.partition("?")
    return folder.rstrip("/"), mark + query


def _listing(place: _Place, source: str) -> list[str]:
    """Names in a remote folder, where it can be listed: to say what is there instead."""
    try:
        return place.listing(source)
    except (OSError, ValueError, NotImplementedError, httpx.HTTPError):  # as the back end has it
        return []


def _chunks(data: IO[bytes]) -> Iterator[bytes]:
    while chunk := data.read(_CHUNK):
        yield chunk


def _refuse(message: str) -> NoReturn:
    raise AdapterRefused(message, param="source")


def _local_path(source: str) -> Path:
    if source.startswith("file://"):
        parts = urlsplit(source)
        if parts.netloc not in ("", "localhost"):
            _refuse(f"source: file:// is of this machine, not of {parts.netloc[:100]}")
        if parts.query or parts.fragment:
            _refuse("source: in a file:// URL, ? is written %3F and # is written %23")
        return Path(unquote(parts.path))
    try:
        return Path(source).expanduser()
    except RuntimeError as e:
        raise AdapterRefused(f"source: {e}", param="source") from e


def _home_of(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """What a folder's files may not leave, and where in it the folder is. A snapshot in the model
    hub's cache has links into the files that snapshots share."""
    folder = Path(os.path.normpath(folder.absolute()))
    for snapshots in folder.parents:
        if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--"):
            return snapshots.parent, folder.relative_to(snapshots.parent).parts
    return folder, ()


def _limit_of(name: str) -> int:
    return _TOKENIZER_BYTES if name == TOKENIZER else _SMALL_BYTES


def _is_small(name: str, size_bytes: int) -> bool:
    """Whether a file beside the adapter is worth looking at."""
    return size_bytes <= _limit_of(name)


def _check_complete(folder: Path, found: list[str], below: Sequence[str] = ()) -> None:
    """Raises AdapterRefused, which says what the folder is instead.

    Args:
        found: what was there.
        below: folders in it that have an adapter.
    """
    missing = next((name for name in FILES if not (folder / name).is_file()), None)
    if missing is None:
        return
    if below:
        _refuse(
            f"the adapter lies in {below[0][:100]}, a folder below; give that one as the source"
        )
    for kind, remedy in _OTHER_FOLDERS.items():
        other = next((f for f in sorted(found) if re.fullmatch(kind, f)), None)
        if other is not None and not (folder / WEIGHTS).is_file():
            _refuse(f"{other[:100]} {remedy}")
    raised = AdapterRefused if found else SourceMissing
    raise raised(
        f"{missing} is missing; a peft adapter folder has {CONFIG} and {WEIGHTS}", param="source"
    )


@contextlib.contextmanager
def _explained(source: str) -> Iterator[None]:
    """What storage libraries raise, in our words."""
    try:
        yield
    except FileNotFoundError as e:
        raise SourceMissing(f"{source}: there is no such place", param="source") from e
    except PermissionError as e:
        raise SourceMissing(
            f"{e.filename or source} cannot be read by the server: {e.strerror or e}",
            param="source",
        ) from e
    except RoundhouseError:
        raise
    except (ImportError, ValueError) as e:
        raise AdapterRefused(f"{source}: {e}", param="source") from e
    except Exception as e:
        told = _of_storage(source, e)
        if told is None:
            raise
        raise told from e


def _of_storage(source: str, error: Exception) -> RoundhouseError | None:
    """Whose trouble it is; None for what no storage raises."""
    if source.startswith((UPLOAD, "file://")) or "://" not in source:
        if not isinstance(error, OSError):
            return None
        if error.errno in _NO_PLACE:
            return AdapterRefused(f"{source}: {error}", param="source")
    # Every back end of fsspec has errors of its own.
    return Unavailable(f"{source} cannot be reached: {error!r}"[:500], param="source")


@contextlib.contextmanager
def _room() -> Iterator[None]:
    """Tell that there is none, which only who writes hears."""
    try:
        yield
    except OSError as e:
        if is_full(e):
            raise full(STAGING, e) from e
        raise
