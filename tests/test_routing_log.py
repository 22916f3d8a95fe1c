"""Decisions and outcomes in the store, and the recorder that no request waits for."""

import time
from collections import Counter

import pytest

from adapter_store.routing_log import (
    MAX_OF_TENANT,
    OutcomeReader,
    RoutingLog,
    RoutingRecorder,
)
from cluster.decisions import Decision, Outcome, Route, RoutedRequest
from cluster.errors import StoreUnavailable
from tests.conftest import until

# Later than any of the tests ends.
NOW = time.time() + 3600


@pytest.fixture
async def log(store):
    return RoutingLog(store.server, keep_s=60)


def request(number: int, owner: str = "") -> RoutedRequest:
    decision = Decision(adapter="cron", confidence=0.9, route=Route.AUTO, reason="test")
    return RoutedRequest(
        request_id=f"r{number}", at=NOW + number, owner=owner, input="x", answered_by="cron",
        decision=decision,
    )  # fmt: skip


async def test_decisions_are_found_by_request_and_newest_first(log):
    await log.put([request(i) for i in range(5)])
    (found,) = await log.find("r3", [""])
    assert found.at == NOW + 3
    assert [r.request_id for r in await log.newest(2)] == ["r4", "r3"]


async def test_old_ones_are_not_listed_though_the_stream_has_them(log):
    await log.put([request(-7200), request(0)])
    assert [r.request_id for r in await log.newest(10)] == ["r0"]


async def test_they_expire(store):
    log = RoutingLog(store.server, keep_s=0.05)
    await log.put([request(1)])

    async def is_gone():
        return not await log.find("r1", [""])

    await until(is_gone)


async def test_an_id_is_a_tenants_own(log):
    """Whatever a tenant is called: no two share a key."""
    tenants = ("", "a", "b", "a:1", "of")
    await log.put([request(1, owner) for owner in tenants])
    for owner in tenants:
        assert [found.owner for found in await log.find("r1", [owner])] == [owner]
    assert [found.owner for found in await log.find("r1", tenants)] == list(tenants)
    assert await log.find("r1", ["1:a"]) == []


async def test_a_tenants_outcomes_are_its_own(log):
    reader = OutcomeReader(log)
    for owner in ("", "a", "b", "a"):
        outcome = Outcome(input="x", candidate="c", score=1, owner=owner)
        await log.add_outcome("r", outcome)
    assert await reader.read()
    assert sorted(o.owner for o in reader.known) == ["", "a", "b"]
    assert not await reader.read()
    await log.add_outcome("r2", Outcome(input="y", candidate="c", score=0, owner="b"))
    assert await reader.read()
    assert [o.score for o in reader.known if o.owner == "b"] == [1, 0]


@pytest.mark.hostile
async def test_a_tenants_feedback_pushes_out_nobody_elses(log):
    await log.add_outcome("r", Outcome(input="x", candidate="c", score=1, owner="a"))
    for i in range(MAX_OF_TENANT + 200):
        flood = Outcome(input=str(i), candidate="c", score=0, owner="b")
        await log.add_outcome(str(i), flood)
    reader = OutcomeReader(log)
    await reader.read()
    counts = Counter(o.owner for o in reader.known)
    assert counts == {"a": 1, "b": MAX_OF_TENANT}


async def test_an_outcome_that_was_read_says_when_it_was_kept(log):
    await log.add_outcome("r", Outcome(input="x", candidate="a", score=1))
    reader = OutcomeReader(log)
    await reader.read()
    (outcome,) = reader.known
    assert outcome.at == pytest.approx(time.time(), abs=60)


async def test_outcomes_are_read_once_and_in_order(log):
    reader = OutcomeReader(log)
    assert not await reader.read()
    for score in (0.0, 1.0):
        await log.add_outcome(f"r{score}", Outcome(input="x", candidate="a", score=score))
    assert await reader.read()
    assert not await reader.read()
    assert await log.add_outcome("r", Outcome(input="y", candidate="a", score=0.5))
    assert not await log.add_outcome("r", Outcome(input="y", candidate="a", score=0.1))
    assert await reader.read()
    assert [o.score for o in reader.known] == [0.0, 1.0, 0.5]


class Unreachable:
    """A log whose server comes back after some tries."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.kept: list[str] = []

    async def put(self, requests):
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("away")
        self.kept += [r.request_id for r in requests]


async def test_what_could_not_be_written_is_written_when_the_store_is_back(monkeypatch):
    monkeypatch.setattr("adapter_store.routing_log._RETRY_S", 0.01)
    log = Unreachable(failures=3)
    recorder = RoutingRecorder(log)
    await recorder.start()
    for i in range(600):
        recorder.record(request(i))
    await until(lambda: len(log.kept) == 600)
    assert log.kept == [f"r{i}" for i in range(600)]
    recorder.check()
    await recorder.stop()


async def test_stopping_writes_what_waits_and_does_not_wait_for_a_store_that_is_away():
    log = Unreachable(failures=0)
    recorder = RoutingRecorder(log)
    recorder.record(request(1))
    await recorder.stop()
    assert log.kept == ["r1"]
    away = RoutingRecorder(Unreachable(failures=1))
    away.record(request(1))
    await away.stop()
