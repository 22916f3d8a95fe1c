"""What we ask of vLLM's workers: a mixin that vLLM adds to its worker class.

Set as `worker_extension_cls`; its methods are called by name through `collective_rpc`.
"""


class RoundhouseWorker:
    """Runs inside each engine worker process."""

    def roundhouse_residency(self) -> tuple[list[int], list[int]]:
        """Adapter ids in slots, and in host memory (slots included)."""
        manager = self.model_runner.lora_manager._adapter_manager
        slots = [i for i in manager.lora_index_to_id if i is not None]
        return slots, list(manager.list_adapters())

    def roundhouse_lora_kernel(self) -> str:
        """Qualified name of the class that applies adapters in this worker."""
        manager = self.model_runner.lora_manager._adapter_manager
        wrapper = next(iter(manager.punica_wrapper_mapping.values()))
        return f"{type(wrapper).__module__}.{type(wrapper).__qualname__}"
