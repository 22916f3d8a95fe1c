"""What Ray Serve is told about the command that it starts as HAProxy."""

import sysconfig
from pathlib import Path

from cluster.errors import ConfigError
from cluster.settings import HttpSettings
from deployments.proxy.command import HAPROXY_AT
from deployments.proxy.config import MAX_CONNECTIONS, PER_ADDRESS


def proxy_environment(settings: HttpSettings) -> dict[str, str]:
    """Where the command is, and its limits where the settings have some.

    Raises:
        ConfigError: it is not there.
    """
    limits = {
        MAX_CONNECTIONS: settings.max_connections,
        PER_ADDRESS: settings.max_connections_per_address,
    }
    told = {name: str(limit) for name, limit in limits.items() if limit is not None}
    return {HAPROXY_AT: str(our_haproxy())} | told


def our_haproxy() -> Path:
    """The command that becomes HAProxy.

    Raises:
        ConfigError: it is not where this Python's commands are.
    """
    command = Path(sysconfig.get_path("scripts"), "roundhouse-haproxy")
    if not command.is_file():
        raise ConfigError(
            f"{command} is missing; install the project again (`make setup`, or pip install -e .)"
        )
    return command
