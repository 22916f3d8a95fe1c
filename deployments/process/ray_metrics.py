"""The same metrics through Ray's own exporter, for clusters that scrape every node anyway.

Ray puts `ray_` before each name. Its counters cannot be set, so all of them are its gauges; the
functions of PromQL do not care.
"""

from collections.abc import Iterable

from prometheus_client.metrics_core import Metric
from ray.util.metrics import Gauge

# Ray keeps a series until its process ends: adapters come and go, so they are added up here.
_UNBOUNDED = "adapter"


class RayExport:
    """Hands samples over; called with each reading of the metrics."""

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}

    def __call__(self, families: Iterable[Metric]) -> None:
        for family in families:
            for (name, labels), value in summed(family).items():
                if name not in self._gauges:
                    keys = tuple(key for key, _ in labels)
                    self._gauges[name] = Gauge(name, family.documentation, tag_keys=keys)
                self._gauges[name].set(value, tags=dict(labels))


def summed(family: Metric) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """The samples by name and labels, over all adapters."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for sample in family.samples:
        kept = tuple((k, v) for k, v in sorted(sample.labels.items()) if k != _UNBOUNDED)
        found[sample.name, kept] = found.get((sample.name, kept), 0.0) + sample.value
    return found
