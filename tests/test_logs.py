"""What is logged of a request, and what never is."""

import asyncio
import contextlib
import json
import logging

import pytest

from cluster.calls import CALLS, CHAT_PATH
from cluster.errors import ReplicaLost
from cluster.settings import LoggingSettings
from deployments.ingress.traffic import Observed
from deployments.process import logs
from deployments.process.call import Reply, ResponseStart

SECRET = "what only the tenant may know"


@pytest.fixture
def configured(capsys):  # noqa: ARG001  (it must be there before the handler)
    """Our loggers as a process of the cluster has them; restored after the test."""
    names = ("cluster", "adapter_store", "router", "deployments")
    before = {
        n: (x.handlers[:], x.level, x.propagate) for n in names if (x := logging.getLogger(n))
    }

    def configure(**changes) -> LoggingSettings:
        settings = LoggingSettings(**changes)
        logs.configure(settings, "replica-1")
        return settings

    yield configure
    for name, (handlers, level, propagate) in before.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.level, logger.propagate = handlers, level, propagate


async def chunks(*parts: bytes, error: Exception | None = None):
    for part in parts:
        yield part
    if error is not None:
        raise error


STREAM = ResponseStart(200, {"content-type": "text/event-stream", "x-roundhouse-replica": "r1"})
EVENT = b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'


async def serve(settings: LoggingSettings, *parts: bytes, error: Exception | None = None) -> None:
    it = Observed("id-1", CALLS[CHAT_PATH], settings, model="m", adapter="logged", route="auto")
    it.prompt = SECRET if settings.prompts else ""
    with contextlib.suppress(ReplicaLost):
        async with contextlib.AsyncExitStack() as held:
            await it.passing(Reply(STREAM, chunks(*parts, error=error)), held).read()


async def test_a_request_is_a_line_of_json(configured, capsys):
    await serve(configured(), EVENT, EVENT, b"data: [DONE]\n\n")
    line = json.loads(capsys.readouterr().err)
    said = {
        k: line[k] for k in ("message", "process", "request_id", "adapter", "status", "replica")
    }
    assert said == {
        "message": "request",
        "process": "replica-1",
        "request_id": "id-1",
        "adapter": "logged",
        "status": 200,
        "replica": "r1",
    }
    assert line["tokens"] == 2
    assert 0 <= line["ttft_s"] <= line["duration_s"]


async def test_a_stream_that_breaks_is_no_success(configured, capsys):
    await serve(configured(), EVENT, error=ReplicaLost("the replica died"))
    line = json.loads(capsys.readouterr().err)
    assert line["status"] == ReplicaLost.status
    assert line["error"] == "the replica died"


async def test_prompts_are_logged_only_where_a_setting_says_so(configured, capsys):
    await serve(configured(), EVENT)
    assert SECRET not in capsys.readouterr().err
    await serve(configured(prompts=True), EVENT)
    assert json.loads(capsys.readouterr().err)["prompt"] == SECRET


async def test_requests_need_not_be_logged_and_lines_may_be_text(configured, capsys):
    await serve(configured(requests=False), EVENT)
    assert capsys.readouterr().err == ""
    configured(format="text")
    logging.getLogger("router.anything").warning("plain")
    assert capsys.readouterr().err.endswith("WARNING router.anything: plain\n")


async def test_what_a_replica_logs_names_the_request_that_it_is_about(configured, capsys):
    """Also what a task says that the request began, such as a load."""
    configured()
    logger = logging.getLogger("deployments.replica.adapter_cache")

    async def load() -> None:
        logger.warning("damaged")

    async def answer() -> None:
        logs.about("id-7", "cron@1")
        await asyncio.create_task(load())

    await asyncio.create_task(answer())
    logger.warning("nobody's")
    about, other = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (about["request_id"], about["adapter"]) == ("id-7", "cron@1")
    assert "request_id" not in other
