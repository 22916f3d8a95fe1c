"""A fleet of model servers with echo engines, in this process: they follow the store."""

import asyncio
from functools import partial
from unittest.mock import AsyncMock

import pytest

from adapter_store.files.node_cache import NodeCache
from cluster.adapters import AdapterKey
from cluster.placement import holders
from tests.conftest import ECHO_FACTS, LEASE_S, until
from tests.fleet import ServerFleet, ask, running

pytestmark = pytest.mark.redis


@pytest.fixture
def fleet(redis_url, tmp_path):
    return partial(running, redis_url=redis_url, folder=tmp_path)


async def test_a_fleet_of_64_confirms_an_adapter_and_its_removal(fleet, make_adapter):
    async with fleet(64) as it:
        stored = await it.add(make_adapter("cron"))
        members = await it.converged(stored.position)
        assert len(members) == 64
        assert {m.residency.tier("cron@1") for m in members} == {"slot"}
        position = await it.store.registry.delete("cron")
        await it.converged(position)
        await until(lambda: _none_holds(it, "cron@1"))


async def _none_holds(it: ServerFleet, key: str) -> bool:
    return not await it.held(key)


async def test_confirmations_come_one_by_one_and_say_where_it_is(fleet, make_adapter):
    async with fleet(3) as it:
        stored = await it.add(make_adapter("cron"))
        seen = [
            m
            async for m in it.store.members.confirmations(stored.position, timeout_s=5, at_least=3)
        ]
        assert sorted(m.id for m in seen) == ["r0", "r1", "r2"]
        assert all(m.residency.tier("cron@1") for m in seen)


async def test_as_many_replicas_hold_an_adapter_as_it_wants(fleet, make_adapter):
    async with fleet(6) as it:
        stored = await it.add(make_adapter("cron"), replicas=2)
        await it.converged(stored.position)
        wanted = set(holders("cron", 2, it.servers))
        assert await it.held("cron@1") == wanted
        # Whoever is asked serves it all the same.
        other = next(s for name, s in it.servers.items() if name not in wanted)
        assert (await ask(other, stored))[0] == 200


async def test_another_replica_takes_over_from_one_that_died(fleet, make_adapter):
    async with fleet(3) as it:
        stored = await it.add(make_adapter("cron"), replicas=1)
        await it.converged(stored.position)
        (holder,) = await it.held("cron@1")
        await it.servers.pop(holder).stop()
        (heir,) = holders("cron", 1, it.servers)

        async def is_held() -> bool:
            return await it.held("cron@1") == {heir}

        await until(is_held, timeout_s=5)


async def test_a_dead_replicas_residency_expires_by_itself(fleet, make_adapter, monkeypatch):
    async with fleet(2) as it:
        stored = await it.add(make_adapter("cron"))
        await it.converged(stored.position)
        # Without a farewell, as kill -9 ends it.
        monkeypatch.setattr(it.processes["r0"].store.members, "leave", AsyncMock())
        await it.servers.pop("r0").stop()
        assert await it.held("cron@1") == {"r0", "r1"}

        async def is_forgotten() -> bool:
            return await it.held("cron@1") == {"r1"}

        await until(is_forgotten, timeout_s=LEASE_S + 2)


async def test_a_pinned_adapter_stays_when_others_come_and_go(fleet, make_adapter):
    async with fleet(1, slots=1, host_entries=2) as it:
        pinned = await it.add(make_adapter("pinned"), pinned=True)
        for i in range(4):
            stored = await it.add(make_adapter(f"other{i}", seed=i))
            assert (await ask(it.servers["r0"], stored))[0] == 200
        await it.converged(stored.position)
        assert await it.held("pinned@1") == {"r0"}
        assert await it.held("other0@1") == set()
        assert (await ask(it.servers["r0"], pinned))[0] == 200


async def test_pins_alone_do_not_lock_others_out(fleet, make_adapter):
    async with fleet(1, slots=1, host_entries=2) as it:
        for i in range(2):
            await it.add(make_adapter(f"pinned{i}", seed=i), pinned=True)
        stored = await it.add(make_adapter("cron", seed=5))
        assert (await ask(it.servers["r0"], stored))[0] == 200


async def test_a_version_for_another_base_model_is_not_loaded(fleet, make_adapter):
    """The base model was replaced under its name: old adapters would answer with noise."""
    async with fleet(1) as it:
        await it.store.registry.put_base_model(ECHO_FACTS.model_copy(update={"fingerprint": "old"}))
        stored = await it.add(make_adapter("cron"))
        (member,) = await it.converged(stored.position)
        assert "fingerprint old, echo now has echo-8x1" in member.problems["cron@1"]
        status, body = await ask(it.servers["r0"], stored)
        assert status == 503
        assert b"echo-8x1" in body


async def test_only_versions_that_serve_are_loaded_ahead(fleet, make_adapter):
    async with fleet(1) as it:
        await it.add(make_adapter("cron"))
        staged = await it.add(make_adapter("cron", seed=1), promote=False)
        await it.converged(staged.position)
        assert await it.held("cron@1") == {"r0"}
        assert await it.held("cron@2") == set()
        assert (await ask(it.servers["r0"], staged))[0] == 200, "by its number it is served"


async def test_a_thousand_adapters_at_the_start_fill_the_room_and_no_more(fleet, make_adapter):
    async with fleet(0, slots=1, host_entries=3) as it:
        await it.store.registry.put_base_model(ECHO_FACTS)
        folder = make_adapter("a")
        for lot in range(0, 200, 50):  # no more at a time than may wait
            names = [f"a{i:03}" for i in range(lot, lot + 50)]
            await asyncio.gather(*(it.add(folder, name=name) for name in names))
        server = await it.join("late")
        residency = server.report().residency
        assert len(residency.slots) + len(residency.host) == 3


async def test_a_replica_that_missed_events_reads_a_snapshot(fleet, make_adapter):
    async with fleet(1) as it:
        await it.add(make_adapter("cron"))
        # The stream loses its past, as when it is trimmed while a replica cannot look.
        await it.store.server.redis.delete(it.store.server.keys.events)
        await it.store.server.redis.incrby(it.store.server.keys.sequence, 7)
        stored = await it.add(make_adapter("sql", seed=1))
        await it.converged(stored.position)
        assert await it.held("sql@1") == {"r0"}


async def test_what_a_request_in_the_queue_waits_for_comes_in_before_its_turn(fleet, make_adapter):
    async with fleet(1, slots=1, host_entries=2) as it:
        first, _, third = [await it.add(make_adapter(n)) for n in ("first", "second", "third")]
        server = it.servers["r0"]
        await it.converged(third.position)
        assert await it.held("third@1") == set(), "there was no room for it"
        for missing in ("gone@1", "first@7", "first@1"):
            assert (await ask(server, first, replica="r0", missing=AdapterKey(missing)))[0] == 200
        await ask(server, first, replica="another", missing=AdapterKey("third@1"))
        assert server.report().loading == ()
        await ask(server, first, replica="r0", missing=AdapterKey("third@1"))
        await until(lambda: it.held("third@1"))
        assert await it.held("first@1") == {"r0"}, "it was in use"
        await ask(
            server,
            first,
            replica="r0",
            waiting=(AdapterKey("third@1"),),
            missing=AdapterKey("second@1"),
        )
        assert server.report().loading == ()
        assert await it.held("third@1") == {"r0"}, "somebody waits for that as well"


async def test_nothing_comes_in_before_its_turn_without_prefetch(fleet, make_adapter):
    async with fleet(1, slots=1, host_entries=2, placement={"prefetch": False}) as it:
        first, _, third = [await it.add(make_adapter(n)) for n in ("first", "second", "third")]
        await it.converged(third.position)
        await ask(it.servers["r0"], first, replica="r0", missing=AdapterKey("third@1"))
        assert it.servers["r0"].report().loading == ()
        assert await it.held("third@1") == set()


def test_when_a_replica_goes_only_its_adapters_move():
    fleet = [f"r{i}" for i in range(10)]
    before = {f"a{i}": holders(f"a{i}", 2, fleet) for i in range(300)}
    after = {name: holders(name, 2, fleet[1:]) for name in before}
    assert all(before[n] == after[n] for n in before if "r0" not in before[n])
    counts = [sum(r in held for held in before.values()) for r in fleet]
    assert min(counts) > 30, "they are spread"


async def test_what_has_no_room_in_memory_is_made_ready_on_the_node(fleet, make_adapter):
    async with fleet(2, slots=1, host_entries=1) as it:
        stored = [await it.add(make_adapter(name)) for name in ("first", "second")]
        key = f"{stored[1].version.digest}-echo"
        await until(lambda: _is_on_node(it, key))
        assert await it.held("second@1") == set()


async def _is_on_node(it: ServerFleet, key: str) -> bool:
    return NodeCache(it.settings.node_cache.root, 1).has(key)
