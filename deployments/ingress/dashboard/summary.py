"""What the page shows, in one answer: the page asks again every second or two."""

import asyncio
import math
import time
from dataclasses import dataclass
from typing import Any

from adapter_store.batches.ledger import Ledger
from adapter_store.routing_log import RoutingLog
from adapter_store.telemetry import STEPS, TelemetryStore
from cluster.adapters import Viewer
from cluster.batches import Batch
from cluster.decisions import RoutedRequest
from cluster.errors import InvalidRequest, ModelNotFound, StoreUnavailable
from cluster.members import ClusterSnapshot, Replica
from cluster.plans import Happening
from cluster.tasks import soon
from deployments.ingress import views
from deployments.ingress.dashboard.history import History, Point
from deployments.ingress.directory import Directory
from deployments.ingress.overview import Overview, Sight
from deployments.process.telemetry import Telemetry

_DECISIONS, _EVENTS, _RUNNERS_UP = 50, 150, 3
_PERIOD_S = 0.8


@dataclass(frozen=True)
class _Look:
    """All that the page shows, as it was at one moment, for nobody's eyes in particular."""

    at: float
    sight: Sight
    points: list[Point]
    traffic: dict[str, Point]
    happenings: list[Happening]
    decisions: list[RoutedRequest]
    batches: list[Batch]


class Dashboard:
    """Reads what the overview, the history, the journal and the log of decisions know.

    However many look, each second is read once; what one may not see is taken out for each. While
    the store does not answer, what was last read is shown.
    """

    def __init__(
        self,
        directory: Directory,
        overview: Overview,
        telemetry: Telemetry,
        store: TelemetryStore,
        log: RoutingLog,
        ledger: Ledger,
    ) -> None:
        self._directory = directory
        self._overview = overview
        self._telemetry = telemetry
        self._store = store
        self._history = History(store)
        self._log = log
        self._ledger = ledger
        self._last = _Look(0.0, Sight((), None, ()), [], {}, [], [], [])
        self._tried_at = -math.inf
        self._is_stale = False
        self._looking = asyncio.Lock()

    async def page(self, viewer: Viewer, *, adapters_at: str, history_at: float) -> dict[str, Any]:
        """Everything that may have changed.

        Args:
            adapters_at: the position that the page has the adapters of; they come when it is old.
            history_at: the newest point that the page has, Unix time.
        """
        async with self._looking:
            if time.monotonic() - self._tried_at >= _PERIOD_S:
                await self._look()
                self._tried_at = time.monotonic()
        last = self._last
        cluster = self._overview.seen_by(viewer, last.sight, is_stale=self._is_stale)
        missing = self._overview.missing(last.sight.members) if cluster.store == "ok" else []
        # The newest bucket grows still: it comes again until it has settled.
        after = history_at - 4 * STEPS[0].width_s
        return {
            "at": time.time(),
            "as_of": last.at,
            "may_change": viewer.sees_all,
            "is_open": self._overview.is_open,
            "health": health(cluster, missing),
            "cluster": views.cluster(cluster),
            "adapters": None if adapters_at == cluster.position else self._directory.rows(viewer),
            "history": [point for point in last.points if point["at"] > after],
            "traffic": {
                n: t for n, t in last.traffic.items() if not n or self._directory.counts(n, viewer)
            },
            "events": [
                h.model_dump(mode="json") for h in last.happenings if self._tells(h, viewer)
            ],
            "decisions": [
                brief(d) for d in last.decisions if viewer.sees_all or d.owner == viewer.owner
            ],
            "batches": [
                how_far(b)
                for b in last.batches
                if viewer.sees_all or b.order.viewer.owner == viewer.owner
            ],
        }

    async def history(self, viewer: Viewer, width_s: int, adapter: str | None) -> list[Point]:
        """The curves of the last hour or day, of one adapter, of the base models ("") or of all."""
        step = next((step for step in STEPS if step.width_s == width_s), None)
        if step is None:
            known = " or ".join(str(step.width_s) for step in STEPS)
            raise InvalidRequest(f"step must be {known} (seconds)", param="step")
        if adapter is not None and not step.has_adapters:
            raise InvalidRequest(
                f"single adapters are told apart for the last hour: step {STEPS[0].width_s}",
                param="step",
            )
        if adapter and not self._directory.shows(adapter, viewer):
            raise ModelNotFound(adapter, param="adapter")
        began = self._directory.began(adapter) if adapter and not viewer.sees_all else 0.0
        return await soon(self._history.points(step, after=began, adapter=adapter))

    async def metrics(self) -> str:
        """All processes' metrics in Prometheus's text format."""
        return await self._telemetry.cluster_exposition()

    async def _look(self) -> None:
        try:
            sight = await self._overview.look()
            self._last = await soon(self._look_further(sight))
            self._is_stale = False
        except StoreUnavailable:
            self._is_stale = True

    async def _look_further(self, sight: Sight) -> _Look:
        return _Look(
            time.time(),
            sight,
            await self._history.points(STEPS[0], after=0),
            await self._history.traffic(),
            await self._store.journal(_EVENTS),
            await self._log.newest(_DECISIONS),
            await self._ledger.newest(),
        )

    def _tells(self, happening: Happening, viewer: Viewer) -> bool:
        """Whether a caller may know of it: now, and when it happened, for a name may have been
        another adapter's."""
        if viewer.sees_all:
            return True
        is_for = happening.owner in ("", viewer.owner)
        return is_for and self._directory.shows(happening.subject, viewer)


def health(cluster: ClusterSnapshot, missing: list[str]) -> dict[str, Any]:
    """In one line: ok, or degraded and why."""
    reasons = []
    if cluster.store != "ok":
        reasons.append("the adapter store does not answer: what is loaded is served, nothing moves")
    reasons += [f"missing: {what}" for what in missing]
    if not cluster.deployments:
        reasons.append("Ray Serve's controller does not say what runs")
    for deployment in cluster.deployments:
        if deployment.status != "HEALTHY":
            why = f": {deployment.reason}" if deployment.reason else ""
            reasons.append(f"{deployment.name} is {deployment.status.lower()}{why}")
    replicas = [member for member in cluster.members if isinstance(member, Replica)]
    failed = {key for replica in replicas for key in replica.problems}
    if failed:
        reasons.append(f"cannot be loaded: {', '.join(sorted(failed)[:5])}")
    return {"state": "degraded" if reasons else "ok", "reasons": reasons}


def how_far(batch: Batch) -> dict[str, Any]:
    """A batch as a line of a list; `GET /v1/batches/{id}` has the whole."""
    return {
        "id": batch.order.id,
        "at": batch.order.created_at,
        "owner": batch.order.viewer.owner,
        "status": batch.status.value,
        "counts": batch.progress.request_counts.model_dump(),
    }


def brief(request: RoutedRequest) -> dict[str, Any]:
    """A decision as a line of a list; `GET /v1/decisions/{id}` has the whole."""
    decision = request.decision
    others = [c for c in decision.candidates if c.adapter != decision.adapter]
    return {
        "id": request.request_id,
        "at": request.at,
        "owner": request.owner,
        "input": request.input,
        "answered_by": request.answered_by,
        "adapter": decision.adapter,
        "confidence": decision.confidence,
        "route": decision.route.value,
        "reason": decision.reason,
        "runners_up": [
            {"name": c.adapter or c.model, "score": c.score} for c in others[:_RUNNERS_UP]
        ],
    }
