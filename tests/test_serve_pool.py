"""What the ingress makes of what Ray Serve brings and raises, without a cluster."""

import asyncio
from contextlib import AsyncExitStack
from types import SimpleNamespace

import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from cluster.calls import CALLS, CHAT_PATH
from cluster.errors import Overloaded, ReplicaLost
from cluster.settings import (
    AdmissionSettings,
    BaseModelSettings,
    DispatchSettings,
    LoggingSettings,
    PlacementSettings,
)
from deployments.ingress.admission import Admission
from deployments.ingress.deployment import ServePool
from deployments.ingress.fleet import Fleet
from deployments.ingress.terms import Terms
from deployments.ingress.traffic import Observed
from deployments.process.call import Call, Reply, ResponseStart
from deployments.process.wire import Part
from tests.test_admission import call, member

START = ResponseStart(200, {"content-type": "text/event-stream"})
EVENT = b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'
BASE = Call("/v1/completions", "id", b"{}", None, "0-0")


class Handle:
    """A Serve handle whose calls bring these parts, or raise; as Serve's does, `cancel` raises
    again what the call has failed with."""

    def __init__(self, *items: Part | Exception) -> None:
        self._items = items
        self.cancelled = 0

    def options(self, **_) -> "Handle":
        return self

    def remote(self, *_):
        async def parts():
            for item in self._items:
                if isinstance(item, Exception):
                    raise item
                yield item
                await asyncio.sleep(0)

        def cancel() -> None:
            self.cancelled += 1
            for item in self._items:
                if isinstance(item, Exception):
                    raise item

        return Response(parts(), cancel)


class Response:
    def __init__(self, parts, cancel) -> None:
        self._parts = parts
        self.cancel = cancel

    def __aiter__(self):
        return self

    async def __anext__(self):
        return await anext(self._parts)


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (BackPressureError(num_queued_requests=1, max_queued_requests=1), Overloaded),
        (DeploymentUnavailableError(SimpleNamespace(name="Model-m", app_name="a")), ReplicaLost),
        (RayActorError(), ReplicaLost),
    ],
)
async def test_what_serve_raises_before_the_answer_is_told_in_our_words(raised, told):
    handle = Handle(raised)
    with pytest.raises(told):
        async with ServePool("m", handle, Fleet(None, PlacementSettings()), None).answer(
            BASE, Terms()
        ):
            pass
    assert handle.cancelled == 0, "there is nothing left to end"


async def test_a_replica_that_dies_in_mid_answer_is_told_from_the_body():
    handle = Handle(Part(START, EVENT), RayActorError())
    async with ServePool("m", handle, Fleet(None, PlacementSettings()), None).answer(
        BASE, Terms()
    ) as reply:
        assert await anext(reply.body) == EVENT
        with pytest.raises(ReplicaLost):
            await anext(reply.body)
    assert handle.cancelled == 0


async def test_a_client_that_leaves_ends_the_call_and_one_that_reads_to_the_end_does_not():
    handle = Handle(Part(START, EVENT), Part(None, EVENT))
    pool = ServePool("m", handle, Fleet(None, PlacementSettings()), None)
    async with pool.answer(BASE, Terms()) as reply:
        assert await reply.read() == 2 * EVENT
    assert handle.cancelled == 0
    async with pool.answer(BASE, Terms()) as reply:
        await anext(reply.body)
    assert handle.cancelled == 1
    async with pool.answer(BASE, Terms()):
        pass
    assert handle.cancelled == 2, "before anything was read, too"


async def test_a_client_that_leaves_at_the_end_of_a_stream_has_its_answer(caplog):
    """As OpenAI's own do: they close the connection when they have read `[DONE]`."""
    end = b"data: [DONE]\n\n"
    for parts, status in (((EVENT, end), 200), ((EVENT, EVENT), 499)):
        caplog.clear()
        caplog.set_level("INFO")
        observed = Observed("r", CALLS[CHAT_PATH], LoggingSettings())
        observed.model = "m"

        async def body(parts=parts):
            for part in parts:
                yield part
            raise AssertionError("nobody reads on")

        async with AsyncExitStack() as held:
            reply = observed.passing(Reply(START, body()), held)
            for part in parts:
                assert await anext(reply.body) == part
        (record,) = [r for r in caplog.records if r.message == "request"]
        assert record.status == status


async def test_the_queue_hears_what_was_generated_and_whether_it_was_all():
    fleet = Fleet(None, PlacementSettings())
    fleet.take([member(places=2, slots=("a@1",))])
    model = BaseModelSettings(id="m", path="none", engine="echo", max_ongoing=2)
    admission = Admission(fleet, model, DispatchSettings(), AdmissionSettings(), "")
    pool = ServePool("m", Handle(Part(START, EVENT), Part(None, 2 * EVENT)), fleet, admission)
    fleet.want("a")
    async with pool.answer(call("a"), Terms()) as reply:
        await anext(reply.body)
    assert fleet.times(fleet.demand()) == {}, "the client left"
    async with pool.answer(call("a"), Terms()) as reply:
        await reply.read()
    assert fleet.times(fleet.demand()).keys() == {"a"}
