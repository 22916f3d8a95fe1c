"""The vLLM plugin: our adapter managers in every replica, our multi-LoRA kernels on CPU.

On CPU it serves every engine of this environment, since vLLM's own kernels mix up tenants there; on
other platforms our replicas' alone, and no kernel.

vLLM calls :func:`register` in every engine process (entry point ``vllm.general_plugins``).
"""

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from deployments.process.ray_options import IN_REPLICA

WRAPPER = "deployments.engines.lora_cpu.GroupedLora"
MANAGER = "deployments.engines.vllm_lora.AdapterLoader"
SUPPORTED_VLLM = "0.32."

_APPLY = ["self", "y", "x", "lora_a_stacked", "lora_b_stacked", "scale"]
_MAPPING = ["self", "mapping", "lora_index_to_id", "max_loras", "vocab_size", "kwargs"]
_KERNELS = {
    "update_metadata": _MAPPING,
    "add_lora_linear": [*_APPLY, "output_slices", "buffer", "kwargs"],
    "add_shrink": ["self", "y", "x", "lora_a_stacked", "scale", "kwargs"],
    "add_expand": [
        *("self", "y", "x", "lora_b_stacked", "output_slices", "offset_start", "add_inputs"),
        "kwargs",
    ],
    "add_lora_embedding": ["self", "y", "x", "lora_b_stacked", "add_inputs", "kwargs"],
    "add_lora_logits": [*_APPLY, "buffer", "kwargs"],
}
_SLOTS = {
    "activate_adapter": ["self", "lora_id"],
    "add_adapter": ["self", "lora"],
    "list_adapters": ["self"],
}
_LOADER = {
    "_apply_adapters": ["self", "lora_requests"],
    "_load_adapter": ["self", "lora_request"],
    "add_adapter": ["self", "lora_request"],
}
_EXPERTS = {"select_unquantized_moe_backend": ["moe_config"]}
_RUNNER = {"_get_prompt_logprobs_dict": ["self", "hidden_states", "num_scheduled_tokens"]}


def register() -> None:
    """Put our classes in the place of vLLM's.

    Raises:
        RuntimeError: this vLLM does not look like the one that they were written for. The engine
            then refuses to start: stock CPU kernels answer base-model rows of a mixed batch with
            another request's adapter.
    """
    from vllm.lora import model_manager, worker_manager
    from vllm.lora.punica_wrapper import punica_cpu
    from vllm.platforms import current_platform
    from vllm.v1.worker import lora_model_runner_mixin

    if not current_platform.is_cpu() and IN_REPLICA not in os.environ:
        return  # another's engine, whose kernels are right
    _check_version()
    _check_shape(model_manager.LRUCacheLoRAModelManager, _SLOTS)
    _check_shape(worker_manager.LRUCacheWorkerLoRAManager, _LOADER)
    if current_platform.is_cpu():
        _check_shape(punica_cpu.PunicaWrapperCPU, _KERNELS)
        type(current_platform).get_punica_wrapper = classmethod(lambda _cls: WRAPPER)
        from vllm.model_executor.layers.fused_moe import unquantized_fused_moe_method
        from vllm.v1.worker import gpu_model_runner

        from deployments.engines import moe_cpu, prompt_logprobs

        _check_shape(unquantized_fused_moe_method, _EXPERTS)
        _check_shape(gpu_model_runner.GPUModelRunner, _RUNNER)
        moe_cpu.install()
        prompt_logprobs.install()

    from deployments.engines.refusals import in_core
    from deployments.engines.vllm_lora import AdapterLoader

    check_shapes(in_core.SHAPES)
    in_core.install()
    if not hasattr(lora_model_runner_mixin, "LRUCacheWorkerLoRAManager"):
        _refuse("the model runner takes its adapter manager from elsewhere")
    lora_model_runner_mixin.LRUCacheWorkerLoRAManager = AdapterLoader


def _check_version() -> None:
    import vllm

    if not vllm.__version__.startswith(SUPPORTED_VLLM):
        _refuse(f"vLLM is {vllm.__version__}, the plugin fits {SUPPORTED_VLLM}x")


def check_shapes(shapes: Mapping[type, dict[str, list[str]]]) -> None:
    """Raises RuntimeError: methods of vLLM's classes take other parameters than they did."""
    for cls, methods in shapes.items():
        _check_shape(cls, methods)


def _check_shape(cls: Any, methods: dict[str, list[str]]) -> None:
    for name, expected in methods.items():
        found = _parameters(getattr(cls, name, None))
        if found != expected:
            _refuse(f"{cls.__name__}.{name} takes {found}, expected {expected}")


def _parameters(method: Callable[..., object] | None) -> list[str] | None:
    return None if method is None else list(inspect.signature(method).parameters)


def _refuse(why: str) -> None:
    raise RuntimeError(
        f"Roundhouse's adapter plugin does not fit this vLLM: {why}. "
        "Install the versions of the lock files in requirements/."
    )
