"""Where this cluster's servers can listen, how hosts are written, and which are not public."""

import contextlib
import ipaddress
import random
import re
import socket
from typing import NamedTuple

# Above what Ray gives its workers, below what Serve gives ingresses and the kernel to everybody.
_OURS = range(20_000, 30_000)
# They carry an IPv4 address to a gateway, which may be on the other side of every check:
# IPv4-compatible, NAT64, 6to4 and its relays. Teredo is among the IETF's own, below.
CARRIERS = ("192.88.99.0/24", "::/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16")
# By IANA's registries, and Azure's metadata, which has a public one. What Python calls global
# differs by its patch release.
NOT_PUBLIC = (
    "0.0.0.0/8",  # this network
    "10.0.0.0/8",
    "100.64.0.0/10",  # shared: carriers', some clouds' metadata
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",  # link-local: most clouds' metadata
    "172.16.0.0/12",
    "192.0.0.0/24",  # the IETF's; metadata of old, too
    "192.0.2.0/24",  # documentation
    "192.168.0.0/16",
    "198.18.0.0/15",  # benchmarks
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",
    "100::/64",
    "2001::/23",
    "2001:db8::/32",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",  # site-local
    "ff00::/8",
    *CARRIERS,
)
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,252})|\[[0-9a-fA-F:.]+\]")


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


class HostEntry(NamedTuple):
    """Of a list of hosts: one name, or addresses, on one port or on all."""

    host: str
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None
    port: int | None


def host_entry(text: str) -> HostEntry:
    """`name`, `name:443`, `10.0.0.0/8`, `10.0.0.7:9000`, `[fd00::7]:9000`, `fd00::/8`.

    Raises:
        ValueError: it is none of these.
    """
    with contextlib.suppress(ValueError):
        return HostEntry(text, ipaddress.ip_network(text), None)
    host, _, port = text.rpartition(":") if ":" in text else (text, "", "0")
    if not (_HOST.fullmatch(host) and port.isascii() and port.isdecimal() and int(port) < 65_536):
        raise ValueError(f"{text!r} must be a name, an address or a network, with or without :PORT")
    host = host.strip("[]")
    network = None
    with contextlib.suppress(ValueError):
        network = ipaddress.ip_network(host)
    return HostEntry(host, network, int(port) or None)
