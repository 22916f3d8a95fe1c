"""The vLLM plugin: gives CPU engines our multi-LoRA kernels. Touches no other platform.

vLLM calls :func:`register` in every engine process (entry point ``vllm.general_plugins``).
"""

import inspect

WRAPPER = "deployments.lora_cpu.GroupedLora"
SUPPORTED_VLLM = "0.32."

_EXPECTED_PARAMETERS = {
    "update_metadata": ["self", "mapping", "lora_index_to_id", "max_loras", "vocab_size", "kwargs"],
    "add_lora_linear": [
        *("self", "y", "x", "lora_a_stacked", "lora_b_stacked", "scale", "output_slices"),
        *("buffer", "kwargs"),
    ],
    "add_shrink": ["self", "y", "x", "lora_a_stacked", "scale", "kwargs"],
    "add_expand": [
        *("self", "y", "x", "lora_b_stacked", "output_slices", "offset_start", "add_inputs"),
        "kwargs",
    ],
    "add_lora_logits": [
        *("self", "y", "x", "lora_a_stacked", "lora_b_stacked", "scale", "buffer", "kwargs"),
    ],
}


def register() -> None:
    """Point vLLM's CPU platform at :class:`deployments.lora_cpu.GroupedLora`.

    Raises:
        RuntimeError: this vLLM does not look like the one that the kernels were written for. The
            engine then refuses to start: stock CPU kernels answer base-model rows of a mixed
            batch with another request's adapter.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    _check_shape()
    type(current_platform).get_punica_wrapper = classmethod(lambda cls: WRAPPER)


def _check_shape() -> None:
    import vllm
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    if not vllm.__version__.startswith(SUPPORTED_VLLM):
        _refuse(f"vLLM is {vllm.__version__}, the kernels fit {SUPPORTED_VLLM}x")
    for name, expected in _EXPECTED_PARAMETERS.items():
        found = list(inspect.signature(getattr(PunicaWrapperCPU, name)).parameters)
        if found != expected:
            _refuse(f"PunicaWrapperCPU.{name} takes {found}, expected {expected}")


def _refuse(why: str) -> None:
    raise RuntimeError(
        f"Roundhouse's CPU LoRA kernels do not fit this vLLM: {why}. "
        "Install the versions of requirements/cpu.lock."
    )
