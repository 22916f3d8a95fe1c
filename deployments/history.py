"""Curves of the last hour and day out of counted buckets, for the page."""

import time
from collections.abc import Mapping
from typing import Any

from adapter_store.telemetry import STEPS, Counts, Step, TelemetryStore
from deployments.telemetry import SEPARATOR, adapter_of

_HITS = ("slot", "host")
_TIERS = (*_HITS, "node", "remote")
# A bucket is added to until its last reporter has reported.
_SETTLED_S = 15.0

Point = dict[str, Any]


class History:
    """Reads each bucket once, when it has settled; the newest ones every time."""

    def __init__(self, store: TelemetryStore) -> None:
        self._store = store
        self._settled: dict[Step, dict[int, Counts]] = {step: {} for step in STEPS}

    async def points(self, step: Step, after: float, adapter: str | None = None) -> list[Point]:
        """A point per bucket that began behind `after`, oldest first.

        Args:
            adapter: of this one alone.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        counts = await self._read(step)
        return [_point(at, step, counts[at], adapter) for at in sorted(counts) if at > after]

    async def traffic(self) -> dict[str, Point]:
        """By adapter, what the last hour brought; "" is the base models."""
        total: Counts = {}
        for counts in (await self._read(STEPS[0])).values():
            for field, amount in counts.items():
                total[field] = total.get(field, 0.0) + amount
        return {
            name: _summary(counts, STEPS[0].keep_s) for name, counts in _by_adapter(total).items()
        }

    async def _read(self, step: Step) -> dict[int, Counts]:
        now = time.time()
        known = self._settled[step]
        for start in [start for start in known if start <= now - step.keep_s]:
            del known[start]
        newest = step.bucket(now)
        wanted = range(newest - step.keep_s + step.width_s, newest + 1, step.width_s)
        found = await self._store.counts(step, (start for start in wanted if start not in known))
        settled = {s: c for s, c in found.items() if s + step.width_s < now - _SETTLED_S}
        known |= settled
        # Before the first count there is nothing to draw.
        return {start: counts for start, counts in (known | found).items() if counts}


def _point(at: int, step: Step, counts: Counts, adapter: str | None) -> Point:
    if adapter is not None:
        counts = _by_adapter(counts).get(adapter, {})
    return {"at": at} | _summary(counts, step.width_s)


def _by_adapter(counts: Counts) -> dict[str, Counts]:
    found: dict[str, Counts] = {}
    for field, amount in counts.items():
        if (adapter := adapter_of(field)) is not None:
            found.setdefault(adapter, {})[field] = amount
    return found


def _summary(counts: Counts, seconds: float) -> Point:
    requests = _by(counts, "roundhouse_requests_total")
    tiers = _by(counts, "roundhouse_adapter_lookups_total")
    lookups = sum(tiers.values())
    loads = _by(counts, "roundhouse_adapter_loads_total")
    load_s = sum(_by(counts, "roundhouse_adapter_load_seconds_sum").values())
    ttft = _by(counts, "roundhouse_time_to_first_token_seconds_bucket")
    tpot = _by(counts, "roundhouse_time_per_output_token_seconds_bucket")
    return {
        "requests": sum(requests.values()),
        "rate": sum(requests.values()) / seconds,
        "errors": sum(n for status, n in requests.items() if status >= "400"),
        "tokens": sum(_by(counts, "roundhouse_output_tokens_total").values()),
        "tiers": {tier: tiers.get(tier, 0.0) for tier in _TIERS},
        "hit_ratio": sum(tiers.get(t, 0.0) for t in _HITS) / lookups if lookups else None,
        "loads": loads.get("ok", 0.0),
        "failed_loads": loads.get("failed", 0.0),
        "load_s": load_s / loads["ok"] if loads.get("ok") else None,
        "evictions": sum(_by(counts, "roundhouse_adapter_evictions_total").values()),
        "decisions": _by(counts, "roundhouse_routing_decisions_total"),
        "ttft_p50_s": quantile(0.5, ttft),
        "ttft_p99_s": quantile(0.99, ttft),
        "tpot_p50_s": quantile(0.5, tpot),
        "tpot_p99_s": quantile(0.99, tpot),
    }


def _by(counts: Counts, name: str) -> dict[str, float]:
    """The counts of a sample by its first label, summed over the others."""
    found: dict[str, float] = {}
    for field, amount in counts.items():
        sample, *labels = field.split(SEPARATOR)
        if sample == name:
            first = labels[0] if labels else ""
            found[first] = found.get(first, 0.0) + amount
    return found


def quantile(q: float, cumulative: Mapping[str, float]) -> float | None:
    """Of a histogram's buckets by their upper bound, linear within a bucket, as Prometheus's
    `histogram_quantile` has it; None of nothing."""
    bounds = sorted((float(bound), count) for bound, count in cumulative.items())
    if not bounds or not bounds[-1][1]:
        return None
    rank = q * bounds[-1][1]
    lower, below = 0.0, 0.0
    for bound, count in bounds:
        if count > below and count >= rank:
            if bound == float("inf"):
                return lower
            return lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = bound, count
    return lower
