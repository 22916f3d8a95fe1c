"""The Grafana dashboard, the alert rules and the provisioning files, as `make docs` writes them.

The panels and the rules stand below as tables; the JSON and the YAML are made from them.
"""

import json
from dataclasses import dataclass
from typing import Any

import yaml

DATA_SOURCE = {"type": "prometheus", "uid": "${source}"}
RUNBOOK = "docs/operations.md"
_WIDTH, _HEIGHT = 8, 7


@dataclass(frozen=True)
class Panel:
    """A graph: legend -> expression."""

    title: str
    about: str
    unit: str
    curves: dict[str, str]


@dataclass(frozen=True)
class Alert:
    """A rule; `runbook` is the anchor of what to do about it."""

    name: str
    expression: str
    lasts: str
    severity: str
    summary: str
    runbook: str


def _quantiles(metric: str, by: str = "") -> dict[str, str]:
    of = f"sum by (le{by}) (rate({metric}_bucket[$__rate_interval]))"
    return {f"P{q * 100:g}": f"histogram_quantile({q}, {of})" for q in (0.5, 0.99)}


def _rate(metric: str, *by: str) -> str:
    grouped = f" by ({', '.join(by)})" if by else ""
    return f"sum{grouped} (rate({metric}[$__rate_interval]))"


_LOOKUPS = "roundhouse_adapter_lookups_total"
HIT_RATIO = (
    f'sum(rate({_LOOKUPS}{{tier=~"slot|host"}}[$__rate_interval])) '
    f"/ sum(rate({_LOOKUPS}[$__rate_interval]))"
)

ROWS: dict[str, list[Panel]] = {
    "Requests": [
        Panel(
            "Requests",
            "Answered requests by HTTP status.",
            "reqps",
            {"{{status}}": _rate("roundhouse_requests_total", "status")},
        ),
        Panel(
            "Time to first token",
            "Of streamed requests, from their arrival; queueing and loading included.",
            "s",
            _quantiles("roundhouse_time_to_first_token_seconds"),
        ),
        Panel(
            "Time per output token",
            "Of streamed requests, after the first token.",
            "s",
            _quantiles("roundhouse_time_per_output_token_seconds"),
        ),
        Panel(
            "Busiest adapters",
            "Requests a second of the ten most asked for.",
            "reqps",
            {"{{adapter}}": f"topk(10, {_rate('roundhouse_requests_total', 'adapter')})"},
        ),
        Panel(
            "Output tokens",
            "Generated tokens a second, by base model.",
            "short",
            {"{{model}}": _rate("roundhouse_output_tokens_total", "model")},
        ),
        Panel(
            "Waiting",
            "Requests that wait for their turn, and how long the slowest waited.",
            "short",
            {
                "{{model}} waiting": "sum by (model) (roundhouse_queued_requests)",
                **{
                    f"{q} wait, s": e
                    for q, e in _quantiles("roundhouse_queue_wait_seconds").items()
                },
            },
        ),
    ],
    "Adapters": [
        Panel(
            "Hit ratio",
            "Requests that found their adapter in a slot or in host memory.",
            "percentunit",
            {"hits": HIT_RATIO},
        ),
        Panel(
            "Where requests found their adapter",
            "slot and host are hits, node and remote are misses.",
            "reqps",
            {"{{tier}}": _rate(_LOOKUPS, "tier")},
        ),
        Panel(
            "Loads and evictions",
            "Adapters taken into engines, and moved out to make room.",
            "ops",
            {
                "loads {{result}}": _rate("roundhouse_adapter_loads_total", "result"),
                "evictions": _rate("roundhouse_adapter_evictions_total"),
                "planned": _rate("roundhouse_planner_moves_total"),
            },
        ),
        Panel(
            "Time of a load",
            "From when there is room until the engine has the adapter.",
            "s",
            _quantiles("roundhouse_adapter_load_seconds"),
        ),
        Panel(
            "Bytes loaded",
            "Of adapters, into engines.",
            "Bps",
            {"{{model}}": _rate("roundhouse_adapter_load_bytes_total", "model")},
        ),
        Panel(
            "Memory for adapters",
            "Held adapters, as part of the room there is.",
            "percentunit",
            {
                "{{tier}}": "sum by (tier) (roundhouse_resident_adapters)"
                " / sum by (tier) (roundhouse_adapter_capacity)"
            },
        ),
        Panel(
            "Leases",
            "Requests that hold an adapter in place.",
            "short",
            {"{{model}}": "sum by (model) (roundhouse_adapter_leases)"},
        ),
        Panel(
            "Rollouts",
            "Share of the requests that the new version gets.",
            "percentunit",
            {"{{adapter}}": "max by (adapter) (roundhouse_rollout_ratio)"},
        ),
        Panel(
            "Registered",
            "Adapters in the registry.",
            "short",
            {"adapters": "max(roundhouse_registered_adapters)"},
        ),
    ],
    "Choice of the adapter": [
        Panel(
            "Choices",
            "For `auto`, by outcome.",
            "reqps",
            {"{{outcome}}": _rate("roundhouse_routing_decisions_total", "outcome")},
        ),
        Panel(
            "Rules",
            "Choices for `auto` that each rule has a part in.",
            "reqps",
            {"{{rule}} {{part}}": _rate("roundhouse_routing_rules_total", "rule", "part")},
        ),
        Panel(
            "Time of a choice",
            "What it adds to a request.",
            "s",
            _quantiles("roundhouse_routing_seconds"),
        ),
        Panel(
            "Confidence",
            "Median of the choices that named an adapter.",
            "percentunit",
            {"median": _quantiles("roundhouse_routing_confidence_ratio")["P50"]},
        ),
    ],
    "Models elsewhere": [
        Panel(
            "Requests to endpoints",
            "By what came of them, retries included.",
            "reqps",
            {
                "{{model}} {{outcome}}": _rate(
                    "roundhouse_endpoint_requests_total", "model", "outcome"
                ),
                "{{model}} left alone": "max by (model) (roundhouse_endpoint_left_alone)",
            },
        ),
        Panel(
            "Cost",
            "An hour, at the present rate, in the unit of the settings' prices.",
            "short",
            {"{{model}}": f"3600 * {_rate('roundhouse_cost_total', 'model')}"},
        ),
        Panel(
            "Fallbacks",
            "Answers by another model than the one that was to answer.",
            "reqps",
            {"{{model}} to {{to}}": _rate("roundhouse_fallbacks_total", "model", "to")},
        ),
    ],
    "Store and engines": [
        Panel(
            "Store",
            "Processes that the store answers, and reports that it did not take.",
            "short",
            {
                "answered": "sum(roundhouse_store_up)",
                "errors/s": _rate("roundhouse_store_errors_total"),
            },
        ),
        Panel(
            "Event lag",
            "From a change in the store until a process has applied it.",
            "s",
            _quantiles("roundhouse_event_lag_seconds"),
        ),
        Panel(
            "Planner",
            "Time of a plan.",
            "s",
            _quantiles("roundhouse_planner_step_seconds"),
        ),
        Panel(
            "KV cache",
            "Part in use, by replica.",
            "percentunit",
            {"{{process}}": "roundhouse_kv_cache_use_ratio"},
        ),
        Panel(
            "Engine: running and waiting",
            "vLLM's own count of requests.",
            "short",
            {
                "running": "sum(vllm:num_requests_running)",
                "waiting": "sum(vllm:num_requests_waiting)",
            },
        ),
    ],
}

ALERTS = [
    Alert(
        "RoundhouseRequestsFail",
        'sum(rate(roundhouse_requests_total{status=~"5.."}[5m]))'
        " / sum(rate(roundhouse_requests_total[5m])) > 0.02",
        "5m",
        "critical",
        "More than 2 % of the requests fail.",
        "requests-fail",
    ),
    Alert(
        "RoundhouseRequestsAreTurnedAway",
        'sum(rate(roundhouse_requests_total{status="429"}[5m]))'
        " / sum(rate(roundhouse_requests_total[5m])) > 0.05",
        "10m",
        "warning",
        "More than 5 % of the requests are turned away: the replicas are full.",
        "requests-are-turned-away",
    ),
    Alert(
        "RoundhouseHitRatioIsLow",
        'sum(rate(roundhouse_adapter_lookups_total{tier=~"slot|host"}[10m]))'
        " / sum(rate(roundhouse_adapter_lookups_total[10m])) < 0.5",
        "15m",
        "warning",
        "Less than half of the requests find their adapter in memory.",
        "hit-ratio-is-low",
    ),
    Alert(
        "RoundhouseLoadsFail",
        'sum(increase(roundhouse_adapter_loads_total{result="failed"}[10m])) > 0',
        "0m",
        "warning",
        "An adapter could not be loaded.",
        "loads-fail",
    ),
    Alert(
        "RoundhouseStoreIsDown",
        "min(roundhouse_store_up) == 0",
        "1m",
        "critical",
        "The adapter store does not answer: what is loaded is served, nothing changes.",
        "store-is-down",
    ),
    Alert(
        "RoundhouseRouterFallsBack",
        'sum(rate(roundhouse_routing_decisions_total{outcome="fallback"}[5m]))'
        " / sum(rate(roundhouse_routing_decisions_total[5m])) > 0.01",
        "5m",
        "warning",
        "The prompt router does not answer: `auto` goes to the base model.",
        "router-falls-back",
    ),
    Alert(
        "RoundhouseEndpointFails",
        'sum by (model) (increase(roundhouse_endpoint_requests_total{outcome="failed"}[5m])) > 0'
        " unless sum by (model)"
        ' (increase(roundhouse_endpoint_requests_total{outcome="ok"}[5m])) > 0',
        "2m",
        "warning",
        "An endpoint elsewhere answers nothing; its fallbacks do, or nobody.",
        "endpoint-fails",
    ),
    Alert(
        "RoundhouseFirstTokenIsSlow",
        "histogram_quantile(0.99, sum by (le)"
        " (rate(roundhouse_time_to_first_token_seconds_bucket[10m]))) > 6",
        "10m",
        "warning",
        "One streamed request in a hundred waits more than 6 s for its first token.",
        "first-token-is-slow",
    ),
    Alert(
        "RoundhouseEventsLag",
        "histogram_quantile(0.99, sum by (le)"
        " (rate(roundhouse_event_lag_seconds_bucket[10m]))) > 5",
        "10m",
        "warning",
        "Processes learn of changes more than 5 s late.",
        "events-lag",
    ),
]


def dashboard() -> dict[str, Any]:
    """The Grafana dashboard's model."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row, of_row in ROWS.items():
        panels.append(_row(row, y))
        y += 1
        for i, panel in enumerate(of_row):
            x = i % 3 * _WIDTH
            panels.append(_panel(panel, x, y + i // 3 * _HEIGHT))
        y += -(-len(of_row) // 3) * _HEIGHT
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    source = {"name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    return {
        "title": "Roundhouse",
        "uid": "roundhouse",
        "tags": ["roundhouse", "lora"],
        "schemaVersion": 41,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source]},
        "panels": panels,
    }


def _row(title: str, y: int) -> dict[str, Any]:
    return {"type": "row", "title": title, "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}}


def _panel(panel: Panel, x: int, y: int) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": DATA_SOURCE,
        "gridPos": {"x": x, "y": y, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(65 + i), "expr": expression, "legendFormat": legend}
            for i, (legend, expression) in enumerate(panel.curves.items())
        ],
    }


def rules() -> dict[str, Any]:
    """The alert rules as Prometheus reads them."""
    return {
        "groups": [
            {
                "name": "roundhouse",
                "rules": [
                    {
                        "alert": alert.name,
                        "expr": alert.expression,
                        "for": alert.lasts,
                        "labels": {"severity": alert.severity},
                        "annotations": {
                            "summary": alert.summary,
                            "runbook": f"{RUNBOOK}#{alert.runbook}",
                        },
                    }
                    for alert in ALERTS
                ],
            }
        ]
    }


def files() -> dict[str, str]:
    """Every file by its path in `chart/monitoring`, and its content."""
    source = {
        "apiVersion": 1,
        "datasources": [
            {"name": "Prometheus", "type": "prometheus", "url": "http://prometheus:9090"}
        ],
    }
    provider = {
        "apiVersion": 1,
        "providers": [
            {
                "name": "roundhouse",
                "type": "file",
                "options": {"path": "/etc/grafana/dashboards/roundhouse"},
            }
        ],
    }
    return {
        "dashboard.json": json.dumps(dashboard(), indent=1) + "\n",
        "alerts.yaml": _yaml(rules()),
        "provisioning/datasource.yaml": _yaml(source),
        "provisioning/dashboards.yaml": _yaml(provider),
    }


def _yaml(tree: dict[str, Any]) -> str:
    return yaml.safe_dump(tree, sort_keys=False, width=100)
