"""What Ray Serve is told about where and how many: options of our deployments."""

from pathlib import Path
from typing import Any

from cluster.addresses import free_ports
from cluster.errors import ConfigError
from cluster.settings import BaseModelSettings

# In the environment of our replicas' processes.
IN_REPLICA = "ROUNDHOUSE_REPLICA"
# Of every process of Ray; the chart has the same.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray would run its workers at the lowest priority; here they are what serves.
    "RAY_worker_niceness": "0",
    # Calls between deployments go straight from process to process, by the caller's own event loop:
    # a third less time for a request that costs the engine nothing.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    # HAProxy before the ingresses instead of Serve's own proxy, which is in Python.
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # It hears of an ingress that goes at once, and asks another one where it is refused.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    # When ingresses come or go, a new HAProxy takes over; the old one ends its streams first.
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "3600",
    # Before Serve reads the headers of a request.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.ingress.edge.legible.before_serve",
    # A call is a message, and has the request's body in it, in JSON's longest spelling.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(256 * 2**20),
}

# Where the endpoint is for this machine alone. By the first, whose name says where it is Ray's
# default, a node's address is the loopback's, and its servers listen there. The others are of vLLM
# and of torch.
ON_LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
}

# HAProxy binds another name first, ten characters longer than this one; 107 is the system's limit.
_LONGEST_SOCKET = 97
# Serve gives each node a folder in it.
_NODE_ID = 56


def ray_folder(folder: Path) -> Path:
    """Where Ray keeps its files of a run; Ray opens it to all, so it lies in one that is closed."""
    return folder / "r"


def beside_others(folder: Path) -> dict[str, str]:
    """Environment of a proxy on a machine that may have others: its own ports for what is not the
    endpoint, and its files in a folder that goes with the cluster and is closed to other users, for
    who writes to its socket commands it.

    Two clusters that shared the port of Serve's fallback proxy would answer each other's requests.

    Raises:
        ConfigError: the path of the folder is too long for a socket's.
    """
    own = folder / "h"
    too_long = len(f"{own}/{'n' * _NODE_ID}/admin.sock") - _LONGEST_SOCKET
    if too_long > 0:
        raise ConfigError(
            f"{folder}: {too_long} characters too long for the path of HAProxy's socket in it; "
            "set the environment variable TMPDIR to a shorter folder"
        )
    own.mkdir(mode=0o700, parents=True)
    names = {
        "CONFIG_FILE_LOC": "haproxy.cfg",
        "SOCKET_PATH": "admin.sock",
        "METRICS_SOCKET_PATH": "metrics.sock",
        "SERVER_STATE_BASE": "",
        "SERVER_STATE_FILE": "state",
    }
    files = {f"RAY_SERVE_HAPROXY_{k}": str(own / v) for k, v in names.items()}
    ports = ("HAPROXY_STATS_PORT", "HAPROXY_METRICS_PORT", "FALLBACK_PROXY_HTTP_PORT")
    free = free_ports(len(ports))
    return files | {f"RAY_SERVE_{k}": str(p) for k, p in zip(ports, free, strict=True)}


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
    # Where a picture's URL may lead is checked once, not at every hop.
    no_hops = {"VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0"}
    env = no_hops | model.env | {IN_REPLICA: "1"}
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
