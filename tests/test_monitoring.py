"""Dashboards and alerts, held against the metrics that there are."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import promql_parser
import pytest
import yaml

from deployments.process import metrics
from deployments.process.telemetry import Telemetry, nowhere
from k8s import monitoring as generate

ROOT = Path(__file__).parent.parent
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None and not os.environ.get("CI"),
    reason="promtool is missing (Debian: apt-get install prometheus)",
)

PANELS = {
    f"{panel.title}: {legend}": expression
    for panels in generate.ROWS.values()
    for panel in panels
    for legend, expression in panel.curves.items()
}
ALERTS = {alert.name: alert.expression for alert in generate.ALERTS}
# Of vLLM's own, those that the dashboards use; tests/test_vllm.py sees that it has them.
ENGINE = {"vllm:num_requests_running", "vllm:num_requests_waiting"}


def exported() -> set[str]:
    """The names of all samples that a process exports."""
    names = set(ENGINE)
    for metric in metrics.all_metrics().values():
        described = metric.describe()[0]
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
        names |= {described.name + s for s in suffixes.get(described.type, ("",))}
    return names


def named_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:roundhouse_|vllm:)\w+", expression))


@pytest.mark.parametrize("name", PANELS | ALERTS)
def test_every_expression_parses_and_every_metric_in_it_exists(name):
    expression = (PANELS | ALERTS)[name].replace("$__rate_interval", "1m")
    promql_parser.parse(expression)
    used = named_in(expression)
    assert used
    assert used <= exported()


def test_labels_in_expressions_are_labels_of_their_metrics():
    labels = {f"{n}_total": metrics.labels_of(m) for n, m in metrics.all_metrics().items()}
    for expression in (PANELS | ALERTS).values():
        for name, matchers in re.findall(r"(roundhouse_\w+_total)\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+)=", matchers)) <= set(labels[name]), expression


def test_every_alert_says_what_to_do():
    headings = re.findall(r"^### (.*)$", (ROOT / generate.RUNBOOK).read_text(), re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    assert {alert.runbook for alert in generate.ALERTS} <= anchors


def test_every_panel_has_a_place_of_its_own_and_says_what_it_shows():
    panels = [p for p in generate.dashboard()["panels"] if p["type"] == "timeseries"]
    places = {(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels}
    assert len(places) == len(panels)
    assert all(p["description"] for p in panels)


@pytest.fixture
async def exposition(store):
    metrics.tokens.labels("m", "a").inc()
    telemetry = Telemetry(store.telemetry, "me", nowhere)
    return await telemetry.exposition()


@needs_promtool
def test_the_rules_and_the_metrics_please_prometheus(tmp_path, exposition):
    rules = tmp_path / "alerts.yaml"
    rules.write_text(generate.files()["alerts.yaml"])
    checked = subprocess.run([PROMTOOL, "check", "rules", rules], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    ours = "".join(line + "\n" for line in exposition.splitlines() if "vllm:" not in line)
    checked = subprocess.run(
        [PROMTOOL, "check", "metrics"], input=ours, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


CASES = {
    "RoundhouseRequestsFail": {
        'roundhouse_requests_total{status="200"}': "0+90x30",
        'roundhouse_requests_total{status="503"}': "0+10x30",
    },
    "RoundhouseRequestsAreTurnedAway": {
        'roundhouse_requests_total{status="200"}': "0+90x30",
        'roundhouse_requests_total{status="429"}': "0+10x30",
    },
    "RoundhouseHitRatioIsLow": {
        'roundhouse_adapter_lookups_total{tier="slot"}': "0+1x40",
        'roundhouse_adapter_lookups_total{tier="node"}': "0+9x40",
    },
    "RoundhouseLoadsFail": {'roundhouse_adapter_loads_total{result="failed"}': "0+1x30"},
    "RoundhouseStoreIsDown": {
        'roundhouse_store_up{process="a"}': "1x30",
        'roundhouse_store_up{process="b"}': "0x30",
    },
    "RoundhouseRouterFallsBack": {
        'roundhouse_routing_decisions_total{outcome="adapter"}': "0+9x30",
        'roundhouse_routing_decisions_total{outcome="fallback"}': "0+1x30",
    },
    "RoundhouseEndpointFails": {
        'roundhouse_endpoint_requests_total{outcome="failed"}': "0+1x40",
        'roundhouse_endpoint_requests_total{outcome="ok"}': "7x40",
    },
    "RoundhouseFirstTokenIsSlow": {
        'roundhouse_time_to_first_token_seconds_bucket{le="5"}': "0+1x40",
        'roundhouse_time_to_first_token_seconds_bucket{le="10"}': "0+9x40",
        'roundhouse_time_to_first_token_seconds_bucket{le="+Inf"}': "0+9x40",
    },
    "RoundhouseEventsLag": {
        'roundhouse_event_lag_seconds_bucket{le="5"}': "0+1x40",
        'roundhouse_event_lag_seconds_bucket{le="10"}': "0+9x40",
        'roundhouse_event_lag_seconds_bucket{le="+Inf"}': "0+9x40",
    },
}
QUIET = {
    'roundhouse_requests_total{status="200"}': "0+90x40",
    'roundhouse_requests_total{status="503"}': "0+1x40",
    'roundhouse_adapter_lookups_total{tier="slot"}': "0+9x40",
    'roundhouse_adapter_lookups_total{tier="node"}': "0+1x40",
    'roundhouse_adapter_loads_total{result="failed"}': "3x40",
    'roundhouse_store_up{process="a"}': "1x40",
    'roundhouse_routing_decisions_total{outcome="adapter"}': "0+9x40",
    'roundhouse_time_to_first_token_seconds_bucket{le="5"}': "0+9x40",
    'roundhouse_time_to_first_token_seconds_bucket{le="+Inf"}': "0+9x40",
    'roundhouse_event_lag_seconds_bucket{le="5"}': "0+9x40",
    'roundhouse_event_lag_seconds_bucket{le="+Inf"}': "0+9x40",
    'roundhouse_endpoint_requests_total{outcome="failed"}': "0+1x40",
    'roundhouse_endpoint_requests_total{outcome="ok"}': "0+1x40",
}


def test_every_alert_is_tried():
    assert set(CASES) == set(ALERTS)


@needs_promtool
@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_fires_when_it_should_and_not_when_all_is_well(tmp_path, name):
    alert = next(a for a in generate.ALERTS if a.name == name)
    (tmp_path / "alerts.yaml").write_text(generate.files()["alerts.yaml"])
    labels = {"severity": alert.severity}
    about = {"summary": alert.summary, "runbook": f"{generate.RUNBOOK}#{alert.runbook}"}
    fires = [{"exp_labels": labels, "exp_annotations": about}]
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": s, "values": v} for s, v in series.items()],
            "alert_rule_test": [{"eval_time": "29m", "alertname": name, "exp_alerts": expected}],
        }
        for series, expected in ((CASES[name], fires), (QUIET, []))
    ]
    cases = tmp_path / "cases.yaml"
    cases.write_text(yaml.safe_dump({"rule_files": ["alerts.yaml"], "tests": tests}))
    tried = subprocess.run(
        [PROMTOOL, "test", "rules", cases], capture_output=True, text=True, cwd=tmp_path
    )
    assert tried.returncode == 0, tried.stdout + tried.stderr
