"""The store on Sentinel, on a cluster, and through the death of its server: real processes."""

import asyncio

import pytest
from redis.asyncio import RedisCluster

from adapter_store.catalogue import Catalogue
from adapter_store.connection import close_client, open_client
from adapter_store.embedded import embedded_server
from adapter_store.registry import SCHEMA
from adapter_store.store import Store
from cluster import rollouts
from cluster.errors import ConfigError, StoreUnavailable
from cluster.members import Replica
from cluster.settings import StoreSettings
from tests.conftest import until
from tests.redis_servers import redis_cluster, sentinel_set
from tests.test_store import card, put, version

pytestmark = [pytest.mark.redis]


async def exercise(store: Store) -> None:
    """Everything that talks to the server in a way of its own."""
    await store.registry.migrate()
    catalogue = Catalogue(store.registry)
    await catalogue.start()
    await put(store, card("cron"), version("d1"), mode="create")
    await put(store, card("cron"), version("d2"), mode="update", promote=False)
    changed = await store.registry.change(
        "cron", lambda a: rollouts.set_alias(a, "blue", a.versions[1])
    )
    await store.members.renew(Replica(id="r", model="echo", position=changed.position))
    assert [m.id for m in await store.members.converged(changed.position, timeout_s=5)] == ["r"]
    await catalogue.wait_for(changed.position)
    assert catalogue.find("cron@blue")[1].number == 1
    await put(store, card("sql"), version("d1"), mode="create")
    assert [a.name async for a in store.registry.all()] == ["cron", "sql"]
    await catalogue.wait_for(await store.registry.delete("sql"))
    assert set(catalogue.adapters) == {"cron"}
    assert not await store.blob_refs.condemn("d1", for_s=1)
    assert await store.registry.drive("cron", "me", for_s=5)
    assert not await store.registry.drive("cron", "you", for_s=5)
    await catalogue.stop()


async def test_a_cluster_serves_as_one_server_does(tmp_path):
    with redis_cluster(tmp_path) as url:
        store = Store(StoreSettings(url=url))
        await exercise(store)
        await store.close()


@pytest.mark.timeout(90)
async def test_a_failover_loses_no_acknowledged_change_and_followers_go_on(tmp_path):
    with sentinel_set(tmp_path) as (url, (master, *_)):
        store = Store(StoreSettings(url=url, wait_replicas=1, namespace="one"))
        await exercise(store)
        catalogue = Catalogue(store.registry)
        await catalogue.start()
        acknowledged, refused = [], 0
        deadline = asyncio.get_running_loop().time() + 60
        killed = False
        while len(acknowledged) < 60:
            assert asyncio.get_running_loop().time() < deadline
            name = f"a{len(acknowledged)}"
            try:
                await put(store, card(name), version("d1"), mode="upsert")
            except StoreUnavailable:
                refused += 1
                await asyncio.sleep(0.1)
                continue
            acknowledged.append(name)
            if len(acknowledged) == 30 and not killed:
                master.kill()
                killed = True
        assert refused, "writes must have been refused while there was no master"
        assert {*acknowledged, "cron"} <= {a.name async for a in store.registry.all()}
        await until(lambda: set(acknowledged) <= set(catalogue.adapters), timeout_s=15)
        assert not catalogue.is_stale
        await catalogue.stop()
        await store.close()


async def test_a_write_that_too_few_replicas_have_is_not_acknowledged(tmp_path):
    with embedded_server(tmp_path) as server:
        settings = StoreSettings(url=server.url, wait_replicas=1)
        store = Store(settings)
        with pytest.raises(StoreUnavailable, match="on 0 of 1 replicas"):
            await store.blob_refs.reserve("d1")
        await store.close()


async def test_no_acknowledged_change_is_lost_when_the_server_is_killed(tmp_path):
    """kill -9 in the midst of eight writers, three times."""
    with embedded_server(tmp_path) as server:
        settings = StoreSettings(url=server.url)
        stores = [Store(settings) for _ in range(8)]
        acknowledged: set[str] = set()
        ended = False

        async def write(n: int) -> None:
            i = 0
            while not ended:
                name = f"w{n}-{i}"
                try:
                    await put(stores[n], card(name), version("d1"), mode="upsert")
                except StoreUnavailable:
                    await asyncio.sleep(0.05)
                else:
                    acknowledged.add(name)
                    i += 1

        writers = [asyncio.create_task(write(n)) for n in range(8)]
        for _ in range(3):
            before = len(acknowledged)
            await until(lambda b=before: len(acknowledged) > b + 50, timeout_s=20)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.revive)
        ended = True
        await asyncio.gather(*writers)
        assert acknowledged <= {a.name async for a in stores[0].registry.all()}
        for store in stores:
            await store.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (None, "names no server"),
        ("http://nowhere", "store.url"),
        ("redis+sentinel://h:1", "service's name"),
        ("redis+cluster://", "names no host"),
        ("redis+sentinel://h:x/ours", "store.url"),
    ],
)
def test_a_wrong_url_is_refused(url, said):
    with pytest.raises(ConfigError, match=said):
        open_client(url)


@pytest.mark.parametrize(
    "place", ["redis://:p%40@h:1/0", "redis+sentinel://:p%40@h:1/ours", "redis+cluster://:p%40@h:1"]
)
async def test_options_in_the_url_mean_the_same_everywhere(place):
    client = open_client(f"{place}?max_connections=7&socket_timeout=1.5&client_name=a%20b")
    is_cluster = isinstance(client, RedisCluster)
    told = client.connection_kwargs if is_cluster else client.connection_pool.connection_kwargs
    assert (told["socket_timeout"], told["client_name"]) == (1.5, "a b")
    assert told["password"] == "p@"
    await close_client(client)
    most = told["max_connections"] if is_cluster else client.connection_pool.max_connections
    assert most == 7


def test_waiting_for_replicas_is_not_for_clusters():
    with pytest.raises(ConfigError, match="min-replicas-to-write"):
        Store(StoreSettings(url="redis+cluster://h:1", wait_replicas=1))


async def test_what_an_older_release_wrote_is_brought_forward(store):
    """Before `stable`, `latest` answered to the plain name."""
    await put(store, card("cron"), version("d1"), mode="create")
    await store.server.redis.hdel(store.server.keys.adapter("cron"), "alias:stable")
    await store.server.redis.delete(store.server.keys.schema)
    await store.registry.migrate()
    assert (await store.registry.get("cron")).aliases == {"latest": 1, "stable": 1}
    assert await store.server.redis.get(store.server.keys.schema) == str(SCHEMA)


async def test_events_of_an_older_release_are_left_behind(store):
    """They had no number; whoever starts reads a snapshot."""
    await put(store, card("cron"), version("d1"), mode="create")
    await store.server.redis.delete(store.server.keys.events)
    await store.server.redis.xadd(store.server.keys.events, {"kind": "put", "name": "cron"})
    await store.server.redis.set(store.server.keys.schema, 2)
    catalogue = Catalogue(store.registry)
    await store.registry.migrate()
    await catalogue.start()
    await put(store, card("sql"), version("d2"), mode="create")
    await until(lambda: set(catalogue.adapters) == {"cron", "sql"})
    await catalogue.stop()


async def test_what_a_newer_release_wrote_is_left_alone(store):
    await store.server.redis.set(store.server.keys.schema, 99)
    with pytest.raises(ConfigError, match=r"schema 99.*upgrade"):
        await store.registry.migrate()
