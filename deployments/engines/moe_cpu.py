"""Experts with adapters on CPU, where vLLM has none: right, and plain.

vLLM takes its Triton kernels for every model with experts and LoRA, whatever the platform
(`fused_moe/oracle/unquantized.py`); without Triton the first step of the engine fails, with an
adapter or without. It loops over experts: for tests and small models.
"""

from collections.abc import Iterator
from typing import Any

import torch
from typing_extensions import override
from vllm.model_executor.layers.fused_moe import unquantized_fused_moe_method as method
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
from vllm.model_executor.layers.fused_moe.experts.lora_experts_mixin import LoRAExpertsMixin
from vllm.model_executor.layers.fused_moe.oracle.unquantized import UnquantizedMoeBackend

# Of GPT-OSS: its gate is clamped, and its sigmoid steeper (`swiglu_limit`, `alpha`).
_LIMIT, _STEEPNESS = 7.0, 1.702


class LoraExperts(LoRAExpertsMixin, CPUUnquantizedExperts):  # type: ignore[misc]  # of vLLM
    """The experts of one layer; rows are grouped by expert, and within by adapter."""

    @override
    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Leaves them as loaded: (experts, 2 * inner, hidden) and (experts, hidden, inner)."""

    @override
    def apply(
        self,
        output: torch.Tensor,
        hidden_states: torch.Tensor,
        w1: torch.Tensor,
        w2: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        activation: MoEActivation,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        lora = self._lora_context
        slots = lora.punica_wrapper.token_lora_indices[: len(hidden_states)]
        expert_map = kwargs.get("expert_map", args[1] if len(args) > 1 else None)
        output.zero_()
        for expert in torch.unique(topk_ids).tolist():
            local = expert if expert_map is None else int(expert_map[expert])
            if local < 0:
                continue  # on another worker
            rows, choice = (topk_ids == expert).nonzero(as_tuple=True)
            x, of = hidden_states[rows], slots[rows]
            h = _linear(x, w1[local], self.w1_bias, local)
            for slot, mine in _by_adapter(of, lora):
                pairs = zip(lora.w13_lora_a_stacked, lora.w13_lora_b_stacked, strict=True)
                parts = [_delta(x[mine], a[slot], b[slot], local) for a, b in pairs]
                h[mine] += _together(parts, activation)
            h = _activated(h, activation)
            y = _linear(h, w2[local], self.w2_bias, local)
            for slot, mine in _by_adapter(of, lora):
                (a,), (b,) = lora.w2_lora_a_stacked, lora.w2_lora_b_stacked
                y[mine] += _delta(h[mine], a[slot], b[slot], local)
            output.index_add_(0, rows, y * topk_weights[rows, choice, None].to(y.dtype))


def install() -> None:
    """Have vLLM take these where it has LoRA."""
    select = method.select_unquantized_moe_backend

    def select_for_cpu(moe_config: Any) -> Any:
        if moe_config.is_lora_enabled:
            return UnquantizedMoeBackend.CPU, LoraExperts
        return select(moe_config=moe_config)

    method.select_unquantized_moe_backend = select_for_cpu


def _linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, expert: int
) -> torch.Tensor:
    y = x @ weight.T
    return y if bias is None else y + bias[expert]


def _activated(h: torch.Tensor, activation: MoEActivation) -> torch.Tensor:
    if activation == MoEActivation.SWIGLUOAI:  # gate and up take turns
        gate, up = h[:, ::2].clamp(max=_LIMIT), h[:, 1::2].clamp(-_LIMIT, _LIMIT)
        return (up + 1) * gate * torch.sigmoid(gate * _STEEPNESS)
    gate, up = h.chunk(2, dim=1)
    if activation == MoEActivation.SILU:
        return torch.nn.functional.silu(gate) * up
    tanh = "tanh" if activation == MoEActivation.GELU_TANH else "none"
    return torch.nn.functional.gelu(gate, approximate=tanh) * up


def _by_adapter(slots: torch.Tensor, lora: Any) -> Iterator[tuple[int, torch.Tensor]]:
    """Slots of adapters, each with the rows that it is for; `slots` has each row's, or -1."""
    for slot in torch.unique(slots).tolist():
        if slot >= 0 and lora.adapter_enabled[slot]:
            yield slot, slots == slot


def _delta(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, expert: int) -> torch.Tensor:
    """What one expert's pair adds; one pair may be for all of them."""
    return x @ a[min(expert, len(a) - 1)].T @ b[min(expert, len(b) - 1)].T


def _together(parts: list[torch.Tensor], activation: MoEActivation) -> torch.Tensor:
    """Of gate and up, as the base model's weights have them: behind each other, or taking turns."""
    if activation == MoEActivation.SWIGLUOAI and len(parts) == 2:
        return torch.stack(parts, 2).flatten(1)
    return torch.cat(parts, 1)
