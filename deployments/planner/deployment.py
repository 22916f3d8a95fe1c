"""The planner as a deployment of Ray Serve."""

from typing import Any

from ray import serve

from cluster.settings import Settings
from deployments.planner.planner import Planner
from deployments.process.logs import configure
from deployments.process.loopback import listen_where_ray_does
from deployments.process.process import Process
from deployments.process.ray_metrics import RayExport
from deployments.process.ray_options import on_nodes


class PlannerDeployment:
    """The planner as an actor of Ray Serve."""

    # Ray Serve awaits it.
    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]
        who = serve.get_replica_context().replica_id.unique_id
        configure(settings.logging, who)
        listen_where_ray_does()
        self._process = Process(settings.store, who, RayExport())
        self._process.add(Planner(settings, self._process))
        await self._process.start()

    async def check_health(self) -> None:
        self._process.check()

    async def __del__(self) -> None:
        await self._process.stop()


def planner_app(settings: Settings) -> Any:
    """The deployment, bound."""
    return (
        serve.deployment(PlannerDeployment)
        .options(
            name="Planner",
            ray_actor_options={"num_cpus": 0} | on_nodes(settings.http.node_labels),
        )
        .bind(settings)
    )
