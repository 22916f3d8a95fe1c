"""Curves of the last hour and day out of counted buckets, for the page."""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from adapter_store.telemetry import STEPS, Counts, Step, TelemetryStore
from deployments.process import metrics
from deployments.process.telemetry import parts_of

_HITS = ("slot", "host")
_TIERS = (*_HITS, "node", "remote")
# A bucket is added to until its last reporter has reported, a minute after the store was away.
_SETTLED_S = 75.0

Point = dict[str, Any]
# What was counted -> its first label -> how often.
Tally = dict[str, dict[str, float]]


class History:
    """Reads each bucket once, when it has settled; the newest ones every time."""

    def __init__(self, store: TelemetryStore) -> None:
        self._store = store
        # Adapter -> tally; None is everybody.
        self._settled: dict[Step, dict[int, dict[str | None, Tally]]] = {s: {} for s in STEPS}
        self._points: dict[Step, dict[int, Point]] = {step: {} for step in STEPS}
        self._traffic: tuple[int, dict[str, Point]] = (0, {})
        self._lock = asyncio.Lock()

    async def points(self, step: Step, after: float, adapter: str | None = None) -> list[Point]:
        """A point per bucket that began behind `after`, oldest first.

        Args:
            adapter: of this one alone.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        buckets = await self._read(step)
        return await asyncio.to_thread(self._points_of, step, buckets, after, adapter)

    async def traffic(self) -> dict[str, Point]:
        """By adapter, what the last hour brought; "" is the base models."""
        newest = STEPS[0].bucket(time.time())
        if self._traffic[0] != newest:
            buckets = await self._read(STEPS[0])
            self._traffic = newest, await asyncio.to_thread(_traffic_of, buckets.values())
        return self._traffic[1]

    async def _read(self, step: Step) -> dict[int, dict[str | None, Tally]]:
        async with self._lock:
            now = time.time()
            known, points = self._settled[step], self._points[step]
            for start in [start for start in known if start <= now - step.keep_s]:
                del known[start]
                points.pop(start, None)
            newest = step.bucket(now)
            wanted = range(newest - step.keep_s + step.width_s, newest + 1, step.width_s)
            missing = [start for start in wanted if start not in known]
            found = await self._store.counts(step, missing)
            parsed = await asyncio.to_thread(
                lambda: {start: _parsed(counts) for start, counts in found.items()}
            )
            settled = {s: t for s, t in parsed.items() if s + step.width_s < now - _SETTLED_S}
            known |= settled
            # Before the first count there is nothing to draw.
            return {start: tallies for start, tallies in (known | parsed).items() if tallies}

    def _points_of(
        self,
        step: Step,
        buckets: Mapping[int, dict[str | None, Tally]],
        after: float,
        adapter: str | None,
    ) -> list[Point]:
        found = []
        for at in sorted(at for at in buckets if at > after):
            if adapter is not None:
                found.append({"at": at} | _summary(buckets[at].get(adapter, {}), step.width_s))
                continue
            point = self._points[step].get(at)
            if point is None:
                point = {"at": at} | _summary(buckets[at][None], step.width_s)
                if at in self._settled[step]:
                    self._points[step][at] = point
            found.append(point)
        return found


def _parsed(counts: Counts) -> dict[str | None, Tally]:
    tallies: dict[str | None, Tally] = {}
    for field, amount in counts.items():
        name, label, adapter = parts_of(field)
        for who in {None, adapter}:
            tally = tallies.setdefault(who, {}).setdefault(name, {})
            tally[label] = tally.get(label, 0.0) + amount
    return tallies


def _traffic_of(buckets: Iterable[dict[str | None, Tally]]) -> dict[str, Point]:
    total: dict[str, Tally] = {}
    for tallies in buckets:
        for adapter, tally in tallies.items():
            if adapter is None:
                continue
            for name, by_label in tally.items():
                into = total.setdefault(adapter, {}).setdefault(name, {})
                for label, amount in by_label.items():
                    into[label] = into.get(label, 0.0) + amount
    return {adapter: _summary(tally, STEPS[0].keep_s) for adapter, tally in total.items()}


def _summary(tally: Tally, seconds: float) -> Point:
    def of(name: str) -> dict[str, float]:
        return tally.get(name, {})

    requests, tiers, loads = of("requests"), of("lookups"), of("loads")
    lookups = sum(tiers.values())
    return {
        "requests": sum(requests.values()),
        "rate": sum(requests.values()) / seconds,
        "errors": sum(n for status, n in requests.items() if status >= "400"),
        "tokens": sum(of("tokens").values()),
        "tiers": {tier: tiers.get(tier, 0.0) for tier in _TIERS},
        "hit_ratio": sum(tiers.get(t, 0.0) for t in _HITS) / lookups if lookups else None,
        "loads": loads.get("ok", 0.0),
        "failed_loads": loads.get("failed", 0.0),
        "load_s": of("load_s").get("", 0.0) / loads["ok"] if loads.get("ok") else None,
        "evictions": sum(of("evictions").values()),
        "decisions": of("choices"),
        "ttft_p50_s": quantile(0.5, of("ttft"), metrics.TTFT_BOUNDS),
        "ttft_p99_s": quantile(0.99, of("ttft"), metrics.TTFT_BOUNDS),
        "tpot_p50_s": quantile(0.5, of("tpot"), metrics.TPOT_BOUNDS),
        "tpot_p99_s": quantile(0.99, of("tpot"), metrics.TPOT_BOUNDS),
    }


def quantile(q: float, buckets: Mapping[str, float], bounds: Sequence[float]) -> float | None:
    """Linear within a bucket, as Prometheus's `histogram_quantile` has it; None of nothing.

    Args:
        buckets: counts by the upper bound of the bucket that they fell into; empty ones may lack.
        bounds: all upper bounds but infinity, growing.
    """
    counts = {float(bound): count for bound, count in buckets.items() if count > 0}
    total = sum(counts.values())
    if not total:
        return None
    rank, below = q * total, 0.0
    for lower, bound in pairwise((0.0, *bounds)):
        count = counts.get(float(bound), 0.0)
        if count and below + count >= rank:
            return lower + (bound - lower) * (rank - below) / count
        below += count
    return float(bounds[-1])
