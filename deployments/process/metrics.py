"""Every number that Roundhouse exports, in one place; what counts it is where it happens.

Names follow Prometheus: base units, `_total` for counters. Each process has its own; the endpoint
adds them up (`telemetry.py`). vLLM's own metrics are in prometheus_client's default registry, these
are in :data:`REGISTRY`.
"""

import time
from collections.abc import Callable

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

# When a series began is nothing that anybody here asks for; it would double their number.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY = CollectorRegistry()

TTFT_BOUNDS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 30, 60)
TPOT_BOUNDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1)
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SHARE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)

# -- requests, as their clients see them (ingress) -----------------------------------------------

requests = Counter(
    "roundhouse_requests_total",
    "Requests that were answered, by HTTP status; adapter is empty for the base model, (unknown)"
    " where a request was refused before one was chosen, (other) beyond what is told apart; status"
    " 499 is a client that left.",
    ("model", "adapter", "route", "status"),
    registry=REGISTRY,
)
tokens = Counter(
    "roundhouse_output_tokens_total",
    "Tokens that were generated and sent.",
    ("model", "adapter"),
    registry=REGISTRY,
)
ttft = Histogram(
    "roundhouse_time_to_first_token_seconds",
    "From a streamed request's arrival until its first token, queueing and loading included.",
    ("model", "adapter"),
    buckets=TTFT_BOUNDS,
    registry=REGISTRY,
)
tpot = Histogram(
    "roundhouse_time_per_output_token_seconds",
    "Mean time between the tokens of a streamed answer, after the first.",
    ("model", "adapter"),
    buckets=TPOT_BOUNDS,
    registry=REGISTRY,
)
queue_wait = Histogram(
    "roundhouse_queue_wait_seconds",
    "Time that a request waited for its turn on a replica, or until it was refused one.",
    ("model",),
    buckets=_SHORT,
    registry=REGISTRY,
)
queued = Gauge(
    "roundhouse_queued_requests",
    "Requests that wait for their turn now.",
    ("model",),
    registry=REGISTRY,
)

# -- batches (ingress) ---------------------------------------------------------------------------

batch_requests = Counter(
    "roundhouse_batch_requests_total",
    "Requests of batches that have their answer, by whether it is in the output (completed) or in"
    " the error file (failed).",
    ("outcome",),
    registry=REGISTRY,
)
batches_running = Gauge(
    "roundhouse_batches_running",
    "Batches that are worked on now.",
    registry=REGISTRY,
)

# -- the prompt router (ingress) -----------------------------------------------------------------

decisions = Counter(
    "roundhouse_routing_decisions_total",
    "Choices for `auto`, by outcome: adapter, base (it abstained or chose the base model), fallback"
    " (the router did not answer).",
    ("outcome",),
    registry=REGISTRY,
)
ruled = Counter(
    "roundhouse_routing_rules_total",
    "Choices for `auto` that a rule has a part in: chose (it said who answers), narrowed (it left"
    " fewer adapters).",
    ("rule", "part"),
    registry=REGISTRY,
)
encoder_failures = Counter(
    "roundhouse_routing_encoder_failures_total",
    "Trained encoders that a prompt router could not take, or had reason not to; the one before "
    "reads on.",
    registry=REGISTRY,
)
turns = Counter(
    "roundhouse_routing_turns_total",
    "Choices for `auto` in conversations of which is known what answered before: stayed, switched.",
    ("outcome",),
    registry=REGISTRY,
)
explored = Counter(
    "roundhouse_routing_explored_total",
    "Choices for `auto` of what is not expected to be best, to learn how well it answers.",
    registry=REGISTRY,
)
confidence = Histogram(
    "roundhouse_routing_confidence_ratio",
    "Confidence of the choices that named an adapter.",
    buckets=_SHARE,
    registry=REGISTRY,
)
routing_time = Histogram(
    "roundhouse_routing_seconds",
    "Time that a choice added to its request.",
    buckets=_SHORT,
    registry=REGISTRY,
)

# -- adapters on a replica -----------------------------------------------------------------------

lookups = Counter(
    "roundhouse_adapter_lookups_total",
    "Requests by where they found their adapter: slot and host are hits, node and remote misses.",
    ("model", "adapter", "tier"),
    registry=REGISTRY,
)
resident = Gauge(
    "roundhouse_resident_adapters",
    "Adapter versions that the replica holds, by tier.",
    ("model", "tier"),
    registry=REGISTRY,
)
capacity = Gauge(
    "roundhouse_adapter_capacity",
    "Adapter versions that the replica can hold, by tier; host includes those in slots.",
    ("model", "tier"),
    registry=REGISTRY,
)
loads = Counter(
    "roundhouse_adapter_loads_total",
    "Loads into the engine, by how they ended: ok or failed.",
    ("model", "adapter", "result"),
    registry=REGISTRY,
)
load_time = Histogram(
    "roundhouse_adapter_load_seconds",
    "Time of a load, from when there is room for it until the engine's worker tells of it.",
    ("model",),
    buckets=_SHORT,
    registry=REGISTRY,
)
load_bytes = Counter(
    "roundhouse_adapter_load_bytes_total",
    "Bytes of the adapters that were loaded.",
    ("model",),
    registry=REGISTRY,
)
evictions = Counter(
    "roundhouse_adapter_evictions_total",
    "Adapter versions that were moved out of the engine to make room.",
    ("model", "adapter"),
    registry=REGISTRY,
)
leases = Gauge(
    "roundhouse_adapter_leases",
    "Requests that hold an adapter in place now, or wait for its load.",
    ("model",),
    registry=REGISTRY,
)
kv_use = Gauge(
    "roundhouse_kv_cache_use_ratio",
    "Part of the engine's KV cache that is in use.",
    ("model",),
    registry=REGISTRY,
)

# -- models elsewhere (their replicas), and who answers for whom (ingress) ------------------------

endpoint_requests = Counter(
    "roundhouse_endpoint_requests_total",
    "Requests that an endpoint elsewhere was sent, retries included, by what came of it: ok,"
    " refused (the client's mistake), limited (429), failed.",
    ("model", "outcome"),
    registry=REGISTRY,
)
endpoint_tokens = Counter(
    "roundhouse_endpoint_tokens_total",
    "Tokens that an endpoint elsewhere has told in `usage`, by kind: prompt or completion;"
    " estimated where it has not, as when a client left.",
    ("model", "kind"),
    registry=REGISTRY,
)
cost = Counter(
    "roundhouse_cost_total",
    "What these tokens cost by the prices in the settings, in their unit.",
    ("model",),
    registry=REGISTRY,
)
endpoint_open = Gauge(
    "roundhouse_endpoint_left_alone",
    "1 while an endpoint elsewhere is not asked: it has failed in a row, or asked for it.",
    ("model",),
    registry=REGISTRY,
)
fallbacks = Counter(
    "roundhouse_fallbacks_total",
    "Answers by a model of another one's `fallback`.",
    ("model", "to"),
    registry=REGISTRY,
)

# -- the store, as every process sees it ---------------------------------------------------------

event_lag = Histogram(
    "roundhouse_event_lag_seconds",
    "From a change in the store until this process has applied it.",
    buckets=_SHORT,
    registry=REGISTRY,
)
store_errors = Counter(
    "roundhouse_store_errors_total",
    "Reports that the store did not take.",
    registry=REGISTRY,
)
store_up = Gauge(
    "roundhouse_store_up",
    "1 while the store answers this process, else 0.",
    registry=REGISTRY,
)
adapters = Gauge(
    "roundhouse_registered_adapters",
    "Adapters that are registered, as this process knows.",
    registry=REGISTRY,
)

# -- rollouts (ingress) and plans (planner) ------------------------------------------------------

rollout_share = Gauge(
    "roundhouse_rollout_ratio",
    "Share of an adapter's requests that the version being rolled out gets; 0 while it is checked.",
    ("adapter",),
    registry=REGISTRY,
)
plan_moves = Counter(
    "roundhouse_planner_moves_total",
    "Loads that plans asked replicas for.",
    ("model",),
    registry=REGISTRY,
)
plan_time = Histogram(
    "roundhouse_planner_step_seconds",
    "Time of one plan for all base models.",
    buckets=_SHORT,
    registry=REGISTRY,
)


def all_metrics() -> dict[str, MetricWrapperBase]:
    """Every metric of this file by its exported name, without the suffixes of its samples."""
    found = (v for v in globals().values() if isinstance(v, MetricWrapperBase))
    return {next(iter(metric.describe())).name: metric for metric in found}


def labels_of(metric: MetricWrapperBase) -> tuple[str, ...]:
    """The names of a metric's labels, which prometheus_client tells of samples alone."""
    return tuple(metric._labelnames)  # noqa: SLF001


UNKNOWN, OTHER, SEVERAL = "(unknown)", "(other)", "(several)"
_BY_ADAPTER = (requests, tokens, ttft, tpot, lookups, loads, evictions)


class AdapterLabels:
    """Keeps the number of adapters that metrics name bounded, and every sum whole.

    Beyond `most`, newcomers are counted together. Room is made by those that nobody has asked for
    in a while: nothing that was counted goes before it was read.
    """

    def __init__(self, most: int = 200, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._used: dict[str, float] = {}

    def use(self, name: str) -> str:
        """The label's value for an adapter."""
        if name not in self._used and len(self._used) >= self._most:
            return OTHER
        self._used[name] = self._clock()
        return name

    def retire(self, idle_s: float) -> None:
        """Remove the series of adapters that were not asked for since; they begin anew, as after a
        restart, should they come back."""
        before = self._clock() - idle_s
        for name in [name for name, used in self._used.items() if used < before]:
            del self._used[name]
            for metric in _BY_ADAPTER:
                metric.remove_by_labels({"adapter": name})


named = AdapterLabels()
