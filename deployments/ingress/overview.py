"""The whole cluster at one moment: who is there, what is planned, what is missing."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

from adapter_store.members import Members
from adapter_store.plans import Plans
from cluster.adapters import Viewer
from cluster.errors import StoreUnavailable
from cluster.members import ClusterSnapshot, DeploymentState, Replica, Report, Router
from cluster.plans import PlacementPlan
from cluster.preload import Preload
from cluster.settings import Settings
from cluster.tasks import soon
from deployments.ingress.directory import Directory

# Probes give up after a second.
_PROBE_S = 0.7


@dataclass(frozen=True)
class Sight:
    """The cluster as it was at one moment."""

    members: tuple[Report, ...]
    plan: PlacementPlan | None
    deployments: tuple[DeploymentState, ...]


class Overview:
    """Looks at the cluster, and says what of it a caller may see.

    Args:
        deployments: what Ray Serve says that runs.
        unwell: what of Ray itself does not answer, in words.

    Attributes:
        is_open: whether whoever reaches this machine may do anything.
    """

    def __init__(
        self,
        settings: Settings,
        members: Members,
        plans: Plans,
        directory: Directory,
        deployments: Callable[[], Awaitable[tuple[DeploymentState, ...]]],
        unwell: Callable[[], list[str]],
    ) -> None:
        self._settings = settings
        self.is_open = settings.is_open
        self._members = members
        self._plans = plans
        self._directory = directory
        self._deployments = deployments
        self._unwell = unwell
        self._was_whole = False
        self._preload = Preload(of=len(settings.preload), is_in_place=not settings.preload)
        self._wanting = ["the adapter store's first answer"]

    async def look(self) -> Sight:
        """Who is there and what is planned, for nobody's eyes in particular.

        Raises:
            StoreUnavailable: the store does not answer, or not soon.
        """
        known, deployments = await asyncio.gather(self._known(), self._deployments())
        if isinstance(known, StoreUnavailable):
            raise known
        return Sight(*known, deployments)

    async def snapshot(self, viewer: Viewer) -> ClusterSnapshot:
        """What runs, without other tenants' private adapters."""
        known, deployments = await asyncio.gather(self._known(), self._deployments())
        if isinstance(known, StoreUnavailable):
            return self.seen_by(viewer, Sight((), None, deployments), is_stale=True)
        return self.seen_by(viewer, Sight(*known, deployments))

    async def _known(self) -> tuple[tuple[Report, ...], PlacementPlan] | StoreUnavailable:
        """What the store knows, or why it does not say."""
        try:
            return await soon(self._members_and_plan())
        except StoreUnavailable as e:
            return e

    async def _members_and_plan(self) -> tuple[tuple[Report, ...], PlacementPlan]:
        return tuple(await self._members.all()), await self._plans.newest()

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
        """What is still missing before every request can be served; empty when ready.

        A load balancer goes by it. So when all has been there once, only what no request can be
        served without counts: of each base model one replica.
        """
        unwell = self._unwell()
        # Without the store it is as it was: degraded, which /v1/cluster says, but served.
        with contextlib.suppress(StoreUnavailable):
            members = await soon(self._look_for_what_is_missing(), within_s=_PROBE_S)
            missing = self.missing(members)
            if self._preload.waiting:
                missing.append(self._preload.waiting)
            self._was_whole = self._was_whole or not missing
            self._wanting = self._without_any(members) if self._was_whole else missing
        return unwell + self._wanting

    @property
    def not_preloaded(self) -> Mapping[str, str]:
        """Folders of `preload` whose adapters are not there, and why."""
        return self._preload.failed

    async def _look_for_what_is_missing(self) -> list[Report]:
        if not self._preload.is_in_place:
            self._preload = await self._members.preload() or self._preload
        return await self._members.all()

    def _without_any(self, members: Iterable[Report]) -> list[str]:
        there = {member.model for member in members if isinstance(member, Replica)}
        return [f"a replica of {m.id}" for m in self._settings.models if m.id not in there]

    def missing(self, members: Iterable[Report]) -> list[str]:
        """What the settings want and does not report."""
        counts = {m.id: 0 for m in self._settings.models}
        routers = 0
        for member in members:
            if isinstance(member, Replica) and member.model in counts:
                counts[member.model] += 1
            routers += isinstance(member, Router)
        missing = [
            f"{m.replicas - counts[m.id]} of {m.replicas} replicas of {m.id}"
            for m in self._settings.models
            if counts[m.id] < m.replicas
        ]
        return missing if routers else [*missing, "the prompt router"]

    def _seen_by(self, viewer: Viewer, member: Report) -> Report:
        return member if viewer.sees_all else member.seen_by(self._directory.eyes(viewer))
