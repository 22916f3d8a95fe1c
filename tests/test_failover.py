"""A store behind one address that leads to another server from one moment to the next.

What is open stays with the old one: as a managed Redis fails over, by a name or a load balancer.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator

import pytest
from redis.exceptions import RedisError, ResponseError

from adapter_store.catalogue import Catalogue
from adapter_store.connection import code_of
from adapter_store.store import Store
from cluster import rollouts
from cluster.errors import StoreUnavailable
from cluster.members import Replica
from cluster.plans import Happening
from cluster.settings import StoreSettings
from tests.conftest import free_port, until
from tests.redis_servers import Relay, fail_over, pair, server
from tests.test_store import card, put, version

pytestmark = [pytest.mark.redis, pytest.mark.hostile]

WRITERS = 8


@pytest.fixture
def servers(tmp_path):
    with pair(tmp_path) as servers:
        yield servers


@pytest.fixture
async def relay(servers):
    relay = Relay(servers[0])
    async with relay.open():
        yield relay


@contextlib.asynccontextmanager
async def stores(*urls: str, **settings) -> AsyncIterator[list[Store]]:
    opened = [Store(StoreSettings(url=url, **settings)) for url in urls]
    try:
        yield opened
    finally:
        for store in opened:
            await store.close()


def at(port: int) -> str:
    return f"redis://127.0.0.1:{port}/0"


async def seconds_until_written(store: Store, name: str, timeout_s: float = 10) -> float:
    """Of one who tries again and again."""
    began = time.monotonic()
    while True:
        try:
            await put(store, card(name), version("d1"), mode="upsert")
        except StoreUnavailable:
            assert time.monotonic() - began < timeout_s, "no write went through"
            await asyncio.sleep(0.05)
        else:
            return time.monotonic() - began


async def warmed(store: Store) -> Catalogue:
    """A catalogue that follows, and a pool that has many connections to where the address led."""
    await store.registry.migrate()
    catalogue = Catalogue(store.registry)
    await catalogue.start()
    await asyncio.gather(*(store.server.newest(f"stream-{i}") for i in range(2 * WRITERS)))
    await put(store, card("before"), version("d1"), mode="create")
    await until(lambda: "before" in catalogue.adapters)
    return catalogue


async def test_all_that_talks_to_it_is_with_the_new_server_at_once(servers, relay):
    async with stores(at(relay.port), at(servers[1].port)) as (store, direct):
        catalogue = await warmed(store)
        assert await store.registry.drive("before", "me", for_s=30)
        fail_over(*servers)
        relay.target = servers[1]
        took = await asyncio.gather(
            *(seconds_until_written(store, f"w{i}") for i in range(WRITERS))
        )
        assert max(took) < 2
        # Leases, reports, scripts, pipelines: each at the first try.
        assert await store.registry.drive("before", "me", for_s=30)
        assert not await store.registry.drive("before", "you", for_s=30)
        await store.members.renew(Replica(id="r", model="echo", position="0-0"))
        await store.registry.change(
            "before", lambda a: rollouts.set_alias(a, "blue", a.versions[1])
        )
        await store.telemetry.put_metrics("r", "up 1\n", for_s=30)
        await store.plans.put_usual(1, {"before": 1.0})
        assert [m.id for m in await direct.members.all()] == ["r"]
        assert await direct.telemetry.all_metrics() == {"r": "up 1\n"}
        await put(direct, card("news"), version("d1"), mode="create")
        await until(lambda: "news" in catalogue.adapters)
        assert catalogue.find("before@blue")
        await catalogue.stop()


async def test_who_only_reads_notices_too(servers, relay):
    """The server lets go of those that wait when it is demoted; those that come back to it before
    the address has moved would wait there for ever."""
    async with stores(at(relay.port), at(servers[1].port)) as (store, direct):
        catalogue = await warmed(store)
        fail_over(*servers)
        await asyncio.sleep(1.5)
        relay.target = servers[1]
        await put(direct, card("news"), version("d1"), mode="create")
        await until(lambda: "news" in catalogue.adapters, timeout_s=5)
        await catalogue.stop()


async def test_while_no_server_takes_changes_each_is_refused_with_the_cause_and_none_is_lost(
    servers, relay
):
    """The address moves seconds after the old server was demoted."""
    async with stores(at(relay.port)) as (store,):
        catalogue = await warmed(store)
        fail_over(*servers)
        with pytest.raises(StoreUnavailable, match="takes no changes: READONLY"):
            await put(store, card("early"), version("d1"), mode="create")
        relay.target = servers[1]
        assert await seconds_until_written(store, "early") < 2
        await until(lambda: "early" in catalogue.adapters)
        await catalogue.stop()


async def test_a_server_that_was_left_without_replicas_is_left(servers, relay):
    """It still thinks that it is the primary; `min-replicas-to-write` keeps it from taking more."""
    old, new = servers
    async with stores(at(relay.port)) as (store,):
        catalogue = await warmed(store)
        with old.client() as client, new.client() as promoted:
            promoted.replicaof("NO", "ONE")
            client.config_set("min-replicas-to-write", 1)
        relay.target = new
        assert await seconds_until_written(store, "after") < 2
        await until(lambda: "after" in catalogue.adapters)
        await catalogue.stop()


async def test_a_frozen_server_is_left_by_all_after_one_time_out(servers, relay):
    """It takes what is sent and answers nothing, as behind a network that drops packets."""
    old, new = servers
    async with stores(at(relay.port)) as (store,):
        catalogue = await warmed(store)
        with new.client() as promoted:
            promoted.replicaof("NO", "ONE")
        relay.target = new
        os.kill(old.process.pid, signal.SIGSTOP)
        try:
            assert await seconds_until_written(store, "after") < 6
            began = time.monotonic()
            for i in range(2 * WRITERS):
                await put(store, card(f"after-{i}"), version("d1"), mode="create")
            assert time.monotonic() - began < 1
            await until(lambda: "after" in catalogue.adapters, timeout_s=8)
            await catalogue.stop()
        finally:
            os.kill(old.process.pid, signal.SIGCONT)


async def test_what_only_the_old_server_had_is_forgotten(servers, relay):
    """Acknowledged by one server alone, as without `store.wait_replicas`."""
    old, new = servers
    async with stores(at(relay.port)) as (store,):
        catalogue = await warmed(store)
        with new.client() as promoted:
            promoted.replicaof("NO", "ONE")
        await put(store, card("lost"), version("d1"), mode="create")
        await until(lambda: "lost" in catalogue.adapters)
        with old.client() as demoted:
            demoted.replicaof("127.0.0.1", free_port())
        relay.target = new
        await until(lambda: "lost" not in catalogue.adapters, timeout_s=8)
        await catalogue.stop()


async def test_a_write_is_never_confirmed_by_a_server_that_did_not_take_it(servers, relay):
    """`store.wait_replicas`: the other server would say of nothing that all replicas have it."""
    async with stores(at(relay.port), wait_replicas=1) as (store,):
        await store.blob_refs.reserve("d1")
        fail_over(*servers)
        relay.target = servers[1]
        with pytest.raises(StoreUnavailable, match="on 0 of 1 replicas"):
            await store.blob_refs.reserve("d2")


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"maxmemory": "1"}, "maxmemory"),
        ({"min-replicas-to-write": "1"}, "NOREPLICAS"),
        ({"save": "1 1", "stop-writes-on-bgsave-error": "yes"}, "MISCONF"),
    ],
)
async def test_a_server_that_cannot_write_says_why(tmp_path, options, cause):
    """Each in a script, in a pipeline and by itself; readers go on."""
    with server(tmp_path / "one", "") as one, one.client() as client:
        async with stores(at(one.port)) as (store,):
            catalogue = await warmed(store)
            for name, value in options.items():
                client.config_set(name, value)
            if cause == "MISCONF":
                # Nothing can be saved where a folder is.
                (tmp_path / "one" / "dump.rdb").mkdir()
                with contextlib.suppress(RedisError):
                    client.bgsave()
                await until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
            news = Happening(at=1.0, kind="load", subject="x", text="y")
            for change in (
                lambda: put(store, card("x"), version("d1"), mode="create"),
                lambda: store.telemetry.note([news]),
                lambda: store.server.hold("lease", "me", for_s=1),
            ):
                with pytest.raises(StoreUnavailable, match=cause):
                    await change()
            events = await store.registry.events_after("0-0", block_s=1)
            assert [event.name for event in events] == ["before"]
            await catalogue.stop()


@pytest.mark.parametrize(
    ("said", "status", "code"),
    [
        ("You can't write against a read only replica.", "READONLY", "READONLY"),
        ("NOREPLICAS Not enough good replicas to write.", None, "NOREPLICAS"),
        # Of Redis 6.2, in a script.
        (
            "Error running script (call to f_1): @user_script:45: @user_script: 45: -READONLY "
            "You can't write against a read only replica.",
            "ERR",
            "READONLY",
        ),
        # Of the client, in a pipeline.
        (
            "Command # 1 (XADD j) of pipeline caused error: ('MISCONF Valkey is configured',)",
            None,
            "MISCONF",
        ),
        ("unknown command 'x'", "ERR", ""),
    ],
)
def test_a_refusal_is_told_by_its_code_wherever_that_is(said, status, code):
    assert code_of(ResponseError(said, status_code=status)) == code
