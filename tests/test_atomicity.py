"""Eight writers at once, doing everything there is to do; the invariants hold at every look."""

import asyncio
import random
import time

import pytest

from adapter_store.catalogue import Catalogue
from adapter_store.registry import BlobUnreserved
from adapter_store.store import Store
from cluster import rollouts
from cluster.adapters import Adapter, Gate
from cluster.errors import Conflict, ModelNotFound
from tests.test_store import card, put, version

pytestmark = pytest.mark.redis

NAMES = ("cron", "sql", "git")
WRITERS, STEPS = 8, 120


def check(adapter: Adapter) -> None:
    assert set(adapter.aliases) >= {"latest", "stable"}
    assert set(adapter.aliases.values()) <= set(adapter.versions), "an alias points nowhere"
    assert set(adapter.previous) <= set(adapter.versions)
    if adapter.rollout:
        assert adapter.rollout.version in adapter.versions


def set_alias(adapter: Adapter, rng: random.Random) -> Adapter:
    return rollouts.set_alias(
        adapter, rng.choice("xyz"), rng.choice(list(adapter.versions.values()))
    )


def drop_version(adapter: Adapter, rng: random.Random) -> Adapter:
    return rollouts.remove_version(adapter, rng.choice(list(adapter.versions.values())))


def begin(adapter: Adapter, rng: random.Random) -> Adapter:
    chosen = rng.choice(list(adapter.versions.values()))
    return rollouts.begin(
        adapter, chosen, percents=(10, 100), step_s=1.0, gate=Gate(), now=time.time()
    )


def advance(adapter: Adapter, _: random.Random) -> Adapter:
    if adapter.rollout is None:
        raise Conflict("nothing to advance")
    return rollouts.advance(adapter, None, time.time())


def roll_back(adapter: Adapter, _: random.Random) -> Adapter:
    return rollouts.roll_back(adapter, None, time.time())


EDITS = (set_alias, drop_version, begin, advance, roll_back)


async def write(store: Store, rng: random.Random, events: list[str]) -> None:
    """Random changes; the positions of those that were acknowledged go into `events`."""
    for _ in range(STEPS):
        name, dice = rng.choice(NAMES), rng.random()
        try:
            if dice < 0.4:
                content = version(f"d{rng.randrange(12)}")
                promote = rng.random() < 0.7
                stored = await put(store, card(name), content, mode="upsert", promote=promote)
                events.append(stored.position)
            elif dice < 0.45:
                events.append(await store.registry.delete(name))
            else:
                edit = rng.choice(EDITS)
                changed = await store.registry.change(name, lambda a, edit=edit: edit(a, rng))
                events.append(changed.position)
        except (Conflict, ModelNotFound, BlobUnreserved):
            pass


async def look(store: Store, stop: asyncio.Event) -> int:
    """Read all the time; what is read is whole."""
    looks = 0
    while not stop.is_set():
        async for adapter in store.registry.all():
            check(adapter)
        looks += 1
    return looks


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_eight_writers_keep_the_invariants(connect, seed):
    stores = [connect() for _ in range(WRITERS + 2)]
    *writers, reader, follower = stores
    catalogue = Catalogue(follower.registry)
    await catalogue.start()
    stop = asyncio.Event()
    looking = asyncio.create_task(look(reader, stop))
    events: list[str] = []
    await asyncio.gather(
        *(write(s, random.Random(f"{seed}-{i}"), events) for i, s in enumerate(writers))
    )
    stop.set()
    assert await looking > 10

    adapters = {a.name: a async for a in reader.registry.all()}
    for adapter in adapters.values():
        check(adapter)
    # No event was lost, none was told twice, and the follower is where the store is.
    told = await reader.registry.events_after("0-0", block_s=1)
    assert len(told) == len(events) >= 200
    assert [e.sequence for e in told] == list(range(1, len(told) + 1))
    assert {e.position for e in told} == set(events)
    await catalogue.wait_for(told[-1].position)
    assert catalogue.adapters == adapters
    # Every version holds its blob, and no blob is held by a version that is gone.
    held = {f"{a.name}@{n}": v.digest for a in adapters.values() for n, v in a.versions.items()}
    for digest in {f"d{i}" for i in range(12)}:
        users = await reader.server.redis.smembers(reader.server.keys.blob(digest))
        assert users == {key for key, d in held.items() if d == digest}
    await catalogue.stop()
    for store in stores:
        await store.close()
