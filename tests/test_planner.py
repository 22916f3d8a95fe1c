"""The placement controller over a real store, and the replicas that follow it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest

from adapter_store.store import Store
from cluster.adapters import AdapterRef
from cluster.demand import Day
from cluster.members import Ingress, Replica
from cluster.plans import ModelPlan, PlacementPlan
from cluster.settings import Settings
from deployments.planner.planner import Planner
from deployments.process.process import Process
from tests.conftest import until
from tests.fleet import ServerFleet, ask, running

pytestmark = pytest.mark.redis


@pytest.fixture
def fleet(redis_url, tmp_path):
    return partial(running, redis_url=redis_url, folder=tmp_path)


async def wanted(it: ServerFleet, **rates: float) -> None:
    """An ingress reports demand."""
    await it.store.members.renew(Ingress(id="ingress", demand=rates))


@asynccontextmanager
async def planning(it: ServerFleet) -> AsyncIterator[None]:
    process = Process(it.settings.store, "p1")
    process.add(Planner(it.settings, process))
    await process.start()
    try:
        yield
    finally:
        await process.stop()


@asynccontextmanager
async def counted(*settings: Settings) -> AsyncIterator[list[tuple[Planner, Process]]]:
    """Planners that plan when they are told to; `start` would plan for ever."""
    processes = [Process(each.store, f"p{i}") for i, each in enumerate(settings)]
    planners = [Planner(*pair) for pair in zip(settings, processes, strict=True)]
    for process in processes:
        await process.catalogue.start()
    try:
        yield list(zip(planners, processes, strict=True))
    finally:
        for process in processes:
            await process.catalogue.stop()
            await process.store.close()


async def use(it: ServerFleet, stored) -> None:
    """Ask every server once, and wait until the reports tell how long that takes."""
    await asyncio.gather(*(ask(server, stored) for server in it.servers.values()))

    async def all_tell() -> bool:
        return all(m.service_s for m in await it.store.members.all() if isinstance(m, Replica))

    await until(all_tell)


async def all_hold(it: ServerFleet, key: str, count: int) -> bool:
    return len(await it.held(key)) >= count


async def test_what_grows_is_loaded_on_more_replicas_before_it_is_asked_for_there(
    fleet, make_adapter
):
    async with fleet(3, host_entries=1, slots=1, engine_args={"prefill_s": 0.5}) as it:
        filler = await it.add(make_adapter("filler"))
        await it.add(make_adapter("hot"))
        await use(it, filler)
        assert await it.held("hot@1") == set()
        # Of half a second each, two hundred a second are more than one replica can take.
        await wanted(it, hot=200.0)
        async with planning(it):
            await until(lambda: all_hold(it, "hot@1", 3))


async def test_a_copy_that_the_plan_wants_is_moved_out_last(fleet, make_adapter):
    async with fleet(1, host_entries=2, slots=1) as it:
        (server,) = it.servers.values()
        kept = await it.add(make_adapter("kept"))
        other = await it.add(make_adapter("other"))
        await ask(server, kept)
        plans = it.store.plans
        leader = await plans.lead("test", for_s=60)
        plan = ModelPlan(holders={"kept": ("r0", "r1")})
        await plans.put(leader, PlacementPlan(models={"echo": plan}))
        for _ in range(3):
            await ask(server, other)  # by use alone, it would stay
        await asyncio.sleep(0.2)  # until the plan is heard
        third = await it.add(make_adapter("third"))
        await ask(server, third)
        await until(lambda: all_hold(it, "third@1", 1))
        await until(lambda: all_hold(it, "kept@1", 1))
        assert not await it.held("other@1")


async def test_one_plans_and_another_takes_over(store):
    plans = store.plans
    first = await plans.lead("first", for_s=0.2)
    assert await plans.lead("first", for_s=0.2) == first
    assert await plans.lead("second", for_s=0.2) == 0
    await asyncio.sleep(0.3)
    second = await plans.lead("second", for_s=60)
    assert second > first
    mine = PlacementPlan(leader="second", models={"m": ModelPlan(holders={"a": ("r1",)})})
    assert await plans.put(second, mine)
    # The first one wakes up and does not know yet.
    assert not await plans.put(first, PlacementPlan(leader="first"))
    assert await plans.newest() == mine


async def test_a_new_leader_goes_on_from_the_plan_it_finds(fleet, make_adapter):
    async with fleet(4) as it:
        for i in range(4):
            await it.add(make_adapter(f"a{i}"))
        await wanted(it, a0=1.0, a1=1.0)
        async with counted(it.settings, it.settings) as ((one, _), (two, process)):
            before = await one.step()
            assert await two.step() is None
            await process.store.server.redis.delete(process.store.server.keys.leader)
            after = await two.step()
        holders = [plan.models["echo"].holders for plan in (before, after)]
        assert holders[0] == holders[1] and set(holders[0]) == {"a0", "a1"}


async def test_plans_are_followed(store):
    plans, heard = store.plans, []
    leader = await plans.lead("p", for_s=60)

    async def follow():
        async for plan in plans.follow():
            heard.append(plan.at)  # noqa: PERF401  (it is read while the loop runs)

    task = asyncio.create_task(follow())
    for at in (1.0, 2.0):
        await asyncio.sleep(0.1)
        await plans.put(leader, PlacementPlan(at=at))
    await until(lambda: _is(heard[-1:], [2.0]))
    assert heard[0] == 0.0  # none yet
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _is(a, b) -> bool:
    return a == b


async def test_the_plan_of_an_adapter_that_is_gone_is_harmless(fleet, make_adapter):
    async with fleet(1) as it:
        stored = await it.add(make_adapter("here"))
        plans = it.store.plans
        leader = await plans.lead("test", for_s=60)
        plan = ModelPlan(holders={"gone": ("r0",)}, loads={"r0": ("gone", "here")})
        await plans.put(leader, PlacementPlan(models={"echo": plan}))
        key = AdapterRef.of(stored.adapter, stored.version).key
        await until(lambda: all_hold(it, key, 1))
        await it.servers["r0"].check_health()


async def test_two_clusters_share_adapters_and_the_journal_and_nothing_else(fleet, make_adapter):
    """As during an upgrade: each has a leader of its own, who plans for its own replicas."""
    async with fleet(1) as old:
        store = old.settings.store.model_copy(update={"cluster": "new"})
        settings = old.settings.model_copy(update={"store": store})
        async with counted(old.settings, settings) as ((older, process), (newer, its)):
            assert await its.store.members.all() == []
            await its.store.members.renew(Replica(id="n0", model="echo"))
            assert {m.id for m in await old.store.members.all()} == {"r0"}
            stored = await old.add(make_adapter("cron"))
            assert (await its.store.registry.get("cron")).latest == stored.version
            for each in (process, its):
                await each.catalogue.wait_for(stored.position)
            for planner in (older, newer):
                assert await planner.step() is not None, "each leads"
            told = [h.text for h in await process.store.telemetry.journal(50)]
            assert told.count("cron@1 was registered") == 1


async def test_what_a_cluster_had_ends_some_time_after_it(store_settings):
    """Each has keys of its own name: they must not pile up with every upgrade."""
    named = store_settings.model_copy(update={"cluster": "session-1"})
    store = Store(named)
    plans = store.plans
    await store.members.renew(Replica(id="r0", model="echo"))
    await plans.put(await plans.lead("p", for_s=5), PlacementPlan(at=1.0))
    assert await plans.lead("p", for_s=5)
    redis = store.server.redis
    keys = [key async for key in redis.scan_iter("*:cluster:session-1:*")]
    assert len(keys) == 7, keys
    assert all([0 < await redis.ttl(key) <= 86_400 for key in keys])
    await store.close()


async def test_what_is_usual_at_this_time_is_loaded_before_it_is_asked_for(fleet, make_adapter):
    """Nobody has asked for it today: after an upgrade, or before the peak of the day."""
    async with fleet(3, host_entries=1, slots=1, engine_args={"prefill_s": 0.5}) as it:
        filler = await it.add(make_adapter("filler"))
        await it.add(make_adapter("peak"))
        await use(it, filler)
        assert await it.held("peak@1") == set()
        plans = it.store.plans
        ahead_s = it.settings.placement.ahead_s
        for at in (time.time() + ahead_s, time.time() + ahead_s + 60):
            await plans.put_usual(Day.quarter(at), {"peak": 200.0})
        async with planning(it):
            await until(lambda: all_hold(it, "peak@1", 3))


async def test_a_quarter_hour_that_has_ended_is_kept_for_the_days_to_come(store):
    plans = store.plans
    assert await plans.usual(48) == {}
    await plans.put_usual(48, {"lunch": 2.5})
    assert await plans.usual(48) == {"lunch": 2.5}
    await plans.put_usual(48, {})
    assert await plans.usual(48) == {}
