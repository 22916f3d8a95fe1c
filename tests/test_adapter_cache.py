import asyncio
from pathlib import Path

import pytest

from cluster.errors import AdapterLoadFailed, ModelNotFound
from cluster.settings import BaseModelSettings, LoraSettings
from cluster.state import AdapterRef, Tier
from deployments.adapter_cache import AdapterCache
from deployments.echo_engine import EchoEngine
from tests.conftest import until


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
            lora=LoraSettings(slots=2, host_entries=4),
            engine_args={"load_s": 0.05},
        )
    )


@pytest.fixture
def cache(engine, make_adapter):
    folder = make_adapter()
    return AdapterCache(engine, lambda ref: folder if ref.name != "lost" else folder / "nowhere")


def ref(name: str, version: int = 1) -> AdapterRef:
    return AdapterRef(name=name, version=version, digest="d")


async def test_a_lease_says_where_the_adapter_was(cache):
    async with cache.lease(ref("a")) as found:
        assert found is Tier.NODE
    async with cache.lease(ref("a")) as found:
        assert found is Tier.SLOT
    for name in ("b", "c"):
        async with cache.lease(ref(name)):
            pass
    async with cache.lease(ref("a")) as found:
        assert found is Tier.HOST


async def test_requests_for_one_version_share_a_load(cache, engine):
    async def use() -> None:
        async with cache.lease(ref("a")):
            pass

    await asyncio.gather(*(use() for _ in range(20)))
    assert engine.loads == ["a@1"]


async def test_different_versions_load_side_by_side(cache, engine):
    await asyncio.gather(cache.ensure(ref("a")), cache.ensure(ref("b")))
    assert engine.most_at_once == 2


async def test_a_waiter_that_gives_up_takes_nothing_from_the_others(cache):
    first = asyncio.create_task(cache.ensure(ref("a")))
    second = asyncio.create_task(cache.ensure(ref("a")))
    await asyncio.sleep(0.01)
    first.cancel()
    await second
    assert cache.residency.tier("a@1") is Tier.SLOT


async def test_a_failed_load_is_reported_and_can_be_tried_again(cache, engine):
    with pytest.raises(AdapterLoadFailed, match="lost@1"):
        async with cache.lease(ref("lost")):
            raise AssertionError("the block must not run")
    assert "lost@1" in cache.problems
    assert cache.residency.tier("lost@1") is None
    with pytest.raises(AdapterLoadFailed):
        await cache.ensure(ref("lost"))
    assert engine.loads == ["lost@1", "lost@1"]


async def test_a_drop_waits_for_the_requests_that_use_the_version(cache, engine):
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


async def test_a_drop_waits_for_a_load_that_nobody_waits_for_any_more(cache, engine):
    waiter = asyncio.create_task(cache.ensure(ref("a")))
    await asyncio.sleep(0.01)
    waiter.cancel()
    await cache.drop(ref("a"))
    assert engine.unloads == ["a@1"]
    assert cache.residency.tier("a@1") is None


async def test_problems_of_a_changed_adapter_are_forgotten(cache):
    with pytest.raises(AdapterLoadFailed):
        await cache.ensure(ref("lost"))
    cache.clear_problems("lost")
    assert cache.problems == {}
