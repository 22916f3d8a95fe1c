"""How a process's parts live, and what runs in the background."""

import asyncio
import logging

import pytest

from cluster.errors import Conflict, StoreUnavailable
from cluster.tasks import Background
from deployments.process.process import Process
from tests.conftest import until

pytestmark = pytest.mark.redis


class Part:
    def __init__(self, name: str, told: list[str], *, fails: bool = False) -> None:
        self._name, self._told, self._fails = name, told, fails
        self.is_broken = False

    async def start(self) -> None:
        if self._fails:
            raise StoreUnavailable("away")
        self._told.append(f"start {self._name}")

    def check(self) -> None:
        if self.is_broken:
            raise RuntimeError(f"{self._name} has ended")

    async def stop(self) -> None:
        self._told.append(f"stop {self._name}")


async def test_parts_start_in_order_and_stop_in_the_other_one(store_settings):
    told: list[str] = []
    process = Process(store_settings, "p")
    first, _ = process.add(Part("a", told)), process.add(Part("b", told))
    await process.start()
    process.check()
    first.is_broken = True
    with pytest.raises(RuntimeError, match="a has ended"):
        process.check()
    await process.stop()
    assert told == ["start a", "start b", "stop b", "stop a"]


async def test_when_one_part_cannot_start_all_are_stopped(store_settings):
    told: list[str] = []
    process = Process(store_settings, "p")
    process.add(Part("a", told))
    process.add(Part("b", told, fails=True))
    process.add(Part("c", told))
    with pytest.raises(StoreUnavailable):
        await process.start()
    assert told == ["start a", "stop c", "stop b", "stop a"]
    with pytest.raises(asyncio.TimeoutError):
        async with asyncio.timeout(0.2):
            await process.catalogue.wait_for("99999999999999-0")
    await process.stop()


async def test_what_never_started_can_be_stopped(store_settings):
    await Process(store_settings, "p").stop()


# -- background -----------------------------------------------------------------------------


async def test_a_step_is_repeated_while_the_store_is_away(caplog):
    steps, background = [], Background()

    async def step() -> None:
        steps.append(len(steps))
        if len(steps) < 3:
            raise StoreUnavailable("away")

    background.repeat("steps", step, otherwise="nothing moves", retry_s=0.01, pause_s=0.01)
    with caplog.at_level(logging.WARNING):
        await until(lambda: len(steps) > 4)
    background.check()
    await background.stop()
    assert [r.message for r in caplog.records if "nothing moves" in r.message] == [
        "nothing moves: away"
    ] * 2


async def test_what_ends_though_it_should_not_is_seen():
    background = Background()

    async def end() -> None:
        raise KeyError("x")

    background.start("endless", end())
    await asyncio.sleep(0)
    with pytest.raises(KeyError):
        background.check()
    await background.stop()


async def test_a_fault_that_nobody_awaits_is_logged_and_an_error_of_ours_is_not(caplog):
    background = Background()

    async def fail(error: Exception) -> None:
        raise error

    with caplog.at_level(logging.INFO):
        await asyncio.wait([background.spawn("fault", fail(KeyError("x")))])
        await asyncio.wait([background.spawn("known", fail(Conflict("taken")))])
    assert [r.message for r in caplog.records] == ["fault failed"]
    await background.stop()


async def test_some_patience_lets_a_task_end_by_itself():
    background, ended = Background(), []

    async def work(seconds: float) -> None:
        await asyncio.sleep(seconds)
        ended.append(seconds)

    background.spawn("short", work(0.05))
    background.spawn("long", work(60))
    await background.stop(patience_s=0.3)
    assert ended == [0.05]
