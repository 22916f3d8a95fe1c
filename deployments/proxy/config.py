"""Serve's configuration of HAProxy, made ours: limits, errors in our shape, nothing to the network.

No setting of Serve's changes these lines. Each edit must find its line, or HAProxy does not start:
a proxy that has lost its limits would look like one that has them.
"""

import json
import os
import re
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.calls import CALLS
from cluster.errors import RequestTimedOut, RoundhouseError, Unavailable

# A request's head, and as much of its body as a buffer takes, comes within that time.
_REQUEST_S = 30
# A client that neither sends what it has announced nor reads what it is sent.
_SILENT_S = 60
_KEEP_ALIVE_S = 60
# A connection at its worst: two buffers on each side, and what HAProxy knows of it.
_CONNECTION_BYTES = 80 * 2**10
# Connections may take this share of the memory.
_MEMORY_SHARE = 16
_OWN_FILES = 200
_MOST_CONNECTIONS = 50_000

# In the environment, as the settings `http.max_connections` and `..._per_address` are given there.
MAX_CONNECTIONS = "ROUNDHOUSE_HTTP__MAX_CONNECTIONS"
PER_ADDRESS = "ROUNDHOUSE_HTTP__MAX_CONNECTIONS_PER_ADDRESS"

# What is no HTTP at all, or has longer headers than 15 KiB, HAProxy refuses in its own words (400).
_ERRORS: dict[int, RoundhouseError] = {
    408: RequestTimedOut(f"the request did not come within {_REQUEST_S} s"),
    500: RoundhouseError("the proxy failed; try again"),
    502: Unavailable("the ingress that had this request died; try again"),
    503: Unavailable("no ingress answers at this moment; try again"),
    504: Unavailable("no answer within http.request_timeout_s"),
}
_REASONS = {
    408: "Request Timeout",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
# An ingress that dies before it has answered: another one may be asked the same. What changes
# something is not asked twice.
_MAY_BE_REPEATED = f"{{ method GET HEAD }} || {{ path /v1/route {' '.join(CALLS)} }}"


@dataclass(frozen=True)
class Limits:
    """Of one proxy process."""

    connections: int
    per_address: int

    @classmethod
    def here(cls, environment: Mapping[str, str]) -> "Limits":
        """As the environment says, or as many as memory and open files allow."""
        most = int(environment.get(MAX_CONNECTIONS) or _affordable())
        # One address must not be able to take all; it may be a load balancer's, though.
        return cls(most, int(environment.get(PER_ADDRESS) or max(1, most // 2)))


def ours(text: str, folder: Path, limits: Limits) -> str:
    """Serve's configuration with our edits; the pages for errors are written to `folder`.

    Raises:
        ValueError: an edit found nothing to change.
    """
    errors = "\n".join(f"    errorfile {status} {page}" for status, page in _pages(folder).items())
    for pattern, replacement in (
        (r"    option splice-(request|response)\n", ""),
        # Counters are for this machine; the endpoint is where it is told to be.
        (r"^((?:frontend prometheus|listen stats)\n +bind ).*:(\d+)", r"\g<1>127.0.0.1:\2"),
        (r"mode 666 level admin", "mode 600 level admin"),
        (r"    maxconn \d+", f"    maxconn {limits.connections}"),
        (r"    timeout client \d+s", _TIMEOUTS),
        (r"    timeout http-keep-alive \d+s\n", ""),
        (r"    retry-on .*", "    retry-on conn-failure empty-response"),
        (r"(    errorfile \d+ .*\n)+", f"{errors}\n"),
        (r"(frontend http_frontend\n +bind .*\n)", rf"\1{_guards(limits)}"),
        (r"^(backend default_backend\n).*", r"\1    http-request deny deny_status 503"),
    ):
        text = _edited(text, pattern, replacement)
    return _edited(text, _CHECKED, _CHECKED + _FALLBACK) if has_ingresses(text) else text


def twin_of(text: str, folder: Path) -> str:
    """Of our configuration, what a second process needs: the endpoint, and a socket of its own."""
    text = _edited(text, r"stats socket \S+", f"stats socket {folder / TWIN_SOCKET}")
    text = _edited(text, r"frontend prometheus\n( +.*\n)+", "")
    return _edited(text, r"listen stats\n( +.*\n?)+", "")


def has_ingresses(text: str) -> bool:
    """Whether it knows any."""
    return re.search(r"^    server ", text, re.MULTILINE) is not None


def ports(text: str) -> list[str]:
    """Where it listens."""
    return re.findall(r"^ +bind .*$", text, re.MULTILINE)


TWIN_SOCKET = "twin.sock"

_TIMEOUTS = f"""    timeout client {_SILENT_S}s
    timeout http-request {_REQUEST_S}s
    timeout http-keep-alive {_KEEP_ALIVE_S}s
    option http-buffer-request"""


_CHECKED = "    http-check expect status 200\n"
# Serve's own proxy, asked where no ingress is left: a request waits there until there is one. What
# it says itself is not for our clients.
_FALLBACK = """    http-response deny deny_status 503 if { srv_name -m beg SERVE_PROXY_ACTOR } \
{ status 404 500 503 } { res.hdr(content-type) -m beg text/plain }
"""


def _guards(limits: Limits) -> str:
    return f"""    stick-table type ipv6 size 100k expire 10m store conn_cur
    tcp-request connection track-sc0 src
    tcp-request connection reject if {{ sc0_conn_cur gt {limits.per_address} }}
    http-request disable-l7-retry unless {_MAY_BE_REPEATED}
"""


def _edited(text: str, pattern: str, replacement: str) -> str:
    edited, found = re.subn(pattern, replacement, text, flags=re.MULTILINE)
    if not found:
        raise ValueError(f"Ray Serve's configuration of HAProxy has nothing like {pattern!r}")
    return edited


def _pages(folder: Path) -> dict[int, Path]:
    """Where HAProxy finds its answer for each error of its own; written once."""
    pages = {status: folder / f"error-{status}.http" for status in _ERRORS}
    for status, page in pages.items():
        error = _ERRORS[status]
        body = json.dumps(error.body())
        # A gateway's 502 and 504 are 503 here, as all that may be tried again.
        told = status if status in _REASONS else error.status
        headers = {"content-type": "application/json", "content-length": str(len(body))}
        headers |= {"retry-after": "1"} if told == Unavailable.status else {}
        lines = [f"HTTP/1.1 {told} {_REASONS[told]}", *(f"{k}: {v}" for k, v in headers.items())]
        page.write_text("\r\n".join([*lines, "", body]), newline="")
    return pages


def _affordable() -> int:
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        files = 2 * _MOST_CONNECTIONS + _OWN_FILES
    by_memory = _memory() // _MEMORY_SHARE // _CONNECTION_BYTES
    return max(100, min((files - _OWN_FILES) // 2, by_memory, _MOST_CONNECTIONS))


def _memory() -> int:
    """Bytes that this machine, or this container, has."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    allowed = Path("/sys/fs/cgroup/memory.max")
    if allowed.is_file() and (told := allowed.read_text().strip()).isdigit():
        return min(whole, int(told))
    return whole
