"""What Ray is asked to reserve for a replica, and what vLLM is told of it."""

from typing import Any

import pytest
from pydantic import ValidationError
from ray.serve.deployment import deployment_to_schema

from cluster.errors import ConfigError
from cluster.settings import BaseModelSettings, Settings
from deployments.replica.deployment import replica_app


def options(**fields) -> dict[str, Any]:
    """In the words of Ray Serve's configuration."""
    model = BaseModelSettings(id="big", path="none", **fields)
    bound = replica_app(Settings(models=(model,)), model)
    deployment = bound._bound_deployment  # noqa: SLF001  (Ray shows it nowhere else)
    return deployment_to_schema(deployment).model_dump(exclude_unset=True)


@pytest.mark.ray
def test_without_gpus_the_workers_are_children_of_one_actor():
    told = options(tensor_parallel_size=2, cpus_per_replica=3)
    assert told["ray_actor_options"]["num_cpus"] == 3
    assert "placement_group_bundles" not in told


@pytest.mark.ray
def test_gpu_workers_have_a_bundle_each_on_one_node():
    told = options(tensor_parallel_size=4, gpus_per_worker=1, cpus_per_replica=2)
    assert told["placement_group_bundles"] == [
        {"GPU": 1, "CPU": 2},
        {"GPU": 1},
        {"GPU": 1},
        {"GPU": 1},
    ]
    assert told["placement_group_strategy"] == "STRICT_PACK"
    assert "num_gpus" not in told["ray_actor_options"], "vLLM's worker takes the first bundle's GPU"


@pytest.mark.ray
def test_fractions_of_gpus():
    told = options(tensor_parallel_size=2, gpus_per_worker=0.5)
    assert told["placement_group_bundles"] == [{"GPU": 0.5, "CPU": 1}, {"GPU": 0.5}]
    env = told["ray_actor_options"]["runtime_env"]["env_vars"]
    assert env["VLLM_RAY_PER_WORKER_GPUS"] == "0.5"


@pytest.mark.vllm
def test_engine_arguments():
    from deployments.engines.vllm_engine import engine_args

    model = BaseModelSettings(
        id="big",
        path="none",
        tensor_parallel_size=2,
        gpus_per_worker=1,
        lora={"slots": 3, "host_entries": 9, "max_rank": 16, "fully_sharded": True},
        engine_args={"max_model_len": 100},
    )
    args = engine_args(model)
    assert args.distributed_executor_backend == "ray"
    assert args.tensor_parallel_size == 2
    assert (args.max_loras, args.max_cpu_loras, args.max_lora_rank) == (3, 9, 16)
    assert args.fully_sharded_loras
    assert args.max_model_len == 100
    on_cpu = engine_args(model.model_copy(update={"gpus_per_worker": 0}))
    assert on_cpu.distributed_executor_backend == "mp"


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"engine_args": {"max_modle_len": 1}}, r"engine_args\.max_modle_len.*'max_model_len'"),
        ({"engine_args": {"max_loras": 1}}, r"engine_args\.max_loras.*lora\.slots"),
        ({"server_args": {"tool_cal_parser": "x"}}, r"server_args.*'tool_call_parser'"),
    ],
)
def test_wrong_names_are_told_with_the_right_ones(fields, said):
    from deployments.engines.vllm_engine import engine_args

    with pytest.raises(ConfigError, match=said):
        engine_args(BaseModelSettings(id="big", path="none", **fields))


# What reaches vLLM's application, and has an effect there.
SERVER_ARGS = {
    *("chat_template", "chat_template_content_format", "trust_request_chat_template"),
    *("trust_request_mm_kwargs", "default_chat_template_kwargs", "response_role"),
    *("return_tokens_as_token_ids", "enable_auto_tool_choice", "tool_call_parser"),
    *("exclude_tools_when_tool_choice_none", "tool_parser_plugin", "tool_strict_level"),
    *("tool_server", "max_log_len", "enable_prompt_tokens_details", "enable_log_outputs"),
    *("enable_per_request_metrics", "enable_force_include_usage", "sse_keep_alive_interval"),
    *("enable_log_deltas", "cohere_is_reasoning_model", "cohere_format", "log_error_stack"),
    *("anthropic_disabled_thinking_effort", "fingerprint_mode", "fingerprint_value"),
    "enable_flash_late_interaction",
}


@pytest.mark.vllm
def test_each_of_vllms_server_arguments_is_taken_or_refused_with_what_does_instead():
    import dataclasses

    from vllm.entrypoints.launchers.cli_args import FrontendArgs

    names = {field.name for field in dataclasses.fields(FrontendArgs)}
    taken = set()
    for name in names:
        try:
            BaseModelSettings(id="big", path="none", server_args={name: "x"})
            taken.add(name)
        except ValidationError as e:
            assert f"{name}: has no effect behind the endpoint; " in str(e)
    assert taken == SERVER_ARGS
