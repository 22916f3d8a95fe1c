"""Where a process may connect to: held at the connection, whatever a name resolved to before.

Every library that opens sockets by Python's own is held by it, redirects and all; the one that does
not, the hub's Xet client, is switched off in the children. Native code is held by the kernel where
that lets processes leave the network, and not at all where it does not.
"""

import contextlib
import ctypes
import errno
import ipaddress
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.addresses import CARRIERS, NOT_PUBLIC, HostEntry

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_CARRIERS = tuple(map(ipaddress.ip_network, (*CARRIERS, "2001::/32")))
_NOT_PUBLIC = tuple(map(ipaddress.ip_network, NOT_PUBLIC))
# In the middle of an IPv6 address: ISATAP, another carrier, which has no network of its own.
_ISATAP = (0x00005EFE, 0x02005EFE)
_SHARED = ipaddress.ip_network("100.64.0.0/10")
# Where clouds tell a machine its credentials, outside the link-local range.
_METADATA = {
    ipaddress.ip_address(address)
    for address in (
        "168.63.129.16",
        "100.100.100.200",
        "192.0.0.192",
        "fd00:ec2::254",
        "fd20:ce::254",
    )
}
_CONNECTS = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
# What would go on without the guard.
_LEAVES = frozenset(
    {
        "ctypes.dlopen",
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.spawn",
        "os.system",
        "subprocess.Popen",
    }
)
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000


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
    """From now on this process connects to nothing else (None: to nothing at all), and starts none.

    What may connect to anything may start others: an operator's credentials can need it.
    """
    is_free = reach is not None and reach.is_free
    libc = ctypes.CDLL(None)
    if not is_free:
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if reach is None:
        _leave_network(libc)

    def heed(event: str, args: tuple[Any, ...]) -> None:
        if event in _LEAVES and not is_free:
            raise PermissionError(errno.EPERM, f"{event} is not for work on strangers' files")
        if event not in _CONNECTS or args[1] is None:
            return
        address = args[1]
        is_internet = isinstance(address, tuple)
        if reach is not None and (reach.is_free or (is_internet and reach.permits(*address[:2]))):
            return
        raise Refused(f"{address[0]}, port {address[1]}" if is_internet else "a local socket")

    sys.addaudithook(heed)


def _leave_network(libc: ctypes.CDLL) -> None:
    """Into one that has nothing, where the kernel allows it; files stay whose they are."""
    user, group = os.geteuid(), os.getegid()
    # Root would lose its rights over others' files with a user namespace.
    if libc.unshare(_CLONE_NEWNET if user == 0 else _CLONE_NEWUSER | _CLONE_NEWNET) or user == 0:
        return
    with contextlib.suppress(OSError):  # without, ids have other names, and the same rights
        for file, said in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            Path(f"/proc/self/{file}").write_text(said)


def _plain(host: str) -> _Address:
    """IPv4 within IPv6 is the same host."""
    address = ipaddress.ip_address(host.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def _is_public(address: _Address) -> bool:
    is_special = any(address in network for network in _NOT_PUBLIC)
    return address.is_global and not is_special and not _is_odd(address)


def _is_private(address: _Address) -> bool:
    if address.is_link_local or address.is_unspecified:
        return False
    return address.is_loopback or (
        (address.is_private or address in _SHARED) and not _is_odd(address)
    )


def _is_odd(address: _Address) -> bool:
    """What is only meant by who names it."""
    is_isatap = address.version == 6 and int(address) >> 32 & 0xFFFFFFFF in _ISATAP
    is_carrier = is_isatap or any(address in network for network in _CARRIERS)
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
