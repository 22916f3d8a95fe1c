"""What we ask of vLLM's workers: a mixin that vLLM adds to its worker class.

Set as `worker_extension_cls`; its methods are called by name through `collective_rpc`, between two
steps of the engine, in every worker of a tensor-parallel group.

They answer with what went wrong instead of raising it: vLLM stops reading the workers' answers at
the first error, and would take those that are left for the answers to its next call.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from vllm.lora.request import LoRARequest

if TYPE_CHECKING:
    from deployments.engines.vllm_lora import AdapterLoader


class _ModelRunner(Protocol):
    """Of vLLM's model runner, what is used here; the plugin has given it our loader."""

    lora_manager: "AdapterLoader"


class RoundhouseWorker:
    """Runs inside each engine worker process."""

    # The worker's, into which this is mixed.
    model_runner: _ModelRunner
    device: torch.device

    def roundhouse_take(self, lora_id: int, name: str, folder: str) -> str | None:
        """Hold an adapter; see :meth:`deployments.engines.vllm_lora.AdapterLoader.take`."""
        return _error_of(self.model_runner.lora_manager.take, LoRARequest(name, lora_id, folder))

    def roundhouse_fill_free_slot(self, lora_id: int) -> str | None:
        """See :meth:`deployments.engines.vllm_lora.AdapterLoader.fill_free_slot`."""
        return _error_of(self.model_runner.lora_manager.fill_free_slot, lora_id)

    def roundhouse_residency(self, worth: dict[int, float]) -> tuple[list[int], list[int]]:
        """Adapter ids in slots, and in host memory (slots included).

        `worth` says what is kept when a slot is wanted; adapters that it leaves out are worth 0.
        """
        slots = self.model_runner.lora_manager.slots
        slots.worth = worth
        return [i for i in slots.lora_index_to_id if i is not None], list(slots.list_adapters())

    def roundhouse_adaptable(self, modules: list[str]) -> list[str]:
        """See :meth:`deployments.engines.vllm_lora.AdapterLoader.adaptable`."""
        return self.model_runner.lora_manager.adaptable(modules)

    def roundhouse_classes(self) -> tuple[str, str, str | None]:
        """What applies adapters here, what manages them, and which CPU kernel runs."""
        manager = self.model_runner.lora_manager
        # Where the plugin is missing it is vLLM's own, which has no `slots`.
        slots = manager._adapter_manager  # noqa: SLF001  (of vLLM)
        wrapper = next(iter(slots.punica_wrapper_mapping.values()))
        kernel = None
        if self.device.type == "cpu":
            from deployments.engines import lora_cpu

            kernel = lora_cpu.KERNEL
        return _name(wrapper), _name(manager), kernel


def _error_of(action: Callable[..., None], *args: object) -> str | None:
    try:
        action(*args)
    except Exception as e:  # noqa: BLE001  (whatever it was, it is told)
        return f"{type(e).__name__}: {e}"
    return None


def _name(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
