"""What Ray Serve is told about where and how many: options of our deployments."""

from typing import Any

from cluster.settings import BaseModelSettings
from deployments.vllm_plugin import IN_REPLICA

# Of every process of Ray; the chart has the same.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray would run its workers at the lowest priority; here they are what serves.
    "RAY_worker_niceness": "0",
    # Calls between deployments go straight from process to process, by the caller's own event loop:
    # a third less time for a request that costs the engine nothing.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}
# Each request has its line in our own log.
SERVE_LOGGING = {"log_level": "WARNING", "enable_access_log": False}

# A replica that its clients have left for so long is stopped.
_SHRINK_AFTER_S = 300.0
# Loading a model takes longer than most rushes; those that last so long are no rush.
_GROW_AFTER_S = 15.0


def on_nodes(labels: dict[str, str]) -> dict[str, Any]:
    """Actor options that keep it to nodes with these labels."""
    return {"label_selector": labels} if labels else {}


def replicas_of(model: BaseModelSettings) -> dict[str, Any]:
    """How many replicas: a number, or what lets Serve choose it by how full they are."""
    if model.max_replicas is None:
        return {"num_replicas": model.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": model.replicas,
            "initial_replicas": model.replicas,
            "max_replicas": model.max_replicas,
            "target_ongoing_requests": model.scale_at * model.max_ongoing,
            "upscale_delay_s": _GROW_AFTER_S,
            "downscale_delay_s": _SHRINK_AFTER_S,
        }
    }


def resources_of(model: BaseModelSettings) -> dict[str, Any]:
    """What Ray reserves for a replica, and where.

    Without GPUs, vLLM's workers are child processes of the replica's actor. With GPUs they are
    actors, each in a bundle of one placement group on one node; the replica's own actor, which
    needs no GPU, is in the first bundle. vLLM finds the group by itself, as the one it is in.
    """
    env = dict(model.env) | {IN_REPLICA: "1"}
    actor = {"num_cpus": model.cpus_per_replica, "runtime_env": {"env_vars": env}}
    if not model.gpus_per_worker:
        return {"ray_actor_options": actor | on_nodes(model.node_labels)}
    env["VLLM_RAY_PER_WORKER_GPUS"] = str(model.gpus_per_worker)
    worker = {"GPU": model.gpus_per_worker}
    first = worker | {"CPU": model.cpus_per_replica}
    group = {
        "ray_actor_options": actor,
        "placement_group_bundles": [first] + [worker] * (model.tensor_parallel_size - 1),
        "placement_group_strategy": "STRICT_PACK",
    }
    if model.node_labels:
        group["placement_group_bundle_label_selector"] = [model.node_labels]
    return group
