"""The peer: Ray Serve LLM with multiplexed adapters, on the same engine. A process of its own.

`python -m benchmarks.ray_serve_llm CONFIG.json` serves until it is terminated; it prints "ready".
"""

import argparse
import json
import os
import signal
import threading
from pathlib import Path

# In the environment of the engines: the file that `counted_loads` counts in.
COUNT_IN = "ROUNDHOUSE_BENCH_LOADS"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    config = json.loads(parser.parse_args().config.read_text())
    # The engine as our own replicas have it (examples/roundhouse.yaml); Ray Serve over gRPC, too.
    os.environ.update(config["env"])
    os.environ["RAY_SERVE_USE_GRPC_BY_DEFAULT"] = "1"
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  (that is its name)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray import serve
    from ray.serve.llm import LLMConfig, build_openai_app

    ray.init(
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=256 * 2**20,
        _temp_dir=config["temp_dir"],
    )
    serve.start(http_options={"host": "127.0.0.1", "port": config["port"]})
    llm = LLMConfig(
        model_loading_config={"model_id": config["model"], "model_source": config["path"]},
        accelerator_config={"kind": "cpu"},
        engine_kwargs=config["engine_args"]
        | {
            "enable_lora": True,
            "max_loras": config["slots"],
            "max_cpu_loras": config["host_entries"],
            "max_lora_rank": config["max_rank"],
            "worker_extension_cls": "benchmarks.counted_loads.CountedLoads",
        },
        lora_config={
            "dynamic_lora_loading_path": config["adapters"],
            "max_num_adapters_per_replica": config["host_entries"],
        },
        deployment_config={
            "num_replicas": config["replicas"],
            "max_ongoing_requests": config["max_ongoing"],
            "ray_actor_options": {"num_cpus": 0.1},
        },
        placement_group_config={"bundles": [{"CPU": 0.4}]},
        runtime_env={"env_vars": config["env"]},
        experimental_configs=config.get("experimental", {}),
    )
    app = {"llm_configs": [llm]}
    if "ingresses" in config:
        app["ingress_deployment_config"] = {
            "autoscaling_config": None,
            "num_replicas": config["ingresses"],
            "ray_actor_options": {"num_cpus": 0.1},
        }
    serve.run(build_openai_app(app))
    print("ready", flush=True)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
