"""A process's numbers on their way to the store, and the whole cluster's on their way out.

The history is made from the metrics themselves: what a counter has grown by since last time is what
goes into the bucket of now. So everything is counted once.
"""

import asyncio
import contextlib
import itertools
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from prometheus_client import REGISTRY as ENGINE_REGISTRY
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric

from adapter_store.telemetry import STEPS, Counts, Step, TelemetryStore
from cluster.errors import StoreUnavailable
from cluster.tasks import PATIENCE_S, Background, soon
from deployments.process import metrics

logger = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PERIOD_S = STEPS[0].width_s
# Of periods: what is not renewed for so long is of a process that has ended.
_KEPT = 4
_ENGINE = "vllm:"

Export = Callable[[Iterable[Metric]], None]


def nowhere(_: Iterable[Metric]) -> None:
    """The export of a process that has none."""


# Sample -> its short name in the history, and the labels that are told apart there, in this order;
# the adapter is the last one.
_HISTORY = {
    "roundhouse_requests_total": ("requests", ("status", "adapter")),
    "roundhouse_output_tokens_total": ("tokens", ("adapter",)),
    "roundhouse_time_to_first_token_seconds_bucket": ("ttft", ("le", "adapter")),
    "roundhouse_time_per_output_token_seconds_bucket": ("tpot", ("le", "adapter")),
    "roundhouse_adapter_lookups_total": ("lookups", ("tier", "adapter")),
    "roundhouse_adapter_loads_total": ("loads", ("result", "adapter")),
    "roundhouse_adapter_load_seconds_sum": ("load_s", ()),
    "roundhouse_adapter_evictions_total": ("evictions", ("adapter",)),
    "roundhouse_routing_decisions_total": ("choices", ("outcome",)),
}
_LABELS = dict(_HISTORY.values())
_ADAPTER, _BOUND = "adapter", "le"
_SEPARATOR = "|"
# An adapter that nobody has asked for in so long loses its series.
_IDLE_S = 600.0
# Reports that could not be stored and are kept for later; a minute's.
_MOST_WAITING = 12
_AFTER_S = 0.05


class Telemetry:
    """Of one process.

    Args:
        who: the process, as the store lists it.
        export: is handed each reading of the metrics, too.
    """

    def __init__(
        self,
        store: TelemetryStore,
        who: str,
        export: Export,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._who = who
        self._export = export
        self._clock = clock
        self._on_reading: list[Callable[[], None]] = []
        self._growth = Growth()
        # What has grown, when, and could not be stored yet.
        self._waiting: deque[tuple[int, float, Counts]] = deque(maxlen=_MOST_WAITING)
        self._batches = itertools.count()
        self._ended = asyncio.Event()
        self._reporting = asyncio.Lock()
        self._background = Background()

    def on_reading(self, measure: Callable[[], None]) -> None:
        """Have it called before each reading, to set the gauges that nothing else sets."""
        self._on_reading.append(measure)

    async def start(self) -> None:
        # What was counted before belongs to nobody's bucket.
        self._growth.since_last(metrics.REGISTRY.collect())
        self._background.start("telemetry", self._report_for_ever())

    def check(self) -> None:
        """Raise what ended the reports, so that a health check sees it."""
        self._background.check()

    async def stop(self) -> None:
        self._ended.set()
        # A report under way is let finish, if the store lets it.
        await self._background.stop(patience_s=PATIENCE_S)

    async def exposition(self) -> str:
        """This process's metrics, the engine's too, in Prometheus's text format."""
        self._measure()
        return await asyncio.to_thread(lambda: _text(_labelled(self._who, _families())))

    async def cluster_exposition(self) -> str:
        """The metrics of all processes; of this one alone while the store does not answer.

        Its own are told as they were last stored, like the others': whichever process is asked next
        must not tell less than this one.
        """
        try:
            # A scrape must not fail because the store hangs: that is what it would tell.
            texts = await soon(self._store.all_metrics())
        except StoreUnavailable as e:
            logger.warning("only this process's metrics are told: %s", e)
            texts = {}
        if self._who not in texts:
            texts[self._who] = await self.exposition()
        return await asyncio.to_thread(joined, texts.values())

    def _measure(self) -> None:
        for measure in self._on_reading:
            measure()

    async def _report_for_ever(self) -> None:
        while True:
            # Right after a bucket has ended, so that each gets what fell into it, and none two.
            delay_s = PERIOD_S - self._clock() % PERIOD_S + _AFTER_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), delay_s)
                return
            try:
                await self.report()
                metrics.store_up.set(1)
            except StoreUnavailable as e:
                metrics.store_errors.inc()
                metrics.store_up.set(0)
                logger.warning("metrics not kept: %s", e)

    async def report(self) -> None:
        """Hand over what has been counted since the last time, and the metrics as they are."""
        async with self._reporting:
            await self._report()

    async def _report(self) -> None:
        self._measure()
        # In a thread: thousands of series take longer than a token may wait.
        grown = await asyncio.to_thread(self._read)
        metrics.named.retire(_IDLE_S)
        if grown:
            ended_at = self._clock() - PERIOD_S / 2
            self._waiting.append((next(self._batches), ended_at, grown))
        while self._waiting:
            batch, at, counts = self._waiting[0]
            by_step = {step: _for_step(step, counts) for step in STEPS}
            await self._store.add_counts(self._who, batch, at, by_step)
            self._waiting.popleft()
        exposition = await self.exposition()
        await self._store.put_metrics(self._who, exposition, for_s=_KEPT * PERIOD_S)

    def _read(self) -> Counts:
        families = list(metrics.REGISTRY.collect())
        self._export(families)
        return self._growth.since_last(families)


class Growth:
    """What counters have grown by between two readings."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, ...], float] = {}

    def since_last(self, families: Iterable[Metric]) -> Counts:
        """By field of the history: the sample's short name and its labels, joined.

        Histograms have in each bucket what fell into it alone, not into all below: most are empty
        then, and empty ones are not stored.
        """
        grown: Counts = {}
        seen: dict[tuple[str, ...], float] = {}
        below = 0.0
        for sample in chain.from_iterable(family.samples for family in families):
            if sample.name not in _HISTORY:
                continue
            short, labels = _HISTORY[sample.name]
            series = (sample.name, *chain(*sorted(sample.labels.items())))
            before = self._seen.get(series, 0.0)
            seen[series] = sample.value
            # A smaller count has begun anew.
            by = sample.value - before if sample.value >= before else sample.value
            if _BOUND in labels:
                is_last = sample.labels[_BOUND] == "+Inf"
                by, below = by - below, 0.0 if is_last else by
            if by:
                field = _SEPARATOR.join((short, *(sample.labels[name] for name in labels)))
                grown[field] = grown.get(field, 0.0) + by
        self._seen = seen
        return grown


def parts_of(field: str) -> tuple[str, str, str | None]:
    """A field of the history: what was counted, its first label ("" if none), and the adapter.

    The adapter is "" for the base model, and None where adapters are not told apart.
    """
    name, values = _split(field)
    adapter = values.pop() if _ADAPTER in _LABELS.get(name, ()) else None
    return name, values[0] if values else "", adapter


def _split(field: str) -> tuple[str, list[str]]:
    """What was counted, and the values of its labels; an adapter's name may have separators."""
    name, _, rest = field.partition(_SEPARATOR)
    labels = _LABELS.get(name, ())
    return name, rest.split(_SEPARATOR, len(labels) - 1) if labels else []


def _for_step(step: Step, grown: Counts) -> Counts:
    if step.has_adapters:
        return grown
    counts: Counts = {}
    for field, by in grown.items():
        name, values = _split(field)
        if _ADAPTER in _LABELS[name]:
            values[-1] = ""
        total = _SEPARATOR.join((name, *values))
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
