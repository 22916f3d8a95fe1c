"""The whole cluster at one moment: who is there, what is planned, what is missing."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from adapter_store.members import Members
from adapter_store.plans import Plans
from cluster.adapters import Viewer
from cluster.errors import StoreUnavailable
from cluster.members import ClusterSnapshot, DeploymentState, Member, RouterReport
from cluster.plans import PlacementPlan
from cluster.settings import Settings
from cluster.tasks import soon
from deployments.ingress.directory import Directory


@dataclass(frozen=True)
class Sight:
    """The cluster as it was at one moment."""

    members: tuple[Member, ...]
    plan: PlacementPlan | None
    deployments: tuple[DeploymentState, ...]


class Overview:
    """Looks at the cluster, and says what of it a caller may see.

    Args:
        deployments: what Ray Serve says that runs.
    """

    def __init__(
        self,
        settings: Settings,
        members: Members,
        plans: Plans,
        directory: Directory,
        deployments: Callable[[], Awaitable[tuple[DeploymentState, ...]]],
    ) -> None:
        self._settings = settings
        self._members = members
        self._plans = plans
        self._directory = directory
        self._deployments = deployments

    async def look(self) -> Sight:
        """Who is there and what is planned, for nobody's eyes in particular.

        Raises:
            StoreUnavailable: the store does not answer, or not soon.
        """
        members, plan = await soon(self._members_and_plan())
        return Sight(tuple(members), plan, await self._deployments())

    async def _members_and_plan(self) -> tuple[list[Member], PlacementPlan]:
        return await self._members.all(), await self._plans.newest()

    async def snapshot(self, viewer: Viewer) -> ClusterSnapshot:
        """What runs, without other tenants' private adapters."""
        try:
            return self.seen_by(viewer, await self.look())
        except StoreUnavailable:
            sight = Sight((), None, await self._deployments())
            return self.seen_by(viewer, sight, is_stale=True)

    def seen_by(self, viewer: Viewer, sight: Sight, *, is_stale: bool = False) -> ClusterSnapshot:
        """What was seen, as far as a caller may know of it."""
        return ClusterSnapshot(
            models=self._directory.base_models,
            adapters=len(self._directory.visible(viewer)),
            members=tuple(self._seen_by(viewer, member) for member in sight.members),
            deployments=sight.deployments,
            store="stale" if is_stale or self._directory.is_stale else "ok",
            position=self._directory.position,
            plan=sight.plan if viewer.sees_all else None,
        )

    async def not_ready(self) -> list[str]:
        """What is still missing before every request can be served; empty when ready."""
        try:
            return self.missing(await self._members.all())
        except StoreUnavailable:
            return []  # degraded, and said so by /v1/cluster; what is loaded is served

    def missing(self, members: Iterable[Member]) -> list[str]:
        """What the settings want and does not report."""
        counts = {m.id: 0 for m in self._settings.models}
        routers = 0
        for member in members:
            if member.kind == "replica" and member.model in counts:
                counts[member.model] += 1
            routers += member.kind == "router"
        missing = [
            f"{m.replicas - counts[m.id]} of {m.replicas} replicas of {m.id}"
            for m in self._settings.models
            if counts[m.id] < m.replicas
        ]
        return missing if routers else [*missing, "the prompt router"]

    def _seen_by(self, viewer: Viewer, member: Member) -> Member:
        if viewer.sees_all:
            return member

        def may_see(key: str) -> bool:
            return self._directory.shows(key.partition("@")[0], viewer)

        held = member.residency
        seen = {
            "slots": tuple(filter(may_see, held.slots)),
            "host": tuple(filter(may_see, held.host)),
        }
        return member.model_copy(
            update={
                "residency": held.model_copy(update=seen),
                "loading": tuple(filter(may_see, member.loading)),
                "problems": {k: v for k, v in member.problems.items() if may_see(k)},
                "router": member.router and self._report_for(viewer, member.router),
                "running": tuple(filter(may_see, member.running)),
                "leaving": tuple(filter(may_see, member.leaving)),
                "demand": {k: v for k, v in member.demand.items() if may_see(k)},
                "times": {k: v for k, v in member.times.items() if may_see(k)},
                "waiting": {k: v for k, v in member.waiting.items() if may_see(k)},
                "tenants": {k: v for k, v in member.tenants.items() if k == viewer.owner},
            }
        )

    def _report_for(self, viewer: Viewer, report: RouterReport) -> RouterReport:
        hidden = self._directory.hidden(viewer)
        twins = tuple(t for t in report.twins if t.a not in hidden and t.b not in hidden)
        experts = tuple(name for name in report.experts if name not in hidden)
        return report.model_copy(update={"twins": twins, "experts": experts})
