"""Where a process may connect to: held at the connection, whatever a name resolved to before.

Every library that opens sockets by Python's own is held by it, redirects and all; the one that does
not, the hub's Xet client, is switched off in the children.
"""

import ipaddress
import socket
import sys
from dataclasses import dataclass
from typing import Any

from cluster.addresses import HostEntry

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NETWORKS = ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96")
# They carry an IPv4 address to a gateway, which may be on the other side of every check: NAT64,
# 6to4, Teredo, IPv4-compatible.
_CARRIERS = tuple(ipaddress.IPv6Network(network) for network in _NETWORKS)
_SHARED = ipaddress.ip_network("100.64.0.0/10")
# Where clouds tell a machine its credentials, outside the link-local range.
_METADATA = {
    ipaddress.ip_address(address)
    for address in ("168.63.129.16", "100.100.100.200", "fd00:ec2::254", "fd20:ce::254")
}
_CONNECTS = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})


class Refused(OSError):
    """A connection that was not made; says where to."""


@dataclass(frozen=True)
class Reach:
    """What may be connected to.

    Attributes:
        is_free: anything: the places are the operator's, as the credentials for them are.
        hosts: with `is_private`, see `store.allow_hosts` and `store.allow_private`.
    """

    is_free: bool = False
    is_private: bool = False
    hosts: tuple[HostEntry, ...] = ()

    def permits(self, host: str, port: int) -> bool:
        """Whether an address may be connected to."""
        address = _plain(host)
        if self.is_free or _is_public(address) or (self.is_private and _is_private(address)):
            return True
        return any(_covers(entry, address, port) for entry in self.hosts)


def hold(reach: Reach | None) -> None:
    """From now on this process connects to nothing else (None: to nothing at all)."""

    def heed(event: str, args: tuple[Any, ...]) -> None:
        if event not in _CONNECTS or args[1] is None:
            return
        address = args[1]
        is_internet = isinstance(address, tuple)
        if reach is not None and (reach.is_free or (is_internet and reach.permits(*address[:2]))):
            return
        raise Refused(f"{address[0]}, port {address[1]}" if is_internet else "a local socket")

    sys.addaudithook(heed)


def _plain(host: str) -> _Address:
    """IPv4 within IPv6 is the same host."""
    address = ipaddress.ip_address(host.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def _is_public(address: _Address) -> bool:
    return address.is_global and not _is_odd(address)


def _is_private(address: _Address) -> bool:
    if address.is_link_local or address.is_unspecified:
        return False
    return address.is_loopback or (
        (address.is_private or address in _SHARED) and not _is_odd(address)
    )


def _is_odd(address: _Address) -> bool:
    """What is only meant by who names it."""
    is_carrier = any(address in network for network in _CARRIERS)
    return is_carrier or address.is_multicast or address.is_reserved or address in _METADATA


def _covers(entry: HostEntry, address: _Address, port: int) -> bool:
    if entry.port not in (None, port):
        return False
    if entry.network is not None:
        return address in entry.network
    try:
        found = socket.getaddrinfo(entry.host, port, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return any(_plain(str(sockaddr[0])) == address for *_, sockaddr in found)
