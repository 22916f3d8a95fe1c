import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from adapter_store.files.blobs import FILES, WEIGHTS, LocalBlobs
from adapter_store.files.node_cache import NodeCache
from cluster.adapters import AdapterRef, Tier
from cluster.errors import AdapterLoadFailed, ModelNotFound
from cluster.settings import BaseModelSettings, LoraSettings
from deployments.engines.echo import EchoEngine
from deployments.replica.adapter_cache import AdapterCache
from deployments.replica.adapter_files import AdapterFiles
from deployments.replica.worth import UsageLog
from tests.conftest import until

HOST_ENTRIES = 4
LORA = LoraSettings(slots=2, host_entries=HOST_ENTRIES)


def of_bytes(host_bytes: int) -> LoraSettings:
    return LORA.model_copy(update={"host_bytes": host_bytes})


class CountingEngine(EchoEngine):
    """An echo engine that remembers what it was told to do."""

    def __init__(self, settings: BaseModelSettings) -> None:
        super().__init__(settings)
        self.loads: list[str] = []
        self.loading = 0
        self.most_at_once = 0
        self.unloads: list[str] = []

    async def load(self, ref: AdapterRef, folder: Path) -> None:
        self.loads.append(ref.key)
        self.loading += 1
        self.most_at_once = max(self.most_at_once, self.loading)
        try:
            await super().load(ref, folder)
        finally:
            self.loading -= 1

    async def unload(self, ref: AdapterRef) -> None:
        self.unloads.append(ref.key)
        await super().unload(ref)


@pytest.fixture
def engine():
    return CountingEngine(
        BaseModelSettings(
            id="echo",
            path="none",
            engine="echo",
            lora=LORA,
            engine_args={"load_s": 0.05},
        )
    )


@pytest.fixture
def blobs(tmp_path):
    return LocalBlobs(tmp_path / "store")


@pytest.fixture
def ref(blobs, make_adapter):
    """Names a version whose files are in the blob store; `lost` has none."""
    digest, _ = blobs.commit(make_adapter())

    def make(name: str, version: int = 1) -> AdapterRef:
        digest_of_it = "0" * 64 if name == "lost" else digest
        return AdapterRef(name=name, version=version, digest=digest_of_it)

    return make


@pytest.fixture
def node_cache(tmp_path):
    return NodeCache(tmp_path / "node", 2**20)


@pytest.fixture
def cache(engine, blobs, node_cache):
    return AdapterCache(engine, AdapterFiles(blobs, node_cache, engine), LORA)


async def test_a_lease_says_where_the_adapter_was(cache, ref):
    async with cache.lease(ref("a")) as found:
        assert found is Tier.REMOTE
    async with cache.lease(ref("a")) as found:
        assert found is Tier.SLOT
    async with cache.lease(ref("b")) as found:
        assert found is Tier.NODE  # of the same content
    async with cache.lease(ref("c")):
        pass
    async with cache.lease(ref("c")) as found:
        assert found is Tier.HOST  # both slots are taken, and nothing was generated since


async def test_requests_for_one_version_share_a_load(cache, engine, ref):
    async def use() -> None:
        async with cache.lease(ref("a")):
            pass

    await asyncio.gather(*(use() for _ in range(20)))
    assert engine.loads == ["a@1"]


async def test_different_versions_load_side_by_side(cache, engine, ref):
    await asyncio.gather(cache.ensure(ref("a")), cache.ensure(ref("b")))
    assert engine.most_at_once == 2


async def test_a_waiter_that_gives_up_takes_nothing_from_the_others(cache, ref):
    first = asyncio.create_task(cache.ensure(ref("a")))
    second = asyncio.create_task(cache.ensure(ref("a")))
    await asyncio.sleep(0.01)
    first.cancel()
    await second
    assert cache.residency.tier("a@1") is Tier.SLOT


async def test_a_failed_load_is_reported_and_can_be_tried_again(cache, engine, ref):
    with pytest.raises(AdapterLoadFailed, match="lost@1"):
        async with cache.lease(ref("lost")):
            raise AssertionError("the block must not run")
    assert "lost@1" in cache.problems
    assert cache.residency.tier("lost@1") is None
    with pytest.raises(AdapterLoadFailed):
        await cache.ensure(ref("lost"))
    assert engine.loads == [], "it was refused before the engine's loop"


async def test_a_drop_waits_for_the_requests_that_use_the_version(cache, engine, ref):
    async with cache.lease(ref("a")):
        drop = asyncio.create_task(cache.drop(ref("a")))
        await asyncio.sleep(0.05)
        assert engine.unloads == []
        with pytest.raises(ModelNotFound):
            async with cache.lease(ref("a")):
                raise AssertionError("no new lease on what is leaving")
    await drop
    assert engine.unloads == ["a@1"]
    await until(lambda: cache.residency.tier("a@1") is None)


async def test_a_drop_waits_for_a_load_that_nobody_waits_for_any_more(cache, engine, ref):
    waiter = asyncio.create_task(cache.ensure(ref("a")))
    await asyncio.sleep(0.01)
    waiter.cancel()
    await cache.drop(ref("a"))
    assert engine.unloads == ["a@1"]
    assert cache.residency.tier("a@1") is None


async def test_problems_of_a_changed_adapter_are_forgotten(cache, ref):
    with pytest.raises(AdapterLoadFailed):
        await cache.ensure(ref("lost"))
    cache.clear_problems("lost")
    assert cache.problems == {}


async def test_the_least_asked_for_gives_way_and_what_is_leased_never(cache, engine, ref):
    for name in ("a", "b", "b", "c", "c", "d", "d"):
        async with cache.lease(ref(name)):
            pass
    # By its use, "a" would be the first to go.
    async with cache.lease(ref("a")), cache.lease(ref("e")):
        assert engine.unloads == ["b@1"]
    engine.unloads.clear()
    async with cache.lease(ref("f")):
        assert engine.unloads == ["e@1"], "asked for once only"


async def test_what_waiting_requests_will_need_stays(cache, engine, ref):
    for name in ("a", "b", "b", "c", "c", "d", "d"):
        async with cache.lease(ref(name)):
            pass
    cache.expect(["a@1"])
    async with cache.lease(ref("e")):
        assert engine.unloads == ["b@1"], "used more often, but nobody waits for it"
    engine.unloads.clear()
    # Another ingress, where nobody waits, says nothing of the first one's queue.
    cache.expect([])
    async with cache.lease(ref("f")):
        assert engine.unloads == ["e@1"]


async def test_those_behind_the_first_of_an_adapter_keep_its_claim(cache, engine, ref):
    for name in ("b", "b", "c", "c", "d", "d"):
        async with cache.lease(ref(name)):
            pass
    cache.expect(["a@1"], used="a@1")
    async with cache.lease(ref("a")):
        pass
    async with cache.lease(ref("e")):
        assert engine.unloads == ["b@1"]


async def test_what_waited_has_no_claim_after_its_turn(cache, engine, ref):
    for name in ("b", "b", "b", "c", "c", "c", "d", "d", "d"):
        cache.expect(["a@1"])
        async with cache.lease(ref(name)):
            pass
    cache.expect([], used="a@1")
    async with cache.lease(ref("a")):
        pass
    async with cache.lease(ref("e")):
        assert engine.unloads == ["a@1"]


async def test_bytes_bound_what_is_held_as_entries_do(engine, blobs, node_cache, ref):
    files = AdapterFiles(blobs, node_cache, engine)
    with blobs.opened(ref("a").digest) as folder:
        size = sum(file.stat().st_size for file in folder.iterdir() if file.name in FILES)
    two = AdapterCache(engine, files, of_bytes(5 * size // 2))
    for name in "abc":
        async with two.lease(ref(name)):
            pass
    assert engine.unloads == ["a@1"]
    none = AdapterCache(engine, files, of_bytes(size // 2))
    with pytest.raises(AdapterLoadFailed, match=r"lora\.host_bytes allows"):
        await none.ensure(ref("d"))


def test_where_bytes_are_short_what_is_large_must_be_asked_for_more():
    log = UsageLog(300.0)
    for key, size_bytes, requests in (("large@1", 64, 2), ("small@1", 8, 5)):
        log.cost(key, size_bytes)
        for _ in range(requests):
            log.count(key)
    by_entries = sorted(("large@1", "small@1"), key=log.rank)
    by_bytes = sorted(("large@1", "small@1"), key=lambda key: log.rank(key, per_byte=True))
    assert by_entries == ["small@1", "large@1"], "eight times as much to load again"
    assert by_bytes == ["large@1", "small@1"], "in its room are eight that are asked for more"


async def test_a_load_waits_when_every_version_is_in_use(cache, engine, ref):
    async with AsyncExitStack() as held:
        for name in "abcd":
            await held.enter_async_context(cache.lease(ref(name)))
        late = asyncio.create_task(cache.ensure(ref("e")))
        await asyncio.sleep(0.1)
        assert not late.done()
        assert "e@1" not in engine.loads
    await late
    assert len(engine.unloads) == 1
    assert sum(cache.residency.tier(f"{n}@1") is not None for n in "abcde") == HOST_ENTRIES


async def test_what_comes_back_after_an_eviction_is_loaded_anew(cache, engine, ref):
    for name in "abcdea":
        async with cache.lease(ref(name)):
            assert ref(name).key in cache.residency.slots + cache.residency.host
    assert engine.loads.count("a@1") == 2


async def test_a_damaged_blob_is_refused_and_leaves_nothing(cache, engine, blobs, node_cache, ref):
    with blobs.opened(ref("a").digest) as folder:
        (folder / WEIGHTS).write_bytes(b"rubbish")
    with pytest.raises(AdapterLoadFailed, match="damaged"):
        await cache.ensure(ref("a"))
    assert engine.loads == []
    assert node_cache.size_bytes() == 0
    assert cache.residency.tier("a@1") is None
    assert "a@1" in cache.problems


async def test_whatever_goes_wrong_in_preparing_is_a_failed_load(cache, engine, ref, monkeypatch):
    def stumble(*_):
        raise KeyError("q_proj")

    monkeypatch.setattr(engine, "prepare", stumble)
    with pytest.raises(AdapterLoadFailed, match=r"cannot use a@1.*q_proj"):
        await cache.ensure(ref("a"))
    assert "a@1" in cache.problems


async def test_a_move_during_a_refresh_is_seen(cache, engine, ref, monkeypatch):
    await cache.ensure(ref("a"))
    asked = []

    async def slowly(worth):
        asked.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.05)
        return await EchoEngine.residency(engine, worth)

    monkeypatch.setattr(engine, "residency", slowly)
    cache.refresh_soon()
    await asyncio.sleep(0.01)
    for _ in range(3):
        cache.refresh_soon()
    await until(lambda: len(asked) == 2)
    await asyncio.sleep(0.1)
    assert len(asked) == 2


async def test_a_prepared_file_that_was_damaged_is_made_anew(cache, tmp_path, ref):
    for name in "ab":
        await cache.ensure(ref(name))
    (entry,) = (p for p in (tmp_path / "node").iterdir() if p.is_dir())
    whole = (entry / WEIGHTS).read_bytes()
    (entry / WEIGHTS).write_bytes(whole[:-4] + b"oops")
    await cache.ensure(ref("c"))
    assert (entry / WEIGHTS).read_bytes() == whole


async def test_an_engine_that_refuses_frees_the_room(cache, engine, node_cache, ref, monkeypatch):
    async def refuse(*_):
        raise AdapterLoadFailed("no")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "load", refuse)
        for _ in range(HOST_ENTRIES + 1):
            with pytest.raises(AdapterLoadFailed):
                await cache.ensure(ref("a"))
        assert node_cache.size_bytes() == 0, "what the engine refuses is prepared anew"
    await cache.ensure(ref("a"))
    assert cache.residency.tier("a@1") is Tier.SLOT


def test_usage_forgets_and_weighs_the_cost_of_a_load():
    now = 0.0
    log = UsageLog(half_life_s=10, clock=lambda: now)
    for _ in range(4):
        log.count("old@1")
    log.count("big@1")
    log.cost("big@1", 3)
    log.cost("old@1", 1)
    assert log.worth("old@1") == 4
    assert log.worth("big@1") == 3
    now = 20.0
    log.count("new@1")
    assert log.worth("old@1") == 1, "halved twice"
    assert log.worth("never@1") == 0


async def test_of_what_is_waited_for_the_last_in_the_queue_leaves_first(cache, engine, ref):
    for name in ("a", "b", "b", "c", "c", "c", "d"):
        async with cache.lease(ref(name)):
            pass
    cache.expect(["d@1", "a@1", "b@1", "c@1"])
    async with cache.lease(ref("e")):
        assert engine.unloads == ["c@1"], "used most, but not soon"


async def test_there_is_spare_room_until_all_that_is_here_is_needed(engine, blobs, node_cache, ref):
    files = AdapterFiles(blobs, node_cache, engine)
    cache = AdapterCache(engine, files, LORA, is_pinned=lambda name: name == "a")
    assert cache.has_spare(1), "it is empty"
    for name in "abcd":
        async with cache.lease(ref(name)):
            pass
    cache.keep([ref("b").key])
    async with cache.lease(ref("c")):
        assert cache.has_spare(1), "d may leave"
        assert not cache.has_spare(1, beside="d@1")
        coming = asyncio.create_task(cache.ensure(ref("e")))
        await until(lambda: cache.loading)
        assert not cache.has_spare(1), "d leaves for e"
        await coming
    cache.expect(["e@1", "c@1"])
    assert not cache.has_spare(1)
    assert engine.unloads == ["d@1"]


async def test_spare_room_is_of_bytes_too(engine, blobs, node_cache):
    files = AdapterFiles(blobs, node_cache, engine)
    cache = AdapterCache(engine, files, of_bytes(10_000))
    assert cache.has_spare(10_000)
    assert not cache.has_spare(10_001)
