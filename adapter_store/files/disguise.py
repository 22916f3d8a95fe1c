"""What a file is instead of what its name says, by its content."""

from pathlib import Path

_POINTER = b"version https://git-lfs.github.com"


def disguise_of(path: Path) -> str:
    """As the end of a sentence; "" where its content tells nothing."""
    with path.open("rb") as file:
        start = file.read(len(_POINTER))
    if not start:
        return ": it is empty"
    if start == _POINTER:
        return " but a pointer of git-LFS; run `git lfs pull`, and register the files themselves"
    if start.lstrip()[:1] == b"<":
        return " but a web page, as a failed download leaves it"
    is_pickle = start[:1] == b"\x80" and len(start) > 1 and start[1] <= 5
    if is_pickle or start[:4] == b"PK\x03\x04":  # torch.save writes a zip around a pickle
        return " but a pickle or torch checkpoint, which can run code when it is read"
    return ""
