"""The first admin's key: made where keys are asked for and the settings have none."""

import os
from collections.abc import Callable
from pathlib import Path

from cluster.errors import ConfigError
from cluster.settings import ApiKey, Settings
from deployments.ingress.auth import new_key

FILE = "first-key.json"
# The key itself, where there is no terminal to show it on.
KEY_FILE = "first-key.txt"
_NAME = "first"


def with_first_key(settings: Settings, show: Callable[[str], None]) -> Settings:
    """The settings with someone who can enter; as they are where keys are listed, or not asked for.

    The folder of the data keeps the key's hash: whoever starts the cluster again starts it with
    the same key, and without the file with a new one.

    Args:
        show: told the key when it is made, and never again.

    Raises:
        ConfigError: the file is damaged, or cannot be written.
    """
    auth = settings.auth
    if not auth.enabled or auth.keys:
        return settings
    file = settings.store.root / FILE
    try:
        if not file.exists():
            show(_make(file))
        kept = ApiKey.model_validate_json(file.read_bytes())
    except (OSError, ValueError) as e:
        raise ConfigError(
            f"{file}: {e}; remove it for a new first key, or list keys in auth.keys"
        ) from e
    return settings.model_copy(update={"auth": auth.model_copy(update={"keys": (kept,)})})


def _make(file: Path) -> str:
    """A new key; the file has its hash, for the eyes of this user alone."""
    key, sha256 = new_key()
    entry = ApiKey(name=_NAME, sha256=sha256, scope="admin")
    file.parent.mkdir(parents=True, exist_ok=True)
    _write(file, entry.model_dump_json())
    return key


def leave_key(root: Path, key: str) -> Path:
    """Write the key to a file of the data folder, over one that was left there before."""
    file = root / KEY_FILE
    file.unlink(missing_ok=True)
    _write(file, key + "\n")
    return file


def _write(file: Path, text: str) -> None:
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)
