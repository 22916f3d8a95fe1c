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
from deployments.call import Call
from deployments.engine import ResponseStart
from deployments.logs import configure
from deployments.model_server import ModelServer
from deployments.ray_metrics import RayExport
from deployments.request_router import AssignedReplicaRouter
from deployments.vllm_plugin import IN_REPLICA

logger = logging.getLogger(__name__)

# Serve replaces a replica that fails three checks in a row.
_HEALTH_PERIOD_S = 2.0


class ModelReplica:
    """One replica."""

    async def __init__(self, settings: Settings, model_id: str) -> None:
        replica_id = serve.get_replica_context().replica_id.unique_id
        node = ray.util.get_node_ip_address()
        configure(settings.logging, replica_id)
        self._server = ModelServer(settings, model_id, replica_id, node, RayExport())
        await self._server.start()

    async def answer(self, call: Call) -> AsyncIterator[ResponseStart | bytes]:
        """Stream the engine's answer."""
        await self._end_if_dead()
        answer = self._server.answer(call)
        async with contextlib.aclosing(answer):
            async for item in answer:
                yield item

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
            num_replicas=model.replicas,
            max_ongoing_requests=model.max_ongoing,
            max_queued_requests=model.max_queued,
            health_check_period_s=_HEALTH_PERIOD_S,
            health_check_timeout_s=60,
            graceful_shutdown_timeout_s=20,
            **_dispatch(settings),
            **_resources(model),
        )
        .bind(settings, model.id)
    )


def _dispatch(settings: Settings) -> dict[str, Any]:
    """Who picks the replica: our admission, or Ray Serve alone."""
    if settings.dispatch.policy == "serve":
        return {}
    path = f"{AssignedReplicaRouter.__module__}.{AssignedReplicaRouter.__qualname__}"
    return {"request_router_config": RequestRouterConfig(request_router_class=path)}


def _resources(model: BaseModelSettings) -> dict[str, Any]:
    """What Ray reserves for a replica.

    Without GPUs, vLLM's workers are child processes of the replica's actor. With GPUs they are
    actors, each in a bundle of one placement group on one node; the replica's own actor, which
    needs no GPU, is in the first bundle. vLLM finds the group by itself, as the one it is in.
    """
    env = dict(model.env) | {IN_REPLICA: "1"}
    actor = {"num_cpus": model.cpus_per_replica, "runtime_env": {"env_vars": env}}
    if not model.gpus_per_worker:
        return {"ray_actor_options": actor}
    env["VLLM_RAY_PER_WORKER_GPUS"] = str(model.gpus_per_worker)
    worker = {"GPU": model.gpus_per_worker}
    first = worker | {"CPU": model.cpus_per_replica}
    return {
        "ray_actor_options": actor,
        "placement_group_bundles": [first] + [worker] * (model.tensor_parallel_size - 1),
        "placement_group_strategy": "STRICT_PACK",
    }
