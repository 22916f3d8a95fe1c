"""A process's numbers on their way to the store, and the whole cluster's on their way out.

The history is made from the metrics themselves: what a counter has grown by since last time is what
goes into the bucket of now. So everything is counted once.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from prometheus_client import REGISTRY as ENGINE_REGISTRY
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric

from adapter_store.tasks import cancel
from adapter_store.telemetry import STEPS, Counts, Step, TelemetryStore
from cluster.errors import StoreUnavailable
from cluster.settings import StoreSettings
from deployments import metrics

logger = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PERIOD_S = STEPS[0].width_s
# Of periods: what is not renewed for so long is of a process that has ended.
_KEPT = 4
_ENGINE = "vllm:"

Export = Callable[[Iterable[Metric]], None]

# Sample -> the labels that the history tells apart, in the order of the field's parts.
_HISTORY = {
    "roundhouse_requests_total": ("status", "adapter"),
    "roundhouse_output_tokens_total": ("adapter",),
    "roundhouse_time_to_first_token_seconds_bucket": ("le", "adapter"),
    "roundhouse_time_per_output_token_seconds_bucket": ("le", "adapter"),
    "roundhouse_adapter_lookups_total": ("tier", "adapter"),
    "roundhouse_adapter_loads_total": ("result",),
    "roundhouse_adapter_load_seconds_sum": (),
    "roundhouse_adapter_evictions_total": (),
    "roundhouse_routing_decisions_total": ("outcome",),
    "roundhouse_store_errors_total": (),
}
_ADAPTER = "adapter"
SEPARATOR = "|"


class Telemetry:
    """Of one process.

    Args:
        who: the process, as the store lists it.
        measure: called before each reading; sets the gauges that nothing else sets.
        export: is handed each reading of the metrics, too.
    """

    def __init__(
        self,
        settings: StoreSettings,
        who: str,
        measure: Callable[[], None] = lambda: None,
        export: Export = lambda families: None,
    ) -> None:
        self._export = export
        self.store = TelemetryStore(settings)
        self._who = who
        self._measure = measure
        self._growth = Growth()
        # What has grown and could not be stored yet.
        self._waiting: Counts = {}
        self._task: asyncio.Task | None = None

    def start(self) -> None:
        # What was counted before belongs to nobody's bucket.
        self._growth.since_last(metrics.REGISTRY.collect())
        self._task = asyncio.create_task(self._report_for_ever(), name="telemetry")

    def check(self) -> None:
        """Raise what ended the reports, so that a health check sees it."""
        if self._task is not None and self._task.done():
            self._task.result()

    async def stop(self) -> None:
        if self._task is not None:
            await cancel(self._task)
        await self.store.close()

    def exposition(self) -> str:
        """This process's metrics, the engine's too, in Prometheus's text format."""
        self._measure()
        return _text(_labelled(self._who, _families()))

    async def cluster_exposition(self) -> str:
        """The metrics of all processes; of this one alone while the store does not answer."""
        texts: dict[str, str] = {}
        try:
            texts = await self.store.all_metrics()
        except StoreUnavailable as e:
            logger.warning("only this process's metrics are told: %s", e)
        texts[self._who] = self.exposition()
        return joined(texts.values())

    async def _report_for_ever(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            try:
                await self._report()
            except StoreUnavailable as e:
                metrics.store_errors.inc()
                metrics.store_up.set(0)
                logger.warning("metrics not kept: %s", e)

    def _read(self) -> Counts:
        families = list(metrics.REGISTRY.collect())
        self._export(families)
        return self._growth.since_last(families)

    async def _report(self) -> None:
        # In a thread: thousands of series take longer than a token may wait.
        grown = await asyncio.to_thread(self._read)
        for field, by in grown.items():
            self._waiting[field] = self._waiting.get(field, 0.0) + by
        if self._waiting:
            counts = {step: _for_step(step, self._waiting) for step in STEPS}
            await self.store.add_counts(time.time(), counts)
            self._waiting = {}
        exposition = await asyncio.to_thread(self.exposition)
        await self.store.put_metrics(self._who, exposition, for_s=_KEPT * PERIOD_S)
        metrics.store_up.set(1)


class Growth:
    """What counters have grown by between two readings."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, ...], float] = {}

    def since_last(self, families: Iterable[Metric]) -> Counts:
        """By field of the history: the sample's name and its labels, joined."""
        grown: Counts = {}
        seen: dict[tuple[str, ...], float] = {}
        for sample in chain.from_iterable(family.samples for family in families):
            labels = _HISTORY.get(sample.name)
            if labels is None:
                continue
            series = (sample.name, *chain(*sorted(sample.labels.items())))
            before = self._seen.get(series, 0.0)
            seen[series] = sample.value
            # A smaller count has begun anew.
            by = sample.value - before if sample.value >= before else sample.value
            if by:
                field = SEPARATOR.join((sample.name, *(sample.labels[name] for name in labels)))
                grown[field] = grown.get(field, 0.0) + by
        self._seen = seen
        return grown


def adapter_of(field: str) -> str | None:
    """The adapter that a field of the history is about; "" is the base model, None is everybody."""
    name, *values = field.split(SEPARATOR)
    labels = _HISTORY.get(name, ())
    return values[labels.index(_ADAPTER)] if _ADAPTER in labels else None


def _for_step(step: Step, grown: Counts) -> Counts:
    if step.has_adapters:
        return grown
    counts: Counts = {}
    for field, by in grown.items():
        name, *values = field.split(SEPARATOR)
        if _ADAPTER in _HISTORY[name]:
            values[_HISTORY[name].index(_ADAPTER)] = ""
        total = SEPARATOR.join((name, *values))
        counts[total] = counts.get(total, 0.0) + by
    return counts


def _families() -> Iterator[Metric]:
    yield from metrics.REGISTRY.collect()
    # The rest of that registry describes the Python process, which is nobody's concern here.
    yield from (f for f in ENGINE_REGISTRY.collect() if f.name.startswith(_ENGINE))


def _labelled(who: str, families: Iterable[Metric]) -> Iterator[Metric]:
    """With the process as a label, so that the same series of two processes stay two."""
    for family in families:
        copy = Metric(family.name, family.documentation, family.type)
        copy.samples = [s._replace(labels={**s.labels, "process": who}) for s in family.samples]
        yield copy


def _text(families: Iterable[Metric]) -> str:
    registry = CollectorRegistry()
    registry.register(_Collected(list(families)))
    return generate_latest(registry).decode()


class _Collected:
    """Families that were collected already."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


_FAMILY = re.compile(r"^# HELP (\S+)", re.MULTILINE)


def joined(texts: Iterable[str]) -> str:
    """One exposition out of several: a family may be described once only, with all its samples."""
    heads: dict[str, str] = {}
    samples: dict[str, list[str]] = {}
    for text in texts:
        starts = [(match.start(), match[1]) for match in _FAMILY.finditer(text)]
        ends = [start for start, _ in starts[1:]] + [len(text)]
        for (start, name), end in zip(starts, ends, strict=True):
            lines = text[start:end].splitlines(keepends=True)
            heads.setdefault(name, "".join(line for line in lines if line.startswith("#")))
            samples.setdefault(name, []).extend(x for x in lines if not x.startswith("#"))
    return "".join(heads[name] + "".join(samples[name]) for name in heads)
