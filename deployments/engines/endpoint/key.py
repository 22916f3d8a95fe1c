"""The key of an endpoint: only the replica that sends it has it, and tells it to nobody."""

import os

from cluster.errors import ConfigError
from cluster.settings import EndpointSettings


def read_key(endpoint: EndpointSettings, model: str) -> str | None:
    """The key now: a file may have another one than a moment ago. None where none is needed.

    Raises:
        ConfigError: it is not where the settings say; names the setting, never the key.
    """
    if endpoint.key_env is not None:
        where = f"models.{model}.endpoint.key_env: the environment variable {endpoint.key_env}"
        key = os.environ.get(endpoint.key_env, "")
    elif endpoint.key_file is not None:
        where = f"models.{model}.endpoint.key_file: {endpoint.key_file}"
        try:
            key = endpoint.key_file.expanduser().read_text()
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigError(f"{where} cannot be read ({type(e).__name__})") from None
    else:
        return None
    key = key.strip()
    if not key:
        raise ConfigError(f"{where} has no key in it")
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{where} has what no key has: it must be one line of plain characters")
    return key
