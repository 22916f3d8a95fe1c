"""A model replica: a model server as an actor of Ray Serve."""

import contextlib
import logging
import os
from collections.abc import AsyncIterator
from typing import Any

import ray
from ray import serve
from ray.serve.config import RequestRouterConfig

from cluster.settings import BaseModelSettings, Settings
from deployments.process.call import Call
from deployments.process.logs import about, about_trace, configure
from deployments.process.loopback import listen_where_ray_does
from deployments.process.process import Process
from deployments.process.ray_metrics import RayExport
from deployments.process.ray_options import replicas_of, resources_of
from deployments.process.request_router import AssignedReplicaRouter
from deployments.process.tracing import trace_id_of
from deployments.process.wire import Part, packed
from deployments.replica.model_server import ModelServer

logger = logging.getLogger(__name__)

# Serve replaces a replica that fails three checks in a row.
_HEALTH_PERIOD_S = 2.0


class ModelReplica:
    """One replica."""

    # Ray Serve awaits it.
    async def __init__(self, settings: Settings, model_id: str) -> None:  # type: ignore[misc]
        replica_id = serve.get_replica_context().replica_id.unique_id
        node = ray.util.get_node_ip_address()
        configure(settings.logging, replica_id)
        listen_where_ray_does()
        process = Process(settings.store, replica_id, RayExport())
        self._server = ModelServer(settings, model_id, process, node)
        await self._server.start()

    async def answer(self, call: Call) -> AsyncIterator[Part]:
        """Stream the engine's answer."""
        about(call.request_id, call.key or "")
        about_trace(trace_id_of(call.trace))
        await self._end_if_dead()
        async with contextlib.aclosing(packed(self._server.answer(call))) as parts:
            async for part in parts:
                yield part

    async def _end_if_dead(self) -> None:
        """A replica whose engine has died ends at once: the ingress then asks another one, which
        it cannot know to do from an error that the engine's own HTTP layer makes of it."""
        try:
            await self._server.engine.check_health()
        except Exception:
            logger.exception("the engine is dead; so is this replica")
            os._exit(1)

    async def check_health(self) -> None:
        await self._server.check_health()

    async def __del__(self) -> None:
        await self._server.stop()


def replica_app(settings: Settings, model: BaseModelSettings) -> Any:
    """The deployment of one base model, bound."""
    return (
        serve.deployment(ModelReplica)
        .options(
            name=f"Model-{model.id}",
            max_ongoing_requests=model.max_ongoing,
            max_queued_requests=model.max_queued,
            health_check_period_s=_HEALTH_PERIOD_S,
            health_check_timeout_s=60,
            graceful_shutdown_timeout_s=20,
            **_dispatch(settings),
            **replicas_of(model),
            **resources_of(model),
        )
        .bind(settings, model.id)
    )


def _dispatch(settings: Settings) -> dict[str, Any]:
    """Who picks the replica: our admission, or Ray Serve alone."""
    if settings.dispatch.policy == "serve":
        return {}
    path = f"{AssignedReplicaRouter.__module__}.{AssignedReplicaRouter.__qualname__}"
    return {"request_router_config": RequestRouterConfig(request_router_class=path)}
