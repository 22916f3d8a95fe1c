"""The queue before the replicas: who starts, where, and who gets 429."""

import asyncio
import contextlib
import time
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from cluster.adapters import AdapterRef
from cluster.errors import Overloaded
from cluster.members import Ingress, Replica, Residency
from cluster.settings import (
    AdmissionSettings,
    BaseModelSettings,
    DispatchSettings,
    PlacementSettings,
)
from deployments.ingress.admission import Admission, Place
from deployments.ingress.fleet import Fleet
from deployments.ingress.terms import Terms
from deployments.process.call import Call

MODEL = "echo"


def member(id="r1", *, slots=(), places=2, capacity=1, service_s=1.0, **changes) -> Replica:
    residency = Residency(slots=slots, slot_capacity=capacity, host_capacity=8)
    return Replica(
        id=id,
        model=MODEL,
        residency=residency,
        max_ongoing=places,
        service_s=service_s,
        **changes,
    )


def call(name: str | None) -> Call:
    ref = AdapterRef(name=name, version=1, digest="0" * 64) if name else None
    return Call("/v1/completions", "id", b"{}", ref, "0-0")


class Desk:
    """An admission without Ray or a store, and those who are inside."""

    def __init__(self, *members: Replica, max_queued: int = 8, **settings) -> None:
        self.fleet = Fleet(None, PlacementSettings())
        self.fleet.take(list(members))
        model = BaseModelSettings(id=MODEL, path="none", engine="echo", max_queued=max_queued)
        self.admission = Admission(
            self.fleet, model, DispatchSettings(), AdmissionSettings(**settings), ""
        )
        self.started: list[tuple[str | None, str]] = []

    @asynccontextmanager
    async def request(self, name: str | None, **terms):
        """A request; the block is entered when it waits or works, and ends it."""
        started, leave = asyncio.Event(), asyncio.Event()

        async def work() -> str:
            async with self.admission.turn(call(name), Terms(**terms)) as place:
                self.started.append((name, place.replica))
                started.set()
                await leave.wait()
                return place.replica

        task = asyncio.create_task(work())
        await settle()
        try:
            yield task
        finally:
            leave.set()
            if not started.is_set():
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_a_replica_would_work_on_starts_at_once():
    desk = Desk(member(slots=("a@1",), places=2))
    async with desk.request("a"), desk.request("a"):
        assert desk.started == [("a", "r1"), ("a", "r1")]


async def test_the_next_one_starts_when_a_place_gets_free():
    desk = Desk(member(places=1))
    async with desk.request("a"):
        waiting = desk.request("b")
        await waiting.__aenter__()
        assert desk.started == [("a", "r1")]
    await settle()
    assert desk.started == [("a", "r1"), ("b", "r1")]
    await waiting.__aexit__(None, None, None)


async def test_an_adapter_that_runs_passes_one_that_needs_the_slot():
    desk = Desk(member(places=4, capacity=1), patience_s=30)
    async with desk.request("a"), desk.request("cold"), desk.request("a"):
        assert [name for name, _ in desk.started] == ["a", "a"]


async def test_but_not_for_ever():
    desk = Desk(member(places=4, capacity=1), patience_s=0.05)
    async with desk.request("a"), desk.request("cold"):
        assert [name for name, _ in desk.started] == ["a"]
        await asyncio.sleep(0.1)
        assert [name for name, _ in desk.started] == ["a", "cold"]


async def test_a_new_replica_lets_those_who_wait_in():
    desk = Desk(member(places=1))
    async with desk.request("a"), desk.request("b"):
        desk.fleet.take([member(places=1), member("r2", places=1)])
        await settle()
        assert desk.started == [("a", "r1"), ("b", "r2")]


async def test_a_full_queue_refuses_and_says_when_to_come_back():
    desk = Desk(member(places=1, service_s=20), max_queued=2)
    async with desk.request("a"), desk.request("b"), desk.request("c"), desk.request("d") as task:
        with pytest.raises(Overloaded, match="queue is full") as caught:
            await task
        assert caught.value.retry_after_s == pytest.approx(60, rel=0.1)


async def test_who_would_come_too_late_is_told_at_once():
    desk = Desk(member(places=1, service_s=20))
    async with desk.request("a"), desk.request("b"), desk.request("c", first_token_s=25) as task:
        with pytest.raises(Overloaded, match=r"about 40\.0 s, which is too late"):
            await task


async def test_an_adapter_that_cannot_be_there_in_time_is_refused_at_once():
    """The answer would be of no use. But one goes in each load's time, or nobody would ever bring
    the adapter in, nor find out that it takes less time now."""
    desk = Desk(member("r1", slots=("warm@1",), capacity=3, places=8, load_s=4.0))
    async with desk.request("cold", first_token_s=0.5):
        assert desk.started == [("cold", "r1")]
        async with desk.request("cold", first_token_s=0.5) as task:
            with pytest.raises(Overloaded, match=r"would come in about 2\.\d+ s") as caught:
                await task
            assert caught.value.retry_after_s >= 2
        async with desk.request("warm", first_token_s=0.5), desk.request("cold", first_token_s=5):
            assert [name for name, _ in desk.started] == ["cold", "warm", "cold"]


async def test_a_refusal_goes_by_the_load_and_not_by_what_the_eviction_costs_others():
    full = Residency(slots=("x@1",), host=("x@1",), slot_capacity=2, host_capacity=1)
    desk = Desk(member(load_s=2.0, service_s=0.0).model_copy(update={"residency": full}))
    async with desk.request("a", first_token_s=1), desk.request("a", first_token_s=2.5):
        assert len(desk.started) == 2


async def test_a_deadline_counts_those_who_wait_for_their_first_token_too():
    """Of prompts that come together, each waits for those before it."""
    desk = Desk(member(places=16, slots=("a@1",), service_s=0.0))
    async with desk.admission.turn(call("a"), Terms()) as place:
        await asyncio.sleep(0.1)
        place.has_begun()
        place.has_begun()
    async with AsyncExitStack() as burst:
        asked = [
            await burst.enter_async_context(desk.request("a", first_token_s=0.35)) for _ in range(6)
        ]
        # One more than in time is sent to see whether it is still so.
        assert len(desk.started) == 4
        for refused in asked[4:]:
            with pytest.raises(Overloaded, match=r"first token would come in about 0\.[45]"):
                await refused


async def test_who_is_too_late_already_is_never_sent():
    desk = Desk(member(places=2, slots=("a@1",)))
    terms = Terms(since=time.monotonic() - 1, first_token_s=0.5)
    with pytest.raises(Overloaded, match=r"too late|in time"):
        async with desk.admission.turn(call("a"), terms):
            pass


async def test_each_answer_of_a_request_takes_a_place():
    desk = Desk(member(places=8, slots=("a@1",)), member("r2", places=8))
    async with desk.request("a", sequences=8), desk.request("a"):
        assert desk.started == [("a", "r1"), ("a", "r2")]
        assert {v.id: v.ongoing for v in desk.fleet.replicas(MODEL)} == {"r1": 8, "r2": 1}
    assert not any(v.ongoing for v in desk.fleet.replicas(MODEL))


async def test_who_would_be_in_time_on_a_replica_that_is_full_now_waits_for_it():
    holder = member("holder", places=1, slots=("a@1",), service_s=0.05)
    empty = member("empty", places=1, load_s=2.0, service_s=0.05)
    desk = Desk(holder, empty)
    async with desk.request("a") as first, desk.request("a", first_token_s=0.5):
        assert desk.started == [("a", "holder")]
        assert not first.done()
    assert desk.started == [("a", "holder")], "it left the queue when its client did"


async def test_the_longest_wait_is_for_a_start_and_not_for_the_load_after_it():
    desk = Desk(member("r1", load_s=2.0), max_wait_s=0.5)
    async with desk.request("cold"):
        assert desk.started == [("cold", "r1")]


async def test_of_replicas_the_one_that_is_in_time_is_taken():
    near = member("near", places=16, slots=("x@1",), capacity=2, load_s=2.0)
    # It has far more than its share, by another ingress's requests.
    far = member("far", places=16, slots=("a@1",), ongoing=14, load_s=2.0)
    desk = Desk(near, far, *(Ingress(id=f"i{i}") for i in range(2)))
    async with desk.request("a"), desk.request("a", first_token_s=0.9):
        assert desk.started == [("a", "near"), ("a", "far")]


async def test_whoever_is_next_may_wait_whatever_the_estimate_says():
    desk = Desk(member(places=1, service_s=20))
    async with desk.request("a"), desk.request("b", first_token_s=5) as task:
        assert not task.done()


async def test_one_tenants_flood_leaves_room_and_turns_for_the_others():
    desk = Desk(member(places=1, service_s=1), max_queued=3)
    async with AsyncExitStack() as stack:
        flood = [await stack.enter_async_context(desk.request("a", tenant="A")) for _ in range(4)]
        modest = await stack.enter_async_context(desk.request("b", tenant="B", first_token_s=2.5))
        assert not modest.done()
        with pytest.raises(Overloaded, match="queue is full"):
            await flood[-1]


async def test_a_turn_that_is_given_to_a_client_that_leaves_is_given_back():
    desk = Desk(member(places=1, capacity=2))
    async with desk.request("a"):
        async with desk.request("b") as task:
            desk.fleet.take([member(places=2, capacity=2)])  # b's turn comes
            task.cancel()  # and in the same moment b leaves
            await settle()
            assert task.cancelled()
        async with desk.request("c"):
            assert desk.started == [("a", "r1"), ("c", "r1")]


async def test_those_who_wait_go_to_ray_serve_when_all_reports_are_gone():
    desk = Desk(member(places=1))
    async with desk.request("a"), desk.request("b"):
        desk.fleet.take([])
        await settle()
        assert desk.started == [("a", "r1"), ("b", "")]


async def test_one_adapter_at_a_time_waits_on_a_replica_for_a_slot():
    desk = Desk(member(places=8, capacity=1), patience_s=0.02)
    async with desk.request("a"), desk.request("cold"), desk.request("colder"):
        await asyncio.sleep(0.1)
        assert [name for name, _ in desk.started] == ["a", "cold"]


async def test_a_slot_becomes_free_for_the_one_that_waits_however_busy_the_others_are():
    """Requests for `a` and `b` overlap for ever; those for `a` wait until `cold` has its slot."""
    full = member(places=16, capacity=2, slots=("a@1", "b@1"))
    desk = Desk(full, patience_s=0.02)
    async with AsyncExitStack() as others:
        await others.enter_async_context(desk.request("b"))
        await others.enter_async_context(desk.request("b"))
        async with desk.request("a"):
            await others.enter_async_context(desk.request("cold"))
            await asyncio.sleep(0.1)
            assert desk.started[-1] == ("cold", "r1"), "it waits there for a slot"
            await others.enter_async_context(desk.request("a"))
            await others.enter_async_context(desk.request("b"))
            await asyncio.sleep(0.1)
            assert [name for name, _ in desk.started] == ["b", "b", "a", "cold", "b"]
        # Its last request has ended: the slot is free for `cold`, and `a` may wait in turn.
        assert desk.started[-1] == ("a", "r1")
        desk.fleet.take([member(places=16, capacity=2, slots=("cold@1", "b@1"))])
        (view,) = desk.fleet.replicas(MODEL)
        assert view.gives_way == "cold@1", "one request to wait for, `b` has three"


async def test_all_ingresses_let_the_same_adapter_end():
    """Each has more requests of its own for the other's; by their own counts they would never
    agree, and `cold` would wait for ever."""
    report = member(places=16, capacity=2, slots=("a@1", "b@1"), running=("cold@1", "b@1", "a@1"))
    ingresses = [Ingress(id=f"i{i}") for i in range(2)]
    for mine in ("aaab", "abbb"):
        desk = Desk(report, *ingresses)
        async with AsyncExitStack() as under_way:
            for name in mine:
                desk.fleet.begin("r1", f"{name}@1")
            desk.fleet.take([report, *ingresses])
            (view,) = desk.fleet.replicas(MODEL)
            assert view.gives_way == "b@1"
            blocked = await under_way.enter_async_context(desk.request("b"))
            await under_way.enter_async_context(desk.request("a"))
            assert [name for name, _ in desk.started] == ["a"]
            assert not blocked.done()


async def test_a_replica_that_could_not_load_it_is_not_where_it_goes():
    broken = member("r1", places=2, problems={"a@1": "no"})
    desk = Desk(broken, member("r2", places=1))
    async with desk.request("a"), desk.request("a"):
        assert desk.started == [("a", "r2")]


async def test_of_two_ingresses_each_knows_the_others_requests_and_its_own():
    other = Ingress(id="i2")
    mine = Ingress(id="i1")
    desk = Desk(member(places=4, capacity=2, ongoing=2, running=("x@1",)), mine, other)
    (view,) = desk.fleet.replicas(MODEL)
    assert (view.ongoing, set(view.running)) == (2, {"x@1"})
    async with desk.request("a"):
        (view,) = desk.fleet.replicas(MODEL)
        assert (view.ongoing, set(view.running)) == (3, {"x@1", "a@1"})
        # The next report has them all; what ends here is gone here at once.
        desk.fleet.take(
            [member(places=4, ongoing=3, running=("x@1", "a@1"), capacity=2), mine, other]
        )
    (view,) = desk.fleet.replicas(MODEL)
    assert (view.ongoing, set(view.running)) == (2, {"x@1"})


async def test_who_waited_too_long_is_told_then():
    desk = Desk(member(places=1, service_s=0.01))
    async with desk.request("a"), desk.request("b", first_token_s=0.1) as task:
        assert not task.done()
        with pytest.raises(Overloaded, match="no replica could start it in time"):
            await task
        async with desk.request("c"):
            assert desk.started == [("a", "r1")]


async def test_a_client_that_leaves_the_queue_takes_no_place():
    desk = Desk(member(places=1))
    async with desk.request("a"):
        async with desk.request("b") as task:
            task.cancel()
            await settle()
        late = desk.request("c")
        await late.__aenter__()
    await settle()
    assert desk.started == [("a", "r1"), ("c", "r1")]
    await late.__aexit__(None, None, None)


async def test_priorities_come_first():
    desk = Desk(member(places=1))
    async with desk.request("a"):
        waiting = [desk.request("low", priority=-1), desk.request("high", priority=1)]
        for one in waiting:
            await one.__aenter__()
    await settle()
    assert [name for name, _ in desk.started] == ["a", "high"]
    for one in reversed(waiting):
        await one.__aexit__(None, None, None)


async def test_without_reports_ray_serve_decides():
    desk = Desk()
    async with desk.request("a"):
        assert desk.started == [("a", "")]


async def test_demand_counts_those_who_wait():
    desk = Desk(member(places=1))
    for _ in range(10):
        desk.fleet.want("a")
    desk.fleet.want("b")
    rates = desk.fleet.demand()
    assert rates["a"] == pytest.approx(10 * rates["b"], rel=0.01)


async def test_how_long_an_adapters_requests_take_is_known_from_those_that_were_answered():
    desk = Desk(member(places=1))
    for name in ("a", "broken", "left", "forgotten"):
        with contextlib.suppress(ConnectionError):
            async with desk.admission.turn(call(name), Terms()) as place:
                await asyncio.sleep(0.05)
                if name == "broken":
                    raise ConnectionError
                # A client that leaves is no error: nobody reads the rest.
                place.is_answered = name != "left"
    for name in ("a", "broken", "left"):
        desk.fleet.want(name)
    times = desk.fleet.times(desk.fleet.demand())
    assert times.keys() == {"a"}
    assert times["a"] >= 0.05


async def test_a_tenant_is_charged_what_was_generated_not_what_was_feared():
    """Both ask for as much; the answers of one end early, so more of its requests come first."""
    desk = Desk(member(places=1, service_s=0.001), max_queued=40)
    order = []

    async def ask(tenant: str, answer_tokens: int) -> None:
        terms = Terms(tenant=tenant, tokens=100)
        async with desk.admission.turn(call(None), terms) as place:
            order.append(tenant)
            place.answer_tokens = answer_tokens
            await asyncio.sleep(0)

    async with desk.request(None):
        asked = [asyncio.create_task(ask("long", 100)) for _ in range(12)]
        asked += [asyncio.create_task(ask("short", 25)) for _ in range(12)]
        await settle()
    await asyncio.gather(*asked)
    assert order[:10].count("short") in (7, 8, 9)


async def test_a_call_tells_its_replica_what_waits_and_what_of_it_is_nowhere():
    desk = Desk(member(slots=("a@1", "b@1"), places=1, capacity=2))
    here = Place("r1")
    async with desk.request("a"):
        alone = desk.admission.placed(call("a"), here)
        assert (alone.waiting, alone.missing) == ((), None)
        async with desk.request("b"), desk.request("c"), desk.request("d"):
            busy = desk.admission.placed(call("a"), here)
            assert busy.replica == "r1"
            assert busy.waiting == ("b@1", "c@1", "d@1")
            assert busy.missing == "c@1", "b has a slot, and d comes later"


async def test_a_call_tells_of_those_first_whose_turn_is_first():
    desk = Desk(member(slots=("a@1",), places=1))
    async with AsyncExitStack() as stack:
        for name, terms in (("a", {}), ("low", {"priority": -1}), ("b", {}), ("c", {})):
            await stack.enter_async_context(desk.request(name, **terms))
        assert desk.admission.placed(call("a"), Place("r1")).waiting == ("b@1", "c@1", "low@1")


async def test_nothing_is_loaded_before_its_turn_where_that_is_switched_off():
    desk = Desk(member(slots=("a@1",), places=1), prefetch=False)
    async with desk.request("a"), desk.request("c"):
        assert desk.admission.placed(call("a"), Place("r1")).missing is None


IDLE = {"priority": -100}


async def test_idle_work_takes_a_share_of_the_places_and_the_rest_is_for_others():
    desk = Desk(member(places=4, capacity=4))
    async with desk.request(None, **IDLE), desk.request(None, **IDLE), desk.request(None, **IDLE):
        assert len(desk.started) == 2
        async with desk.request(None):
            assert len(desk.started) == 3


async def test_idle_work_starts_when_nobody_else_waits():
    desk = Desk(member(places=2, capacity=2))
    async with AsyncExitStack() as first:
        await first.enter_async_context(desk.request("a"))
        await first.enter_async_context(desk.request("a"))
        async with desk.request("idle", **IDLE), desk.request("b"), desk.request("c"):
            assert [name for name, _ in desk.started] == ["a", "a"]
            await first.aclose()
            await settle()
            # Both others have begun; an idle place there is none.
            assert [name for name, _ in desk.started] == ["a", "a", "b", "c"]


async def test_idle_work_is_no_reason_to_load_or_to_scale_and_has_a_limit_of_its_own():
    desk = Desk(member(places=1), max_queued=1)
    async with desk.request("a"), desk.request("idle", **IDLE):
        assert not desk.admission.queued()
        async with desk.request("b"), desk.request("more-idle", **IDLE) as refused:
            assert desk.admission.queued() == {"b@1": 1}
            with pytest.raises(Overloaded, match="queue is full"):
                await refused
