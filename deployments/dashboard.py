"""What the page shows, in one answer: the page asks again every second or two."""

import contextlib
import time
from typing import Any

from adapter_store.routing_log import RoutingLog
from adapter_store.telemetry import STEPS
from cluster.errors import InvalidRequest, StoreUnavailable
from cluster.state import ClusterSnapshot, Happening, RoutedRequest, Viewer
from deployments.gateway import Gateway
from deployments.history import History, Point
from deployments.telemetry import Telemetry

_DECISIONS, _EVENTS, _RUNNERS_UP = 50, 150, 3


class Dashboard:
    """Reads what the gateway, the history, the journal and the log of decisions know."""

    def __init__(self, gateway: Gateway, telemetry: Telemetry, log: RoutingLog) -> None:
        self._gateway = gateway
        self._telemetry = telemetry
        self._history = History(telemetry.store)
        self._log = log

    async def page(self, viewer: Viewer, *, adapters_at: str, history_at: float) -> dict[str, Any]:
        """Everything that may have changed.

        Args:
            adapters_at: the position that the page has the adapters of; they come when it is old.
            history_at: the newest point that the page has, Unix time.
        """
        cluster = await self._gateway.snapshot(viewer)
        # A store that does not answer would be waited for again and again.
        is_there = cluster.store == "ok"
        missing = await self._gateway.not_ready() if is_there else []
        page = {
            "at": time.time(),
            "may_change": viewer.sees_all,
            "health": health(cluster, missing),
            "cluster": cluster.model_dump(mode="json"),
            "adapters": None,
            "history": [],
            "traffic": {},
            "decisions": [],
            "events": [],
        }
        if adapters_at != cluster.position:
            page["adapters"] = self._gateway.rows(viewer)
        if is_there:
            with contextlib.suppress(StoreUnavailable):  # the next answer says so
                page |= await self._kept(viewer, history_at)
        return page

    async def history(self, viewer: Viewer, width_s: int, adapter: str | None) -> list[Point]:
        """The curves of the last hour or day, of one adapter or of all."""
        step = next((step for step in STEPS if step.width_s == width_s), None)
        if step is None:
            known = " or ".join(str(step.width_s) for step in STEPS)
            raise InvalidRequest(f"step must be {known} (seconds)", param="step")
        if adapter:
            if not step.has_adapters:
                raise InvalidRequest(
                    f"single adapters are told apart for the last hour: step {STEPS[0].width_s}",
                    param="step",
                )
            self._gateway.show_adapter(adapter, viewer)
        return await self._history.points(step, after=0, adapter=adapter)

    async def metrics(self) -> str:
        """All processes' metrics in Prometheus's text format."""
        return await self._telemetry.cluster_exposition()

    async def _kept(self, viewer: Viewer, history_at: float) -> dict[str, Any]:
        traffic = await self._history.traffic()
        happenings = await self._telemetry.store.journal(_EVENTS)
        decisions = await self._log.newest(_DECISIONS)
        # The newest bucket grows still: it comes again until it has settled.
        points = await self._history.points(STEPS[0], history_at - 4 * STEPS[0].width_s)
        return {
            "history": points,
            "traffic": {n: t for n, t in traffic.items() if not n or self._shows(n, viewer)},
            "events": [h.model_dump(mode="json") for h in happenings if self._may_see(h, viewer)],
            "decisions": [
                brief(d) for d in decisions if viewer.sees_all or d.owner == viewer.owner
            ],
        }

    def _may_see(self, happening: Happening, viewer: Viewer) -> bool:
        return viewer.sees_all or self._shows(happening.subject, viewer)

    def _shows(self, name: str, viewer: Viewer) -> bool:
        return viewer.sees_all or self._gateway.shows(name, viewer)


def health(cluster: ClusterSnapshot, missing: list[str]) -> dict[str, Any]:
    """In one line: ok, or degraded and why."""
    reasons = []
    if cluster.store != "ok":
        reasons.append("the adapter store does not answer: what is loaded is served, nothing moves")
    reasons += [f"missing: {what}" for what in missing]
    for deployment in cluster.deployments:
        if deployment.status != "HEALTHY":
            why = f": {deployment.reason}" if deployment.reason else ""
            reasons.append(f"{deployment.name} is {deployment.status.lower()}{why}")
    failed = {key for member in cluster.members for key in member.problems}
    if failed:
        reasons.append(f"cannot be loaded: {', '.join(sorted(failed)[:5])}")
    return {"state": "degraded" if reasons else "ok", "reasons": reasons}


def brief(request: RoutedRequest) -> dict[str, Any]:
    """A decision as a line of a list; `GET /v1/decisions/{id}` has the whole."""
    decision = request.decision
    others = [c for c in decision.candidates if c.adapter != decision.adapter]
    return {
        "id": request.request_id,
        "at": request.at,
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
