"""Traces, as a real collector gets them."""

import json
import logging

import pytest

from cluster.settings import BaseModelSettings, TelemetrySettings
from deployments.process import tracing
from deployments.replica.model_server import traced
from tests.collector import Seen, collecting
from tests.conftest import ECHO, Running, free_port
from tests.test_http import CRON, add, ask, chat

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
ASKED = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
CHAT = "/v1/chat/completions"


def tree(spans: dict[str, Seen]) -> dict[str, str]:
    """Span -> the one that it is within."""
    names = {span.id: name for name, span in spans.items()}
    return {name: names.get(span.parent, span.parent) for name, span in spans.items()}


@pytest.mark.redis
@pytest.mark.parametrize("over_http", [False, True])
async def test_a_request_is_one_trace_from_the_key_to_the_last_token(
    make_world, make_adapter, caplog, over_http
):
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}" + ("/v1/traces" if over_http else "")
    with collecting(port, over_http=over_http) as collector:
        async with make_world(telemetry={"otlp_endpoint": endpoint}) as rh:
            await add(rh, make_adapter("cron", examples=CRON))
            body = chat("auto", "every friday at ten in the morning", stream=True)
            with caplog.at_level(logging.INFO):
                answer = await rh.client.post(CHAT, json=body, headers=ASKED)
            whole = await ask(rh, "echo")
            failed = await ask(rh, "nothing")
        # What is left is sent when the process ends.
        spans = {span.name: span for span in collector.spans if span.trace == TRACE}
        root = spans[f"POST {CHAT}"]
        assert tree(spans) == {
            f"POST {CHAT}": PARENT,
            "authorise": f"POST {CHAT}",
            "choose": f"POST {CHAT}",
            "replica": f"POST {CHAT}",
            "load": "replica",
            "prefill": "replica",
            "decode": "replica",
        }
        assert answer.headers["traceparent"] == f"00-{TRACE}-{root.id}-01"
        told = {name.removeprefix("roundhouse."): v for name, v in root.attributes.items()}
        assert (told["adapter"], told["version"], told["tier"]) == ("cron", "1", "node")
        assert (told["replica"], told["route"], told["status"]) == ("local", "auto", 200)
        choice = spans["choose"].attributes
        assert choice["roundhouse.adapter"] == "cron"
        assert choice["roundhouse.decision"]
        assert spans["load"].attributes["roundhouse.tier"] == "node"
        inner = [spans[name] for name in ("load", "prefill", "decode")]
        assert [s.start for s in inner] == sorted(s.start for s in inner)
        assert all(root.start <= s.start <= s.end <= root.end for s in inner)
        logged = [r for r in caplog.records if r.message == "request"]
        assert len(logged) == 1
        others = {
            s.trace: {x.name for x in collector.spans if x.trace == s.trace}
            for s in collector.spans
        }
        assert "generate" in others[tracing.trace_id_of(dict(whole.headers))]
        of_failed = tracing.trace_id_of(dict(failed.headers))
        assert "replica" not in others[of_failed]


@pytest.mark.redis
async def test_lines_of_a_traced_request_have_its_trace(make_world, capsys):
    from cluster.settings import LoggingSettings
    from deployments.process import logs

    port = free_port()
    kept = [
        (name, logging.getLogger(name).handlers, logging.getLogger(name).propagate)
        for name in ("cluster", "adapter_store", "router", "deployments")
    ]
    with collecting(port):
        async with make_world(telemetry={"otlp_endpoint": f"http://127.0.0.1:{port}"}) as rh:
            logs.configure(LoggingSettings(), "test")
            try:
                await rh.client.post(CHAT, json=chat("echo"), headers=ASKED)
            finally:
                for name, handlers, propagates in kept:
                    logger = logging.getLogger(name)
                    logger.handlers, logger.propagate = handlers, propagates
    lines = [json.loads(x) for x in capsys.readouterr().err.splitlines() if x.startswith("{")]
    assert [x["trace_id"] for x in lines if x["message"] == "request"] == [TRACE]


@pytest.mark.redis
async def test_without_a_collector_nothing_is_traced_and_none_is_told(make_world):
    async with make_world() as rh:
        answer = await rh.client.post(CHAT, json=chat("echo"), headers=ASKED)
    assert "traceparent" not in answer.headers
    assert not tracing.server_span("x", ASKED)


@pytest.mark.redis
async def test_a_collector_that_is_away_keeps_no_request_from_its_answer(make_world):
    gone = {"otlp_endpoint": f"http://127.0.0.1:{free_port()}/v1/traces"}
    async with make_world(telemetry=gone) as rh:
        assert (await ask(rh, "echo")).status_code == 200


@pytest.mark.redis
async def test_a_trace_that_the_client_does_not_sample_is_not_sent(make_world):
    port = free_port()
    with collecting(port) as collector:
        async with make_world(telemetry={"otlp_endpoint": f"http://127.0.0.1:{port}"}) as rh:
            unsampled = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
            answer = await rh.client.post(CHAT, json=chat("echo"), headers=unsampled)
            assert answer.headers["traceparent"].endswith("-00")
        assert collector.spans == []


def test_vllm_is_told_where_spans_go_unless_its_arguments_say(monkeypatch):
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", raising=False)
    on = TelemetrySettings(otlp_endpoint="http://collector:4317")
    model = BaseModelSettings(id="m", path="p")
    assert traced(model, on).engine_args == {"otlp_traces_endpoint": "http://collector:4317"}
    own = model.model_copy(update={"engine_args": {"otlp_traces_endpoint": "http://own:1"}})
    assert traced(own, on) == own
    assert traced(model, TelemetrySettings()) == model
    assert traced(BaseModelSettings(**ECHO), on).engine_args == ECHO["engine_args"]


@pytest.mark.ray
def test_in_a_cluster_a_trace_goes_through_all_its_processes(
    locked: Running, admin_key, trace_port
):
    with collecting(trace_port) as collector, locked.http() as http:
        headers = ASKED | {"authorization": f"Bearer {admin_key[0]}"}
        answer = http.post(CHAT, json=chat("echo", stream=True), headers=headers)
        assert answer.headers.get_list("traceparent")[0].startswith(f"00-{TRACE}-")
        names = (f"POST {CHAT}", "authorise", "wait", "replica", "prefill", "decode")
        spans = collector.of_trace(TRACE, *names)
        assert {tree(spans)[name] for name in ("authorise", "wait", "replica")} == {names[0]}
        assert spans["replica"].service == "roundhouse-replica"
        assert spans["wait"].service == "roundhouse-ingress"
        assert (
            spans["wait"].attributes["roundhouse.replica"] == answer.headers["x-roundhouse-replica"]
        )
