"""The Redis server as the store uses it: scripts, streams, and its errors in our words."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from redis.asyncio import RedisCluster
from redis.exceptions import (
    ClusterDownError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from adapter_store.connection import close_client, open_client
from adapter_store.keys import Keys
from cluster.errors import ConfigError, StoreUnavailable
from cluster.settings import StoreSettings

_WAIT_FOR_REPLICAS_MS = 2000
# Below the client's socket timeout, which would take a long wait for a dead server.
BLOCK_S = 2.0
_TRANSIENT = (OutOfMemoryError, ReadOnlyError, ClusterDownError, MasterDownError, TryAgainError)
_TRANSIENT_REPLIES = ("MISCONF", "NOREPLICAS", "BUSY", "LOADING", "UNBLOCKED")
_LUA = Path(__file__).parent / "lua"
_COMMON = "common"


class Server:
    """A connection pool, the scripts of `lua/`, and the keys that they are given.

    Opens with the first command.
    """

    def __init__(self, settings: StoreSettings) -> None:
        self.redis = open_client(settings.url)
        self.keys = Keys(settings.namespace, settings.cluster)
        self._wait_replicas = settings.wait_replicas
        if self._wait_replicas and isinstance(self.redis, RedisCluster):
            raise ConfigError(
                "store.wait_replicas cannot be used with a cluster; set min-replicas-to-write on "
                "its servers",
                param="store.wait_replicas",
            )
        common = (_LUA / f"{_COMMON}.lua").read_text()
        self._scripts = {
            f.stem: self.redis.register_script(common + f.read_text())
            for f in _LUA.glob("*.lua")
            if f.stem != _COMMON
        }

    async def close(self) -> None:
        await close_client(self.redis)

    async def run(
        self, script: str, keys: list[str], args: list[Any], *, is_precious: bool = True
    ) -> Any:
        """Run a script; raises ResponseError with the code that the script replied.

        Args:
            is_precious: it is worth waiting for `store.wait_replicas`.
        """
        with answering():
            if not self._wait_replicas or not is_precious:
                return await self._scripts[script](keys=keys, args=args)
            async with self.redis.client() as connection:
                done = await self._scripts[script](keys=keys, args=args, client=connection)
                copies = await connection.wait(self._wait_replicas, _WAIT_FOR_REPLICAS_MS)
        if copies < self._wait_replicas:
            raise StoreUnavailable(
                f"stored, but on {copies} of {self._wait_replicas} replicas of the store only "
                "(store.wait_replicas); a failover now could lose it"
            )
        return done

    async def read(
        self, stream: str, after: str, *, block_s: float
    ) -> list[tuple[str, dict[str, str]]]:
        """Entries of a stream behind `after`, in order; waits up to `block_s` for the first."""
        with answering():
            streams = await self.redis.xread(
                {stream: after}, count=1000, block=round(block_s * 1000)
            )
        found = streams.items() if isinstance(streams, dict) else streams or ()
        return [entry for _, entries in found for entry in entries]

    async def newest(self, stream: str) -> str:
        """The id of the newest entry of a stream, ``0-0`` before the first."""
        with answering():
            newest = await self.redis.xrevrange(stream, count=1)
        return newest[0][0] if newest else "0-0"


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Tell as StoreUnavailable that the server does not answer, or cannot write now."""
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError, RedisClusterException) as e:
        raise StoreUnavailable(
            "the adapter store does not answer; what is loaded is still served, changes must wait "
            f"({type(e).__name__}: {e})"
        ) from e
    except ResponseError as e:
        if isinstance(e, _TRANSIENT) or str(e).startswith(_TRANSIENT_REPLIES):
            raise StoreUnavailable(f"the adapter store cannot take this now: {e}") from e
        raise


def is_before(a: str, b: str) -> bool:
    """Whether stream position `a` lies before `b` (``milliseconds-sequence``)."""
    return _order(a) < _order(b)


def _order(position: str) -> tuple[int, int]:
    ms, _, seq = position.partition("-")
    return int(ms), int(seq)
