"""The same metrics through Ray's own exporter, for clusters that scrape every node anyway.

Ray puts `ray_` before each name. Its counters cannot be set, so all of them are its gauges; the
functions of PromQL do not care.
"""

from collections.abc import Iterable

from prometheus_client.metrics_core import Metric
from ray.util.metrics import Gauge


class RayExport:
    """Hands samples over; called with each reading of the metrics."""

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}

    def __call__(self, families: Iterable[Metric]) -> None:
        for family in families:
            for sample in family.samples:
                self._gauge(sample.name, family.documentation, tuple(sample.labels)).set(
                    sample.value, tags=sample.labels
                )

    def _gauge(self, name: str, about: str, labels: tuple[str, ...]) -> Gauge:
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, description=about, tag_keys=labels)
        return self._gauges[name]
