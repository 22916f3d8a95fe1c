"""Multi-LoRA batches on CPU: every row gets exactly its own adapter, base rows get none.

Rows are grouped by adapter slot once per engine step; each layer then does two matrix products per
group. The stock CPU kernels gather a copy of the weights per row instead, and read the slot index
-1 of base rows as "the last slot".
"""

from dataclasses import dataclass
from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

NO_ADAPTER = -1


@dataclass(frozen=True)
class Group:
    """Rows of the batch that share an adapter: a slice where they are neighbours."""

    slot: int
    rows: slice | torch.Tensor


def group_rows(slots: list[int]) -> list[Group]:
    """Group row numbers by slot, leaving out the rows without an adapter."""
    rows: dict[int, list[int]] = {}
    for row, slot in enumerate(slots):
        if slot != NO_ADAPTER:
            rows.setdefault(slot, []).append(row)
    return [Group(slot, _as_rows(members)) for slot, members in rows.items()]


def _as_rows(members: list[int]) -> slice | torch.Tensor:
    first, last = members[0], members[-1]
    if last - first + 1 == len(members):
        return slice(first, last + 1)
    return torch.tensor(members)


class GroupedLora(PunicaWrapperCPU):
    """vLLM's CPU LoRA wrapper with grouped products.

    Shapes: x (rows, in); y (rows, out), changed in place; A (slots, 1, rank, in);
    B (slots, 1, out, rank). vLLM folds the adapter's scale into B when it loads it.
    """

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        super().update_metadata(*args, **kwargs)
        self._token_groups = group_rows(self.token_lora_indices.tolist())
        self._sampler_groups = group_rows(self.sampler_indices.tolist())

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[torch.Tensor, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        _apply(self._token_groups, y, x, lora_a_stacked, lora_b_stacked, scale, output_slices)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        *,
        buffer: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        out = (lora_b_stacked.shape[-2],)
        _apply(self._sampler_groups, y, x, (lora_a_stacked,), (lora_b_stacked,), scale, out)


def _apply(
    groups: list[Group],
    y: torch.Tensor,
    x: torch.Tensor,
    lora_a: tuple[torch.Tensor, ...],
    lora_b: tuple[torch.Tensor, ...],
    scale: float,
    output_slices: tuple[int, ...],
) -> None:
    for group in groups:
        rows = x[group.rows]
        offset = 0
        for a, b, size in zip(lora_a, lora_b, output_slices, strict=True):
            delta = (rows @ a[group.slot, 0].T) @ b[group.slot, 0].T
            y[group.rows, offset : offset + size] += delta if scale == 1 else delta * scale
            offset += size
