"""What others could reach of a cluster: by the network, and as other users of its machine."""

import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

from cluster.addresses import is_loopback

# Sockets that are beyond loopback, and why that is no way in.
BEYOND = {
    ("haproxy", socket.SOCK_DGRAM): "it sends its log by them, and reads nothing from them",
}


def reachable(processes: Iterable[psutil.Process]) -> list[str]:
    """Sockets of these processes that other machines could send to, but those of `BEYOND`."""
    found = []
    for process in processes:
        try:
            name, sockets = process.name(), process.net_connections("inet")
        except psutil.NoSuchProcess:
            continue
        for s in sockets:
            listens = s.status == psutil.CONN_LISTEN or s.type == socket.SOCK_DGRAM
            host = s.laddr.ip.removeprefix("::ffff:")
            if listens and not is_loopback(host) and (name, s.type) not in BEYOND:
                found.append(f"{name} {s.laddr.ip}:{s.laddr.port}")
    return found


def readable(path: Path) -> Iterator[Path]:
    """What other users could read or change there; what is in a closed folder, they cannot."""
    if path.lstat().st_mode & 0o077 and not path.is_symlink():
        yield path
        for inside in path.iterdir() if path.is_dir() else ():
            yield from readable(inside)
