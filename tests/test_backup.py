"""Backup, restore, and the removal of what nobody needs."""

import asyncio
import contextlib
import tarfile
import time

import pytest
import yaml
from typer.testing import CliRunner

from adapter_store.backup import back_up, restore
from adapter_store.collector import collect
from adapter_store.registration import Registrar
from adapter_store.store import Store
from cluster import rollouts
from cluster.adapters import Gate
from cluster.errors import Conflict, InvalidRequest, Unavailable
from cluster.requests import Registration
from cluster.settings import StoreSettings
from cluster.tasks import cancel
from deployments.command.cli import app
from tests.conftest import ECHO_FACTS

pytestmark = pytest.mark.redis


def silent(done: int, total: int) -> None:
    pass


@pytest.fixture
async def elsewhere(redis_url, tmp_path):
    """Another, empty store with blobs of its own."""
    settings = StoreSettings(
        url=redis_url, namespace=f"elsewhere-{time.time_ns()}", data_dir=tmp_path / "elsewhere"
    )
    store = Store(settings)
    await store.registry.put_base_model(ECHO_FACTS)
    yield Registrar(store, settings), store
    await store.close()


async def add(registrar, folder, mode="create", **fields):
    return await registrar.register(Registration(source=str(folder), **fields), mode=mode)


async def a_history(store, registrar, make_adapter) -> None:
    """Two adapters: one with three versions, an alias and a rollout; one that shares weights."""
    for seed in (0, 1, 2):
        await add(registrar, make_adapter("cron", seed=seed), mode="upsert", promote=seed == 0)
    await store.registry.change("cron", lambda a: rollouts.set_alias(a, "blue", a.versions[2]))
    await store.registry.change(
        "cron",
        lambda a: rollouts.begin(
            a, a.versions[3], percents=(5, 100), step_s=60.0, gate=Gate(), now=time.time()
        ),
    )
    await add(registrar, make_adapter("cron"), name="twin")
    await add(registrar, make_adapter("gone"))
    await store.registry.delete("gone")


async def test_any_name_and_any_text_come_back(store, registrar, elsewhere, make_adapter, tmp_path):
    names = ("a..b", "org/Name", "日本語/ü|:{}")
    for name in names:
        await add(registrar, make_adapter(), name=name, description="two\u2028lines\x85")
    file = tmp_path / "backup.tar"
    await back_up(store, registrar.blobs, file, silent)
    target, target_store = elsewhere
    done = await restore(target_store, target.blobs, file, silent)
    assert set(done.restored) == set(names)
    for name in names:
        there = await target_store.registry.get(name)
        assert there.card == (await store.registry.get(name)).card


async def test_a_restored_registry_is_the_same(store, registrar, elsewhere, make_adapter, tmp_path):
    await a_history(store, registrar, make_adapter)
    file = tmp_path / "backup.tar"
    made = await back_up(store, registrar.blobs, file, silent)
    assert (made.adapters, made.blobs) == (2, 3)
    target, target_store = elsewhere
    done = await restore(target_store, target.blobs, file, silent)
    assert (done.restored, done.kept) == (("cron", "twin"), ())
    for name in ("cron", "twin"):
        there, here = await target_store.registry.get(name), await store.registry.get(name)
        moved = {"revision", "rollout", "last_rollout"}
        assert there.model_dump(exclude=moved) == here.model_dump(exclude=moved)
    ended = (await target_store.registry.get("cron")).last_rollout
    assert ended.reason == "restored from a backup while it was under way"
    assert set(target.blobs.digests()) == set(registrar.blobs.digests())
    # Numbers go on where they were: a version's name is never given twice.
    next_one = await add(target, make_adapter("twin", seed=9), mode="update")
    assert next_one.version.number == 2
    again = await add(target, make_adapter("gone"))
    assert again.version.number == 2, "also of adapters that were removed before the backup"


async def test_restoring_again_changes_nothing(store, registrar, make_adapter, tmp_path):
    await add(registrar, make_adapter("cron"))
    await back_up(store, registrar.blobs, tmp_path / "b.tar", silent)
    before = await store.registry.get("cron")
    done = await restore(store, registrar.blobs, tmp_path / "b.tar", silent)
    assert (done.restored, done.kept) == ((), ("cron",))
    assert await store.registry.get("cron") == before


async def test_a_damaged_backup_is_refused_before_anything_is_written(
    store, registrar, elsewhere, make_adapter, tmp_path
):
    await add(registrar, make_adapter("cron"))
    good = tmp_path / "b.tar"
    await back_up(store, registrar.blobs, good, silent)
    cut = tmp_path / "cut.tar"
    cut.write_bytes(good.read_bytes()[:2000])
    empty = tmp_path / "empty.tar"
    with tarfile.open(empty, "w"):
        pass
    noise = tmp_path / "noise.tar"
    noise.write_bytes(b"noise" * 1000)
    target, target_store = elsewhere
    for file in (cut, empty, noise, tmp_path / "nothing.tar"):
        with pytest.raises(InvalidRequest):
            await restore(target_store, target.blobs, file, silent)
    assert [a async for a in target_store.registry.all()] == []


async def test_a_backup_that_cannot_be_whole_is_not_written(
    store, registrar, make_adapter, tmp_path
):
    stored = await add(registrar, make_adapter("cron"))
    registrar.blobs.remove(stored.version.digest)
    with pytest.raises(Unavailable, match="the files of cron are gone"):
        await back_up(store, registrar.blobs, tmp_path / "b.tar", silent)
    assert [p.name for p in tmp_path.glob("b.tar*")] == []


async def test_a_backup_goes_into_a_file_in_a_folder(store, registrar, make_adapter, tmp_path):
    await add(registrar, make_adapter("cron"))
    for target in (tmp_path / "nowhere" / "b.tar", tmp_path):
        with pytest.raises(InvalidRequest, match="a file in a folder that is there"):
            await back_up(store, registrar.blobs, target, silent)


# -- garbage ------------------------------------------------------------------------------------


async def unreserve(store, registrar) -> None:
    """As if the time of all reservations had passed."""
    for digest, _ in registrar.blobs.digests():
        await store.server.redis.delete(store.server.keys.reserved(digest))


async def sweep(store, registrar, *, dry_run: bool):
    return await collect(store, registrar.blobs, registrar.uploads, dry_run=dry_run)


async def test_what_no_version_uses_is_collected_after_a_dry_run(store, registrar, make_adapter):
    for seed in (0, 1):
        await add(registrar, make_adapter("cron", seed=seed), mode="upsert")
    await add(registrar, make_adapter("cron"), name="twin")
    await unreserve(store, registrar)
    assert (await sweep(store, registrar, dry_run=False)).blobs == ()
    await store.registry.delete("cron")
    found = await sweep(store, registrar, dry_run=True)
    assert len(found.blobs) == 1
    assert found.blob_bytes > 0
    assert len(list(registrar.blobs.digests())) == 2, "a dry run removes nothing"
    assert await sweep(store, registrar, dry_run=False) == found
    (left,) = registrar.blobs.digests()
    assert left[0] == (await store.registry.get("twin")).latest.digest


async def test_a_blob_on_its_way_in_is_left_alone(store, registrar, make_adapter):
    digest, _ = registrar.blobs.commit(make_adapter())
    await store.blob_refs.reserve(digest)
    await add(registrar, make_adapter("other", seed=1))
    assert (await sweep(store, registrar, dry_run=False)).blobs == ()
    await unreserve(store, registrar)
    assert (await sweep(store, registrar, dry_run=False)).blobs == (digest,)


async def test_a_store_without_adapters_may_be_the_wrong_one(store, registrar, make_adapter):
    registrar.blobs.commit(make_adapter())
    with pytest.raises(Conflict, match="is it the right one"):
        await sweep(store, registrar, dry_run=False)
    assert len((await sweep(store, registrar, dry_run=True)).blobs) == 1
    sure = {"dry_run": False, "may_be_empty": True}
    assert len((await collect(store, registrar.blobs, registrar.uploads, **sure)).blobs) == 1


async def test_content_that_is_being_removed_cannot_be_registered_meanwhile(
    store, registrar, make_adapter
):
    digest, _ = registrar.blobs.commit(make_adapter("cron"))
    assert await store.blob_refs.condemn(digest, for_s=60)
    adding = asyncio.create_task(add(registrar, make_adapter("cron")))
    await asyncio.sleep(0.3)
    assert not adding.done()
    registrar.blobs.remove(digest)
    await store.blob_refs.absolve(digest)
    stored = await adding
    with registrar.blobs.opened(stored.version.digest):
        pass


async def test_registrations_and_the_collector_at_once_lose_no_files(
    store, registrar, make_adapter
):
    folders = [make_adapter("cron", seed=seed) for seed in range(4)]

    async def come_and_go(n: int) -> None:
        for i in range(10):
            await add(registrar, folders[(n + i) % 4], name=f"a{n}", mode="upsert")
            if i % 3 == 2:
                await store.registry.delete(f"a{n}")

    async def tidy() -> None:
        while True:
            await unreserve(store, registrar)
            with contextlib.suppress(Conflict):  # there are no adapters at the moment
                await sweep(store, registrar, dry_run=False)
            # No reservation lives through a round: leave a registration time for one in between.
            await asyncio.sleep(0.02)

    tidying = asyncio.create_task(tidy())
    await asyncio.gather(*(come_and_go(n) for n in range(4)))
    assert not tidying.done()
    await cancel(tidying)
    async for adapter in store.registry.all():
        for version in adapter.versions.values():
            with registrar.blobs.opened(version.digest):
                pass


async def test_a_name_that_came_meanwhile_is_kept(store, registrar, make_adapter):
    await add(registrar, make_adapter("cron"))
    adapter = await store.registry.get("cron")
    with pytest.raises(Conflict, match="exists"):
        await store.registry.restore(adapter, {v.digest: "r" for v in adapter.versions.values()})


def test_dated_backups_are_kept_as_many_as_wanted(redis_url, tmp_path):
    """What the CronJob of the chart runs, night after night."""
    config = tmp_path / "roundhouse.yaml"
    model = {"id": "echo", "path": "none", "engine": "echo"}
    store = {"url": redis_url, "namespace": f"dated-{time.time_ns()}", "data_dir": str(tmp_path)}
    config.write_text(yaml.safe_dump({"models": [model], "store": store}))
    others = [tmp_path / "backup.tar", tmp_path / "backup-by-hand.tar"]
    nights = [tmp_path / f"backup-202611{day}T031700Z.tar" for day in (20, 21, 22)]
    for file in (*others, *nights):
        file.write_bytes(b"")
    words = ["store", "backup", str(tmp_path / "backup.tar"), str(config), "--keep", "2"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    kept = sorted(file for file in tmp_path.glob("backup*.tar") if file not in others)
    assert [file.stat().st_size > 0 for file in kept] == [False, True]
    assert kept[0] == nights[-1]
    assert all(file.exists() for file in others)
