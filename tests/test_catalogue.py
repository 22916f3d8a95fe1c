from pathlib import Path

import pytest

from adapter_store.catalogue import Catalogue
from adapter_store.embedded import embedded_server
from adapter_store.store import Store
from cluster.settings import StoreSettings
from tests.conftest import until
from tests.test_store import card, put, version

pytestmark = pytest.mark.redis


@pytest.fixture
async def catalogue(store):
    catalogue = Catalogue(store.registry)
    await put(store, card("early"), version(), mode="create")
    await catalogue.start()
    yield catalogue
    await catalogue.stop()


async def test_it_starts_with_what_is_there_and_follows_what_comes(store, catalogue):
    assert set(catalogue.adapters) == {"early"}
    stored = await put(store, card("late"), version(), mode="create")
    await catalogue.wait_for(stored.position)
    assert set(catalogue.adapters) == {"early", "late"}
    await catalogue.wait_for(await store.registry.delete("early"))
    assert set(catalogue.adapters) == {"late"}


async def test_names_resolve_to_versions(store, catalogue):
    stored = await put(store, card("early"), version("d2"), mode="update")
    await catalogue.wait_for(stored.position)
    assert catalogue.find("early")[1].number == 2
    assert catalogue.find("early@1")[1].number == 1
    assert catalogue.find("early@latest")[1].number == 2
    assert catalogue.find("early@9") is None
    assert catalogue.find("erly") is None


async def test_a_listener_hears_changes_before_the_position_moves(store):
    heard = []

    async def listen(changes):
        heard.append((catalogue.position, {n: a and a.latest.number for n, a in changes.items()}))

    catalogue = Catalogue(store.registry)
    catalogue.on_change(listen)
    await catalogue.start()
    stored = await put(store, card("x"), version(), mode="create")
    await catalogue.wait_for(stored.position)
    await catalogue.wait_for(await store.registry.delete("x"))
    assert heard == [("0-0", {"x": 1}), (stored.position, {"x": None})]
    await catalogue.stop()


async def test_it_serves_on_while_the_store_is_down_and_catches_up_after(tmp_path: Path):
    with embedded_server(tmp_path) as server:
        store = Store(StoreSettings(url=server.url))
        await put(store, card("kept"), version(), mode="create")
        catalogue = Catalogue(store.registry)
        await catalogue.start()
        server.stop()
        await until(lambda: catalogue.is_stale)
        assert set(catalogue.adapters) == {"kept"}
        server.revive()
        await until(lambda: not catalogue.is_stale)
        await put(store, card("new"), version(), mode="create")
        await until(lambda: set(catalogue.adapters) == {"kept", "new"})
        await catalogue.stop()
        await store.close()


async def test_what_was_deleted_while_it_could_not_look_is_gone_after(store):
    """The stream may have been trimmed meanwhile: it compares with a snapshot, not with events."""
    await put(store, card("gone"), version(), mode="create")
    catalogue = Catalogue(store.registry)
    await catalogue.start()
    await catalogue.stop()
    await store.registry.delete("gone")
    await put(store, card("new"), version(), mode="create")
    await catalogue.start()
    assert set(catalogue.adapters) == {"new"}
    await catalogue.stop()


async def test_a_listener_that_fails_is_seen_by_the_health_check(store):
    async def fail(_):
        raise RuntimeError("cannot learn this")

    catalogue = Catalogue(store.registry)
    catalogue.on_change(fail)
    await catalogue.start()
    catalogue.check()
    await put(store, card("x"), version(), mode="create")

    def failed() -> bool:
        try:
            catalogue.check()
        except RuntimeError:
            return True
        return False

    await until(failed)
    await catalogue.stop()
