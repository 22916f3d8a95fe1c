"""What a browser sends for a page elsewhere is refused, before anybody is asked for a key.

A page that somebody happens to look at can have their browser send requests to any address that
it reaches, this machine's included. They are told apart by what browsers say of each request and
no page can change: `Sec-Fetch-Site` and `Origin` say which page asks, `Host` by which name. A page
that has its own name lead here (DNS rebinding) asks where it comes from, but by a name not ours.
"""

import ipaddress
import re
from collections.abc import Callable

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.errors import HostRefused, InvalidRequest, OriginRefused, RoundhouseError
from cluster.settings import AuthSettings, HttpSettings
from deployments.ingress.edge import request_ids

# They change nothing, and a page elsewhere cannot read the answers.
_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
# Probes ask by whatever name leads there.
_PROBES = frozenset({"/healthz", "/readyz", "/health", "/ping"})
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:@/?#\[\]]+)(:\d*)?", re.IGNORECASE)


# Makes an answer of what is refused.
Refusal = Callable[[Scope, RoundhouseError], ASGIApp]


def doors(http: HttpSettings, auth: AuthSettings, refusal: Refusal) -> list[Middleware]:
    """What stands before the application."""
    found = [Middleware(Doors, http, refusal, is_locked=auth.enabled)]
    cors = http.cors
    if cors.origins:
        # Their browsers ask first, and hide answers that do not say who may read them.
        found.append(
            Middleware(
                CORSMiddleware,
                allow_origins=cors.origins,
                allow_methods=cors.methods,
                allow_headers=cors.headers,
                expose_headers=["*"],
                allow_private_network=True,
            )
        )
    return found


class Doors:
    """Refuses requests by their `Host`, and those that change or cost something by their origin.

    Args:
        is_locked: keys are asked for. A page that has none gets nowhere under any name, so names
            are looked at only where the settings have some.
    """

    def __init__(
        self, app: ASGIApp, http: HttpSettings, refusal: Refusal, *, is_locked: bool
    ) -> None:
        self._app = app
        self._refusal = refusal
        names = http.allowed_hosts or (("*",) if is_locked else ())
        self._is_any = "*" in names
        self._names = frozenset(names)
        self._below = tuple(name[1:] for name in names if name.startswith("*."))
        self._cors = http.cors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope)
            except RoundhouseError as e:
                await self._refusal(scope, e)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        host = origin = site = None
        for name, value in scope["headers"]:
            if name == b"host":
                host = value.decode("latin-1")
                self._check_host(host, scope["path"])
            elif name == b"origin":
                origin = value.decode("latin-1").lower()
            elif name == b"sec-fetch-site":
                site = value
            elif name == request_ids.HEADER:
                request_ids.check(value)
        if scope["method"] not in _SAFE and not self._cors.lets(origin, scope["method"]):
            self._check_origin(host, origin, site)

    def _check_host(self, host: str, path: str) -> None:
        """Raises InvalidRequest, HostRefused."""
        found = _HOST.fullmatch(host)
        if found is None:
            raise InvalidRequest("the header host must be a name or an address, and a port")
        if self._is_any or path in _PROBES:
            return
        name = found[1].lower().rstrip(".")
        if name in self._names or name.endswith(self._below) or _is_ours(name):
            return
        raise HostRefused(
            f"this endpoint is not known as {name[:100]!r}; ask for it by its address or as "
            "localhost, or list the name in http.allowed_hosts"
        )

    def _check_origin(self, host: str | None, origin: str | None, site: bytes | None) -> None:
        """Raises OriginRefused. No browser leaves out both headers."""
        if site in (b"same-origin", b"none"):
            return
        if site is None and (origin is None or _is_at(origin, (host or "").lower())):
            return
        raise OriginRefused(
            f"a web page elsewhere ({(origin or 'of no known origin')[:100]}) sent this to "
            f"{(host or 'no host')[:100]}; list its origin in http.cors.origins if it may, and "
            "the method in http.cors.methods, or have a proxy pass on the host that it was asked "
            "for, port included"
        )


def _is_at(origin: str, host: str) -> bool:
    """Whether a page's origin is the host that it asks; a scheme's own port may be told or not."""
    scheme, _, place = origin.partition("://")
    own = {"http": ":80", "https": ":443"}.get(scheme, "")
    return place.removesuffix(own) == host.removesuffix(own)


def _is_ours(name: str) -> bool:
    """Whether no other name server can have led it here: it is localhost, or an address."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
