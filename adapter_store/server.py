"""The Redis server as the store uses it: scripts, replies as text, its errors in our words."""

import contextlib
import uuid
from collections.abc import Awaitable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from redis.asyncio import RedisCluster
from redis.asyncio.client import Pipeline
from redis.asyncio.cluster import ClusterPipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from adapter_store.connection import WrongServer, close_client, code_of, open_client
from adapter_store.keys import Keys
from cluster.errors import ConfigError, StoreUnavailable
from cluster.settings import StoreSettings

_WAIT_FOR_REPLICAS_MS = 2000
# Below the client's socket timeout, which would take a long wait for a dead server.
BLOCK_S = 2.0
# What passes: nothing is wrong with the command.
_TRANSIENT = (
    *("OOM", "MISCONF", "NOREPLICAS", "BUSY", "LOADING", "UNBLOCKED"),
    *("READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN"),
)
_LUA = Path(__file__).parent / "lua"
_COMMON = "common"

# Of a stream: the entry's id, which is its position, and its fields.
Entry = tuple[str, dict[str, str]]


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
            # The constructor lets nobody wait for a cluster's.
            if not (self._wait_replicas and is_precious) or isinstance(self.redis, RedisCluster):
                return await self._scripts[script](keys=keys, args=args)
            # By one connection, for sure: on another one nothing was written that had to be copied.
            pipe = self.redis.pipeline(transaction=False)
            pipe.eval(str(self._scripts[script].script), len(keys), *keys, *args)
            pipe.wait(self._wait_replicas, _WAIT_FOR_REPLICAS_MS)
            done, copies = await _both(pipe)
        if isinstance(copies, ResponseError):
            raise StoreUnavailable(f"stored, but perhaps on one server only: {copies}")
        if copies < self._wait_replicas:
            raise StoreUnavailable(
                f"stored, but on {copies} of {self._wait_replicas} replicas of the store only "
                "(store.wait_replicas); a failover now could lose it"
            )
        return done

    async def hold(self, key: str, owner: str, *, for_s: float) -> bool:
        """Whether `owner` has the lease `key` for so long: it was free, or its own before."""
        ms = round(for_s * 1000)
        with answering():
            if await self.redis.set(key, owner, nx=True, px=ms):
                return True
            return await self.redis.get(key) == owner and bool(await self.redis.pexpire(key, ms))

    def once(self) -> str:
        """A key for the reply to one change, for scripts that must not do it twice."""
        return self.keys.once(uuid.uuid4().hex)

    # -- what is there, as text -----------------------------------------------------------

    async def text(self, key: str) -> str | None:
        """A plain value; None where there is none."""
        found: str | None = await self._ask(self.redis.get(key))
        return found

    async def texts(self, keys: list[str]) -> list[str | None]:
        """Several plain values, in one round trip."""
        found: list[str | None] = await self._ask(self.redis.mget(keys)) if keys else []
        return found

    async def field(self, key: str, field: str) -> str | None:
        """One field of a hash; None where there is none."""
        found: str | None = await self._ask(self.redis.hget(key, field))
        return found

    async def some_fields(self, key: str, fields: list[str]) -> list[str | None]:
        """Several fields of a hash; None where there is none."""
        reply = self.redis.hmget(key, fields)
        found: list[str | None] = await self._ask(reply) if fields else []
        return found

    async def fields(self, key: str) -> dict[str, str]:
        """A whole hash; empty where there is none."""
        found: dict[str, str] = await self._ask(self.redis.hgetall(key))
        return found

    async def many_fields(self, keys: Iterable[str]) -> list[dict[str, str]]:
        """Several whole hashes, in one round trip."""
        pipe = self.redis.pipeline(transaction=False)
        for key in keys:
            pipe.hgetall(key)
        found: list[dict[str, str]] = await self._ask(pipe.execute())
        return found

    async def members(self, key: str) -> list[str]:
        """Of a sorted set, in the order of their scores."""
        found: list[str] = await self._ask(self.redis.zrange(key, 0, -1))
        return found

    async def scored(self, key: str, least: float) -> dict[str, float]:
        """Of a sorted set, the members with that score at least, and theirs."""
        reply = self.redis.zrangebyscore(key, least, "+inf", withscores=True)
        found: list[tuple[str, float]] = await self._ask(reply)
        return dict(found)

    async def due(self, key: str, until: float) -> list[str]:
        """Of a sorted set, the members with that score at most."""
        found: list[str] = await self._ask(self.redis.zrangebyscore(key, "-inf", until))
        return found

    async def members_after(self, key: str, after: str, *, limit: int) -> list[str]:
        """Of a sorted set whose scores are all the same: those that sort behind `after`."""
        least = f"({after}" if after else "-"
        found: list[str] = await self._ask(
            self.redis.zrangebylex(key, least, "+", start=0, num=limit)
        )
        return found

    # -- streams --------------------------------------------------------------------------

    async def read(self, stream: str, after: str, *, block_s: float) -> list[Entry]:
        """Up to 1000 entries behind `after`, in order; waits up to `block_s` for the first."""
        pipe = self.redis.pipeline(transaction=False)
        pipe.xread({stream: after}, count=1000, block=round(block_s * 1000))
        # Deletes nothing: a server that is no primary any more lets its readers wait for ever, and
        # says what it is to writers alone.
        pipe.xdel(stream, "0-0")
        streams, _ = await self._ask(_both(pipe))
        found = streams.items() if isinstance(streams, dict) else streams or ()
        return [entry for _, entries in found for entry in entries]

    async def read_all(self, stream: str, after: str) -> list[Entry]:
        """All entries behind `after`, in order; waits for none."""
        found: list[Entry] = await self._ask(self.redis.xrange(stream, min=f"({after}"))
        return found

    async def read_back(self, stream: str, count: int) -> list[Entry]:
        """The newest entries, the newest first."""
        found: list[Entry] = await self._ask(self.redis.xrevrange(stream, count=count))
        return found

    async def newest(self, stream: str) -> str:
        """The id of the newest entry, ``0-0`` before the first."""
        newest = await self.read_back(stream, 1)
        return newest[0][0] if newest else "0-0"

    async def _ask(self, reply: Awaitable[Any]) -> Any:
        """A reply, typed by whoever asks: for its stubs the client may answer in bytes, but those
        of `open_client` decode them."""
        with answering():
            return await reply


async def _both(pipe: Pipeline | ClusterPipeline) -> tuple[Any, Any]:
    """The replies to two commands that go by one connection; a refusal of the second is one."""
    first, second = await pipe.execute(raise_on_error=False)
    if isinstance(first, ResponseError):
        raise first
    return first, second


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Tell as StoreUnavailable that the server does not answer, or cannot write now."""
    try:
        yield
    except WrongServer as e:
        raise StoreUnavailable(
            f"the address of the adapter store leads to a server that takes no changes: {e}"
        ) from e
    except (RedisConnectionError, RedisTimeoutError, RedisClusterException) as e:
        raise StoreUnavailable(
            "the adapter store does not answer; what is loaded is still served, changes must wait "
            f"({type(e).__name__}: {e})"
        ) from e
    except ResponseError as e:
        if code_of(e) in _TRANSIENT:
            raise StoreUnavailable(f"the adapter store cannot take this now: {e}") from e
        raise


def flat(pairs: Mapping[str, Any]) -> list[Any]:
    """Field, value, field, value, ...: a hash as commands and scripts take it."""
    return [part for pair in pairs.items() for part in pair]


def is_before(a: str, b: str) -> bool:
    """Whether stream position `a` lies before `b` (``milliseconds-sequence``)."""
    return _order(a) < _order(b)


def _order(position: str) -> tuple[int, int]:
    ms, _, seq = position.partition("-")
    return int(ms), int(seq)
