"""The first admin's key: made where keys are asked for and the settings have none."""

import os
from collections.abc import Callable
from pathlib import Path

from cluster.errors import ConfigError
from cluster.settings import ApiKey, Settings
from deployments.ingress.auth import new_key

FILE = "first-key.json"
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
        made = None if file.exists() else _make(file)
        kept = ApiKey.model_validate_json(file.read_bytes())
    except (OSError, ValueError) as e:
        raise ConfigError(
            f"{file}: {e}; remove it for a new first key, or list keys in auth.keys"
        ) from e
    if made is not None:
        show(made)
    return settings.model_copy(update={"auth": auth.model_copy(update={"keys": (kept,)})})


def _make(file: Path) -> str:
    """A new key; the file has its hash, for the eyes of this user alone."""
    key, sha256 = new_key()
    entry = ApiKey(name=_NAME, sha256=sha256, scope="admin")
    file.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(entry.model_dump_json())
    return key
