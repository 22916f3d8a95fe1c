"""Where this cluster's servers can listen."""

import contextlib
import ipaddress
import random
import socket

# Above what Ray gives its workers, below what Serve gives ingresses and the kernel to everybody.
_OURS = range(20_000, 30_000)


def is_loopback(host: str | None) -> bool:
    """Whether only this machine reaches it."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host or "").is_loopback
    return host == "localhost"


def port_problem(host: str, port: int) -> str | None:
    """Why the endpoint could not listen there, or None."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except OSError as e:
            return f"{host}:{port}: {e.strerror} (http.port)"
    return None


def host_problem(host: str, nodes: int) -> str | None:
    """Why nodes could not pass requests on to each other's ingresses, or None."""
    if nodes > 1 and is_loopback(host):
        return (
            f"http.host: the Ray cluster has {nodes} nodes, which cannot reach each other at "
            f"{host}; set 0.0.0.0"
        )
    return None


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on, nor is given by chance."""
    candidates = iter(random.sample(_OURS, len(_OURS)))
    free = (port for port in candidates if port_problem("0.0.0.0", port) is None)
    return [next(free) for _ in range(count)]
