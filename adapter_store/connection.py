"""From a URL to a Redis client: a single server, Sentinel, or Cluster, each with or without TLS.

redis://:PASSWORD@HOST:6379/0                      rediss:// for TLS
redis+sentinel://:PASSWORD@HOST:26379,HOST:26379/SERVICE/0
redis+cluster://:PASSWORD@HOST:7000,HOST:7001

A single address may lead to another server from one moment to the next (a name that moves, a load
balancer). Connections that are open stay with the old one: see `_Pool`.
"""

import re
import weakref
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Connection, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import ExponentialBackoff
from redis.exceptions import BusyLoadingError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cluster.errors import ConfigError

Client = Redis | RedisCluster

_SENTINEL, _CLUSTER = "+sentinel", "+cluster"
_SCHEMES = ("redis", "rediss")
# Sentinel's pool cannot make callers wait.
_SENTINEL_CONNECTIONS = 1000
_POOL: dict[str, Any] = {"max_connections": 256, "timeout": 10}
# A long wait for events must end before the socket gives up.
_SOCKET: dict[str, Any] = {"socket_connect_timeout": 2, "socket_timeout": 5}
# Said by a server that is no primary.
_DEMOTED = ("READONLY", "MASTERDOWN")
# Said by one that may have been one only until now: its replicas have gone to another, or it has
# let go of those that wait.
_ABANDONED = ("NOREPLICAS", "UNBLOCKED")
# Where the code of a refusal is: in front; behind the place in a script, before Redis 7; behind
# what the client puts before errors of a pipeline.
_CODE = re.compile(r"(?:^|: -|caused error: \(['\"])([A-Z]+)\b")


class WrongServer(RedisConnectionError):
    """The server is not the one to ask, or not yet; it has not done what it was told."""


def code_of(error: ResponseError) -> str:
    """The word that the server's refusal begins with."""
    if error.status_code not in (None, "ERR"):
        return str(error.status_code)
    found = _CODE.findall(str(error))
    return found[-1] if found else ""


class _Watchful(AbstractConnection):
    """Tells its pool when the server is silent, or not the one to ask."""

    def __init__(self, *, pool: "_Pool", **options: Any) -> None:
        super().__init__(**options)
        self._pool = pool

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)
        except (RedisConnectionError, RedisTimeoutError) as e:
            self._pool.leave()
            if isinstance(e, BusyLoadingError):
                raise WrongServer(str(e)) from e
            raise
        except ResponseError as e:
            code = code_of(e)
            if code in _DEMOTED + _ABANDONED:
                self._pool.leave()
            if code in _DEMOTED:
                await self.disconnect(nowait=True)
                raise WrongServer(f"{code} {e}") from e
            raise


class _Pool(BlockingConnectionPool):
    """Its connections leave a server together: what one of them finds, the others, readers that
    wait for events among them, would find out one by one, late, or never.

    Those beyond the bound wait for a connection, rather than fail.
    """

    def __init__(
        self, connection_class: type[AbstractConnection] = Connection, **options: Any
    ) -> None:
        watchful = type("Watchful", (_Watchful, connection_class), {})
        super().__init__(connection_class=watchful, pool=weakref.proxy(self), **options)

    def leave(self) -> None:
        """Have all connections dialled again, those in use when they are free."""
        for connection in (*self._available_connections, *self._in_use_connections):
            connection.mark_for_reconnect()  # type: ignore[no-untyped-call]

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        if connection.should_reconnect():  # type: ignore[no-untyped-call]
            await connection.disconnect(nowait=True)
        await super().ensure_connection(connection)


def open_client(url: str | None) -> Client:
    """A client that connects with its first command, and whose replies are text.

    Raises:
        ConfigError: there is no URL, or it is not one of those above.
    """
    if url is None:
        raise ConfigError(
            "store.url names no server, and no embedded one was started", param="store.url"
        )
    scheme = urlsplit(url).scheme
    try:
        if scheme in [f"{s}{_SENTINEL}" for s in _SCHEMES]:
            return _sentinel(url)
        if scheme in [f"{s}{_CLUSTER}" for s in _SCHEMES]:
            return _cluster(url)
        # What was refused may be tried again; what got no answer may have been done.
        retry = Retry(ExponentialBackoff(base=0.1), 3, supported_errors=(WrongServer,))
        pool = _Pool.from_url(
            url, decode_responses=True, health_check_interval=15, retry=retry, **_POOL, **_SOCKET
        )
        return Redis.from_pool(pool)
    except (ValueError, TypeError, RedisError) as e:
        raise ConfigError(f"store.url: {e}", param="store.url") from e


async def close_client(client: Client) -> None:
    """Close the client and, where there are Sentinels, the connections to them."""
    await client.aclose()
    pool = getattr(client, "connection_pool", None)
    if isinstance(pool, SentinelConnectionPool):
        for sentinel in pool.sentinel_manager.sentinels:
            await sentinel.aclose()


def _sentinel(url: str) -> Redis:
    parts = urlsplit(url)
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError("a Sentinel URL ends with the service's name, as in .../mymaster")
    options = _SOCKET | _options(url)
    sentinel_options = {"password": options.pop("sentinel_password", None), **_SOCKET}
    if options.get("ssl"):
        sentinel_options["ssl"] = True
    options.setdefault("max_connections", _SENTINEL_CONNECTIONS)
    sentinel = Sentinel(_hosts(url, 26379), sentinel_kwargs=sentinel_options)
    client: Redis = sentinel.master_for(
        service,
        db=int(database or 0),
        decode_responses=True,
        **options,
    )
    return client


def _cluster(url: str) -> RedisCluster:
    nodes = [ClusterNode(host, port) for host, port in _hosts(url, 6379)]
    return RedisCluster(startup_nodes=nodes, decode_responses=True, **(_SOCKET | _options(url)))


def _hosts(url: str, default_port: int) -> list[tuple[str, int]]:
    hosts = urlsplit(url).netloc.rpartition("@")[2]
    if not hosts:
        raise ValueError("the URL names no host")
    found = []
    for part in hosts.split(","):
        host, separator, port = part.rpartition(":")
        found.append((host.strip("[]"), int(port)) if separator else (part, default_port))
    return found


def _options(url: str) -> dict[str, Any]:
    """User, password, TLS, and what the query says, such as ssl_ca_certs: as the client itself
    reads them of a single server's URL."""
    parts = urlsplit(url)
    scheme = parts.scheme.partition("+")[0]
    user, at, _ = parts.netloc.rpartition("@")
    options = dict(parse_url(f"{scheme}://{user}{at}host?{parts.query}"))
    for of_one_server in ("host", "port", "db", "connection_class"):
        options.pop(of_one_server, None)
    if scheme == "rediss":
        options["ssl"] = True
    return options
