"""From wherever an adapter is to a private folder here: bounded, and nothing outside its place.

/a/folder, file:///a/folder          s3://bucket/folder   gs://...   az://container/folder
hf://ORG/REPO[@REVISION][/FOLDER]    https://host/folder/ upload://ID
... or any of these with an archive in the place of the folder: .zip, .tar, .tar.gz
"""

import contextlib
import errno
import lzma
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, NoReturn

from adapter_store.files.beside import CHAT_TEMPLATE, TOKENIZER, TOKENIZER_CONFIG
from adapter_store.files.blobs import CONFIG, FILES, WEIGHTS
from adapter_store.files.filesystems import full, is_full, open_filesystem, storage
from adapter_store.files.signatures import SIGNATURE
from adapter_store.files.uploads import UPLOAD, Uploads
from cluster.errors import AdapterRefused, RoundhouseError, SourceMissing, Unavailable
from cluster.settings import StoreSettings

CARD_FILE = "card.json"
# Told what is being done, and of how many bytes how many are done (None: not known).
Progress = Callable[[str, int, int | None], None]

WANTED = (*FILES, CARD_FILE, SIGNATURE)
# Looked at where they are, and never missed; a tokenizer only where it need not be fetched.
_BESIDE = (CHAT_TEMPLATE, TOKENIZER_CONFIG)
_BESIDE_HERE = (*_BESIDE, TOKENIZER)
# What the command line sends of a folder.
SENT = (*WANTED, *_BESIDE)
ARCHIVES = (".zip", ".tar.gz", ".tar.xz", ".tar.bz2", ".tar", ".tgz")
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
# Of a path that leads nowhere, and of an archive that is none (no number): what else a disk has to
# say is not the caller's fault.
_NO_PLACE = (None, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL)
_STAGING = "the folder of adapters on their way in (store.data_dir)"
_CHUNK = 4 * 2**20
_SMALL_BYTES = 1 << 20
_TOKENIZER_BYTES = 32 << 20
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


class Sources:
    """Fetches adapters from the kinds of places that the settings allow. Blocks: use a thread."""

    def __init__(self, settings: StoreSettings, uploads: Uploads) -> None:
        self._allowed = settings.sources
        self._max_bytes = settings.max_adapter_bytes
        self._staging = staging_of(settings)
        self._uploads = uploads

    def fetch(self, source: str, progress: Progress) -> Path:
        """A new folder with what there is of an adapter's files, its card, its signature.

        The caller removes it.

        Raises:
            AdapterRefused: the source is not allowed, is not there, or leaves its place.
            Unavailable: it cannot be reached now, or there is no room for it (StorageFull).
        """
        scheme = self._scheme(source)
        with storage(_STAGING):
            self._staging.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(dir=self._staging))
        try:
            with _explained(source):
                if scheme == "upload":
                    self._fetch_upload(source, folder, progress)
                elif scheme == "file":
                    self._fetch_local(_local_path(source), folder, progress)
                else:
                    self._fetch_remote(source, folder, progress)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return folder

    def name_of(self, source: str) -> str:
        """The name that a place suggests: its last folder, or its archive without the ending."""
        if source.startswith(UPLOAD):
            source = self._uploads.filename(source.removeprefix(UPLOAD))
        name = source.partition("?")[0].rstrip("/").rpartition("/")[2]
        for ending in ARCHIVES:
            name = name.removesuffix(ending)
        return name

    def _scheme(self, source: str) -> str:
        if not source or not source.isprintable():
            _refuse("source must be the path of a folder or archive, or a URL")
        scheme = source.partition("://")[0] if "://" in source else "file"
        if scheme not in self._allowed:
            _refuse(
                f"{scheme[:20]}:// is not a source here; allowed are {', '.join(self._allowed)} "
                "(store.sources)"
            )
        return scheme

    def _fetch_upload(self, source: str, folder: Path, progress: Progress) -> None:
        with _temporary(folder) as archive:
            self._uploads.save(source.removeprefix(UPLOAD), archive)
            self._extract(archive, folder, progress)

    def _fetch_local(self, path: Path, folder: Path, progress: Progress) -> None:
        if path.name in FILES and path.is_file():
            _refuse(f"{path} is a file of an adapter; give its folder, {path.parent}")
        if path.is_file():
            self._extract(path, folder, progress)
            return
        if not path.is_dir():
            raise SourceMissing(f"{path} is not a folder or an archive", param="source")
        for name in WANTED:
            file = path / name
            if not file.exists():
                continue
            if not file.is_file() or not file.resolve().is_relative_to(_home_of(path)):
                _refuse(f"{name} leads out of {path}, or is not a plain file; copy the file itself")
            with file.open("rb") as data:
                self._copy(data, folder / name, file.stat().st_size, progress)
        for name in _BESIDE_HERE:
            file = path / name
            with contextlib.suppress(OSError):
                if file.is_file() and _is_small(name, file.stat().st_size):
                    shutil.copyfile(file, folder / name)
        entries = sorted(path.iterdir())
        below = [e.name for e in entries if (e / WEIGHTS).is_file()]
        _check_complete(folder, [e.name for e in entries], below)

    def _fetch_remote(self, source: str, folder: Path, progress: Progress) -> None:
        files, path = open_filesystem(source)
        if path.partition("?")[0].endswith(ARCHIVES):
            with _temporary(folder) as archive:
                with files.open(path, "rb") as data:
                    self._copy(data, archive, _size(files, path), progress)
                self._extract(archive, folder, progress)
            return
        found = []
        for name in (*WANTED, *_BESIDE):
            # Object stores that may not be listed call what is missing forbidden.
            forbidden = () if name in FILES else (PermissionError,)
            with contextlib.suppress(FileNotFoundError, *forbidden):
                size = _size(files, f"{path}/{name}")
                if name in _BESIDE and (size is None or not _is_small(name, size)):
                    continue
                with files.open(f"{path}/{name}", "rb") as data:
                    self._copy(data, folder / name, size, progress)
                found.append(name)
        _check_complete(folder, found if WEIGHTS in found else _listing(files, path))

    def _extract(self, archive: Path, folder: Path, progress: Progress) -> None:
        paths = self._listed(archive)
        place = _place_in(paths)
        with _members(archive) as members:
            for path, member in zip(paths, members, strict=True):
                if path.parent != place or path.name not in (*WANTED, *_BESIDE_HERE):
                    continue
                is_beside = path.name in _BESIDE_HERE
                if is_beside and not (member.is_plain and _is_small(path.name, member.size_bytes)):
                    continue
                if not member.is_plain:
                    _refuse(f"the archive's member {member.name[:100]!r} is not a plain file")
                with member.open() as data:
                    self._copy(data, folder / path.name, member.size_bytes, progress)
        _check_complete(folder, [path.name for path in paths])

    def _listed(self, archive: Path) -> list[PurePosixPath]:
        """Paths of the members, none of which leaves the archive."""
        paths, total = [], 0
        with _members(archive) as members:
            for member in members:
                path = PurePosixPath(
                    member.name.replace("\\", "/")
                )  # as old ones of Windows have it
                paths.append(path)
                total += member.size_bytes
                if path.is_absolute() or ".." in path.parts:
                    _refuse(f"the archive's member {member.name[:100]!r} leaves the archive")
                if len(paths) > _MAX_MEMBERS or total > self._max_bytes:
                    _refuse(
                        f"the archive has more than {_MAX_MEMBERS} members or {self._max_bytes} "
                        "bytes (store.max_adapter_bytes)"
                    )
        return paths

    def _copy(self, data: IO[bytes], target: Path, size: int | None, progress: Progress) -> None:
        is_small = target.name != WEIGHTS
        limit = _TOKENIZER_BYTES if target.name == TOKENIZER else _SMALL_BYTES
        limit = limit if is_small else self._max_bytes
        done = 0
        with target.open("wb") as out:
            while chunk := data.read(_CHUNK):
                done += len(chunk)
                if done > limit:
                    setting = "" if is_small else " (store.max_adapter_bytes)"
                    _refuse(f"{target.name} is larger than {limit} bytes{setting}")
                out.write(chunk)
                progress(f"fetching {target.name}", done, size)


def staging_of(settings: StoreSettings) -> Path:
    """Where adapters are on their way in."""
    return settings.root / "staging"


def _refuse(message: str) -> NoReturn:
    raise AdapterRefused(message, param="source")


def _local_path(source: str) -> Path:
    try:
        return Path(source.removeprefix("file://")).expanduser()
    except RuntimeError as e:
        raise AdapterRefused(f"source: {e}", param="source") from e


def _home_of(folder: Path) -> Path:
    """What a folder's files may not leave. A snapshot in the model hub's cache has links into the
    files that snapshots share."""
    folder = folder.resolve()
    is_snapshot = folder.parent.name == "snapshots" and folder.parents[1].name.startswith(
        "models--"
    )
    return folder.parents[1] if is_snapshot else folder


def _is_small(name: str, size_bytes: int) -> bool:
    """Whether a file beside the adapter is worth looking at."""
    return size_bytes <= (_TOKENIZER_BYTES if name == TOKENIZER else _SMALL_BYTES)


def _place_in(paths: list[PurePosixPath]) -> PurePosixPath:
    """Where in an archive its adapter is: the folder of the weights that lie highest."""
    own = [path for path in paths if "__MACOSX" not in path.parts]
    places = {p.parent for p in own if p.name == WEIGHTS} or {
        p.parent for p in own if p.name == CONFIG
    }
    depth = min((len(place.parts) for place in places), default=0)
    highest = [place for place in places if len(place.parts) == depth]
    if len(highest) > 1:
        _refuse("the archive holds more than one adapter; register them one by one")
    return highest[0] if highest else PurePosixPath(".")


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


def _size(files: Any, path: str) -> int | None:
    size = files.info(path).get("size")
    return int(size) if size is not None else None


def _listing(files: Any, path: str) -> list[str]:
    """Names in a remote folder, where it can be listed: to say what is there instead.

    Not every back end can (NotImplementedError), and not every web server's page is text
    (ValueError).
    """
    try:
        return [str(entry).rstrip("/").rpartition("/")[2] for entry in files.ls(path, detail=False)]
    except (OSError, ValueError, NotImplementedError):
        return []


@contextlib.contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """A file beside the folder, for an archive on its way."""
    path = folder.with_name(folder.name + ".archive")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


class _Packed(NamedTuple):
    """A member of an archive."""

    name: str
    size_bytes: int
    is_plain: bool
    open: Callable[[], IO[bytes]]


@contextlib.contextmanager
def _members(archive: Path) -> Iterator[Iterator[_Packed]]:
    """The members of a zip or tar, read as they are asked for."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                yield (_in_zip(zipped, member) for member in zipped.infolist())
        else:
            with tarfile.open(archive, "r:*", tarinfo=_TarInfo) as tar:
                yield (_in_tar(tar, member) for member in tar)
    except _BROKEN_ARCHIVE as e:
        why = " ".join(str(e).split())[:300]
        raise AdapterRefused(f"not an archive that can be read: {why}", param="source") from e


class _TarInfo(tarfile.TarInfo):
    """Refuses headers that would fill the memory: tarfile reads long names and the like whole."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _LONG_HEADERS and self.size > _SMALL_BYTES:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        member: tarfile.TarInfo = super()._proc_member(tar)  # type: ignore[misc]  # not in its stubs
        return member


def _in_zip(zipped: zipfile.ZipFile, member: zipfile.ZipInfo) -> _Packed:
    is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
    is_plain = not member.is_dir() and not is_link
    return _Packed(member.filename, member.file_size, is_plain, lambda: zipped.open(member))


def _in_tar(tar: tarfile.TarFile, member: tarfile.TarInfo) -> _Packed:
    def open_plain() -> IO[bytes]:
        data = tar.extractfile(member)
        if data is None:
            raise tarfile.ReadError(f"{member.name} is not a plain file")
        return data

    return _Packed(member.name, member.size, member.isreg(), open_plain)


@contextlib.contextmanager
def _explained(source: str) -> Iterator[None]:
    """What storage libraries raise, in our words."""
    try:
        yield
    except FileNotFoundError as e:
        if isinstance(e.__cause__, OSError) and not isinstance(e.__cause__, FileNotFoundError):
            # What fsspec makes of a web server that does not answer.
            raise Unavailable(f"{source} cannot be reached: {e.__cause__}", param="source") from e
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
    if is_full(error):
        return full(_STAGING, error)
    if source.startswith((UPLOAD, "file://")) or "://" not in source:
        if not isinstance(error, OSError):
            return None
        if error.errno in _NO_PLACE:
            return AdapterRefused(f"{source}: {error}", param="source")
    # Every back end of fsspec has errors of its own.
    return Unavailable(f"{source} cannot be reached: {error!r}"[:500], param="source")
