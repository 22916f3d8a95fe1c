"""vLLM's adapter managers, changed: prepared files, evictions by worth, ranks for the CPU.

They live in the engine's worker, on any platform; `vllm_plugin` puts them in the place of vLLM's.
"""

import logging
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typing_extensions import override
from vllm.lora.layers import FusedMoE3DWithLoRA, FusedMoEWithLoRA
from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import LoRALayerWeights
from vllm.lora.model_manager import LRUCacheLoRAModelManager
from vllm.lora.request import LoRARequest
from vllm.lora.utils import parse_fine_tuned_lora_name
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.platforms import current_platform

from deployments.engines import prepared

logger = logging.getLogger(__name__)


class AdapterSlots(LRUCacheLoRAModelManager):
    """Which adapters are in host memory and in slots.

    A slot is taken from the adapter that is worth least, the least recently used of equals, never
    from one that the step at hand needs.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.worth: dict[int, float] = {}
        self.needed: frozenset[int] = frozenset()
        self._share_gates()
        self._cpu_ranks = (
            CpuRanks(self.modules, self.packed_modules) if current_platform.is_cpu() else None
        )

    def _share_gates(self) -> None:
        """Have the experts' runners use the gates that have adapters.

        vLLM means to, but sets them on the wrappers around the runners, where nothing looks.
        """
        wrappers = {id(module.base_layer): module for module in self.modules.values()}
        for module in self.modules.values():
            if isinstance(module, FusedMoEWithLoRA):
                runner = module.base_layer
                runner.gate = wrappers.get(id(runner.gate), runner.gate)

    @property
    def targets(self) -> frozenset[str]:
        """The names under which weights are looked for, in vLLM's own terms."""
        names: set[str] = set()
        for name, module in self.modules.items():
            names.update(self.packed_modules.get(name, [name]))
            takes_stacked = self._enable_mixed_moe_lora_format or isinstance(
                module, FusedMoE3DWithLoRA
            )
            if isinstance(module, FusedMoEWithLoRA) and takes_stacked:
                names |= {name, f"{name}.base_layer"}
        return frozenset(names)

    @override
    def activate_adapter(self, lora_id: int) -> bool:
        if lora_id not in self._active_adapters and not self.has_free_slot:
            self._active_adapters.pop(self._least_worth())
        try:
            moved = super().activate_adapter(lora_id)
        except Exception:
            # vLLM counts the slot as taken before it is filled.
            self._active_adapters.pop(lora_id, None)
            raise
        if moved and self._cpu_ranks is not None:
            self._cpu_ranks.set(
                self.lora_index_to_id.index(lora_id), self._registered_adapters[lora_id].loras
            )
        return moved

    @property
    def has_free_slot(self) -> bool:
        return len(self._active_adapters) < self.lora_slots

    def holds(self, lora_id: int) -> bool:
        """Whether an adapter is in host memory; to ask is no use of it, as `get_adapter` is."""
        return lora_id in self._registered_adapters

    def _least_worth(self) -> int:
        by_last_use: Iterable[int] = self._active_adapters.order
        free = (i for i in by_last_use if i not in self.needed)
        return min(free, key=lambda i: self.worth.get(i, 0.0))  # of equals the first


class AdapterLoader(LRUCacheWorkerLoRAManager):
    """Takes prepared files over; leaves anything else to vLLM."""

    _manager_cls = AdapterSlots
    _adapter_manager: AdapterSlots

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # By the names of peft's tensors, which are the same in every adapter.
        self._module_names: dict[str, str] = {}

    @property
    def slots(self) -> AdapterSlots:
        """What it loads into; there once vLLM has loaded the model."""
        return self._adapter_manager

    def take(self, request: LoRARequest) -> None:
        """Hold an adapter in host memory.

        Raises:
            RuntimeError: it is full. vLLM would move out what is perhaps in use.
        """
        slots = self.slots
        if len(slots) >= slots.capacity:
            raise RuntimeError(f"host memory is full ({slots.capacity} adapters)")
        slots.add_adapter(self._load_adapter(request))

    def fill_free_slot(self, lora_id: int) -> None:
        """Move an adapter from host memory into a slot, if one is free.

        Where none is, the engine moves it by itself when a request for it is scheduled; to do so
        earlier would take the slot of another that is perhaps in use.
        """
        if self.slots.has_free_slot:
            self.slots.activate_adapter(lora_id)

    @override
    def _apply_adapters(self, lora_requests: set[LoRARequest]) -> None:
        slots = self.slots
        slots.needed = frozenset(r.lora_int_id for r in lora_requests)
        if missing := [i for i in slots.needed if not slots.holds(i)]:
            logger.error("adapters %s were not held; they are read inside a step", sorted(missing))
        super()._apply_adapters(lora_requests)

    @override
    def _load_adapter(self, lora_request: LoRARequest) -> LoRAModel:
        folder = Path(lora_request.lora_path)
        if not (folder / prepared.FILE).is_file():
            return super()._load_adapter(lora_request)
        loras = {}
        for layer in prepared.read(folder):
            name = self._module_name(layer.name)
            rank = layer.a.shape[0]
            loras[name] = LoRALayerWeights(name, rank, rank, layer.a, layer.b, scaling=1)
        return LoRAModel(
            lora_request.lora_int_id,
            max(lora.rank for lora in loras.values()),
            loras,
            # By this vLLM takes a pair for all experts of a layer apart.
            is_3d_lora_weight=any(name.endswith(".experts.base_layer") for name in loras),
        )

    def _module_name(self, tensor_name: str) -> str:
        """vLLM's name of the module that a tensor of peft's adapts.

        Raises:
            ValueError: this model has no such module.
        """
        if tensor_name not in self._module_names:
            name, _ = parse_fine_tuned_lora_name(tensor_name, self._renames)
            # transformers from 5 on has another name for what holds Mixtral's experts.
            older = name.replace(".mlp.", ".block_sparse_moe.")
            name = older if name not in self._targets and older in self._targets else name
            if name not in self._targets:
                raise ValueError(f"the model has no module {name} to adapt")
            self._module_names[tensor_name] = name
        return self._module_names[tensor_name]

    def adaptable(self, modules: list[str]) -> list[str]:
        """Those of the base model's modules, by their paths as peft knows them, that can be
        adapted."""
        return [module for module in modules if self._is_adaptable(module)]

    def _is_adaptable(self, module: str) -> bool:
        try:
            self._module_name(f"base_model.model.{module}.lora_A.weight")
        except ValueError:
            return False
        return True

    @cached_property
    def _targets(self) -> frozenset[str]:
        return self.slots.targets

    @cached_property
    def _renames(self) -> Any:
        mapper = getattr(self.slots.model, "hf_to_vllm_mapper", None)
        return mapper and mapper.get_rename_mapper()


class CpuRanks:
    """How much of each layer's slots is in use; the CPU kernels read no more than that.

    So nothing has to be zeroed when a slot changes hands, which is half of what it costs.
    """

    def __init__(self, modules: Mapping[str, Any], packed_modules: dict[str, list[str]]) -> None:
        """Of vLLM's layers `modules`; their B is laid out anew, as our kernels read it."""
        from deployments.engines import lora_cpu

        # The kernels' tables as arrays: cheaper to write to, which the engine's loop waits for.
        self._tables: dict[str, np.ndarray] = {}
        for name, module in modules.items():
            if isinstance(module, FusedMoEWithLoRA):
                continue  # see moe_cpu
            a, b = _parts(module.lora_a_stacked), _parts(module.lora_b_stacked)
            b = tuple(t.transpose(2, 3).contiguous().transpose(2, 3) for t in b)
            module.lora_b_stacked = b if isinstance(module.lora_b_stacked, tuple) else b[0]
            if len(packed_modules.get(name, [name])) == len(a):
                module.reset_lora = lambda _index: None
            for weights in a:
                weights.zero_()  # touches the pages now, and not in the engine's loop
            table = torch.zeros(len(a[0]), len(a), dtype=torch.int32)
            lora_cpu.set_ranks(a[0], b[0], table)
            self._tables[name] = table.numpy()

    def set(self, slot: int, loras: dict[str, LoRALayerWeights]) -> None:
        for name, table in self._tables.items():
            weights = loras.get(name)
            ranks = [] if weights is None else [_rank(a) for a in _parts(weights.lora_a)]
            if len(ranks) != table.shape[1]:
                # Not adapted, or one pair of A and B that vLLM spreads over several slices.
                ranks = [max(ranks, default=0)] * table.shape[1]
            table[slot] = ranks


def _rank(a: torch.Tensor | None) -> int:
    return 0 if a is None else len(a)


def _parts(tensors: Any) -> tuple[Any, ...]:
    """vLLM keeps one tensor for a layer of one slice, and a sequence for a layer of several."""
    return tuple(tensors) if isinstance(tensors, (tuple, list)) else (tensors,)
