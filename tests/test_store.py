import asyncio
from pathlib import Path

import pytest

from adapter_store.embedded import embedded_server
from adapter_store.registry import Event, Stored
from adapter_store.server import is_before
from adapter_store.store import Store
from cluster import rollouts
from cluster.adapters import Card, Version
from cluster.errors import Conflict, ModelNotFound, StoreUnavailable, Unavailable
from cluster.members import Replica, Router
from cluster.settings import StoreSettings
from tests.conftest import LEASE_S, until

pytestmark = pytest.mark.redis


def card(name: str = "cron", **fields) -> Card:
    return Card(name=name, base_model="echo", **fields)


def version(digest: str = "d1") -> Version:
    return Version(digest=digest, size_bytes=10, rank=4, target_modules=("q_proj",))


async def put(store: Store, card: Card, version: Version, **how) -> Stored:
    """As a registration does it: nothing is stored without its blob being reserved."""
    reservation = await store.blob_refs.reserve(version.digest)
    assert reservation
    return await store.registry.put(card, version, reservation, **how)


async def test_a_put_adapter_comes_back_whole(store):
    stored = await put(store, card(examples=("a", "b"), tags=("t",)), version(), mode="create")
    found = await store.registry.get("cron")
    assert found == stored.adapter
    assert found.card.examples == ("a", "b")
    assert found.latest.number == 1
    assert found.resolve("1") == found.resolve("latest") == found.latest == found.stable
    assert found.resolve("2") is None


async def test_new_weights_make_a_new_version_and_the_same_weights_do_not(store):
    await put(store, card(), version("d1"), mode="create")
    second = await put(store, card(), version("d2"), mode="update")
    again = await put(store, card(description="better words"), version("d2"), mode="upsert")
    assert (second.version.number, second.is_new_version) == (2, True)
    assert (again.version.number, again.is_new_version) == (2, False)
    assert again.adapter.card.description == "better words"
    assert sorted(again.adapter.versions) == [1, 2]


async def test_going_back_to_old_weights_moves_latest_back(store):
    await put(store, card(), version("d1"), mode="create")
    await put(store, card(), version("d2"), mode="update")
    back = await put(store, card(), version("d1"), mode="update")
    assert back.adapter.latest.number == 1


async def test_the_mode_is_kept(store):
    with pytest.raises(ModelNotFound):
        await put(store, card(), version(), mode="update")
    await put(store, card(), version(), mode="create")
    with pytest.raises(Conflict, match="exists"):
        await put(store, card(), version("d2"), mode="create")
    assert sorted((await store.registry.get("cron")).versions) == [1]


async def test_a_version_number_is_never_given_twice(store):
    await put(store, card(), version("d1"), mode="create")
    await store.registry.delete("cron")
    assert await store.registry.get("cron") is None
    stored = await put(store, card(), version("d2"), mode="create")
    assert stored.version.number == 2


async def test_deleting_what_is_not_there_says_so(store):
    with pytest.raises(ModelNotFound, match="'nope'"):
        await store.registry.delete("nope")


async def test_all_are_read_in_the_order_of_their_names(store):
    for name in ("b", "a", "d", "c"):
        await put(store, card(name), version(), mode="create")
    assert [a.name async for a in store.registry.all()] == ["a", "b", "c", "d"]


async def test_events_tell_every_change_in_order(store):
    assert await store.registry.position() == ("0-0", 0)
    await put(store, card("a"), version(), mode="create")
    second = await put(store, card("b"), version(), mode="create")
    deleted = await store.registry.delete("a")
    events = await store.registry.events_after("0-0", block_s=1)
    assert [(e.sequence, e.name) for e in events] == [(1, "a"), (2, "b"), (3, "a")]
    assert (events[-1].position, 3) == (deleted, 3) == await store.registry.position()
    third = Event(position=deleted, sequence=3, name="a")
    assert await store.registry.events_after(second.position, block_s=1) == [third]
    assert await store.registry.events_after(deleted, block_s=0.01) == []


async def test_writers_at_once_never_share_a_number_or_lose_an_event(connect):
    stores = [connect() for _ in range(8)]
    await asyncio.gather(
        *(
            put(s, card(), version(f"{i}-{n}"), mode="upsert")
            for i, s in enumerate(stores)
            for n in range(20)
        )
    )
    adapter = await stores[0].registry.get("cron")
    assert sorted(adapter.versions) == list(range(1, 161))
    assert len({v.digest for v in adapter.versions.values()}) == 160
    assert len(await stores[0].registry.events_after("0-0", block_s=1)) == 160
    for s in stores:
        await s.close()


async def test_a_member_that_falls_silent_is_forgotten(store):
    await store.members.renew(Replica(id="r1", model="echo"))
    await store.members.renew(Replica(id="r2", model="echo"))
    assert [m.id for m in await store.members.all()] == ["r1", "r2"]
    await store.members.leave("r2")
    assert [m.id for m in await store.members.all()] == ["r1"]

    async def gone() -> bool:
        return not await store.members.all()

    await until(gone, timeout_s=LEASE_S + 2)


async def test_converged_waits_for_all_and_names_who_is_late(store):
    position = (await put(store, card(), version(), mode="create")).position
    await store.members.renew(Replica(id="quick", model="echo", position=position))
    await store.members.renew(Router(id="slow"))
    with pytest.raises(Unavailable, match="router slow"):
        await store.members.converged(position, timeout_s=0.1)
    waiting = asyncio.create_task(store.members.converged(position, timeout_s=5))
    await asyncio.sleep(0.1)
    await store.members.renew(Router(id="slow", position=position))
    assert {m.id for m in await waiting} == {"quick", "slow"}
    with pytest.raises(Unavailable, match="missing"):
        await store.members.converged(position, timeout_s=0.1, at_least=3)


async def test_converged_waits_for_loads_and_tells_of_one_that_failed(store):
    position = (await put(store, card(), version(), mode="create")).position
    loading = Replica(id="r", model="echo", position=position, loading=("cron@1",))
    await store.members.renew(loading)
    assert await store.members.converged(position, timeout_s=1) == [loading], "the change alone"
    with pytest.raises(Unavailable, match="replica r"):
        await store.members.converged(position, timeout_s=0.1, loaded="cron@1")
    waiting = asyncio.create_task(store.members.converged(position, timeout_s=5, loaded="cron@1"))
    await asyncio.sleep(0.1)
    failed = loading.model_copy(update={"loading": (), "problems": {"cron@1": "torn"}})
    await store.members.renew(failed)
    assert await waiting == [failed]


async def test_a_store_that_is_down_is_said_to_be(tmp_path: Path):
    with embedded_server(tmp_path) as server:
        store = Store(StoreSettings(url=server.url))
        await put(store, card(), version(), mode="create")
    with pytest.raises(StoreUnavailable):
        await store.registry.get("cron")
    with pytest.raises(StoreUnavailable):
        await put(store, card(), version(), mode="upsert")
    await store.close()


@pytest.mark.parametrize(("earlier", "later"), [("0-0", "1-0"), ("9-5", "10-0"), ("10-9", "10-10")])
def test_positions_order_as_numbers(earlier, later):
    assert is_before(earlier, later)
    assert not is_before(later, earlier)
    assert not is_before(later, later)


async def test_what_is_odd_about_a_version_is_kept_with_it_and_goes_with_it(store):
    odd = version("a" * 64).model_copy(update={"notices": ("alpha is 0",)})
    for one in (odd, version("b" * 64)):
        reservation = await store.blob_refs.reserve(one.digest)
        await store.registry.put(card("cron"), one, reservation, mode="upsert")
    adapter = await store.registry.get("cron")
    assert [v.notices for v in adapter.versions.values()] == [("alpha is 0",), ()]
    changed = await store.registry.change(
        "cron", lambda a: rollouts.remove_version(a, a.versions[1])
    )
    assert changed.adapter.versions[2].notices == ()
    assert (await store.registry.get("cron")).versions.keys() == {2}
