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

    def add_shrink(
        self,
        y: tuple[torch.Tensor, ...] | torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        scale: float,
        **kwargs: Any,
    ) -> None:
        """First half of the product alone: fully sharded layers communicate in between."""
        x = x.view(-1, x.shape[-1])
        for part, a in zip(y, lora_a_stacked, strict=True):
            flat = part.view(-1, part.shape[-1])
            for group in self._token_groups:
                flat[group.rows] = ((x[group.rows] @ a[group.slot, 0].T) * scale).to(flat.dtype)

    def add_expand(
        self,
        y: torch.Tensor,
        x: tuple[torch.Tensor, ...] | torch.Tensor,
        lora_b_stacked: tuple[torch.Tensor, ...],
        output_slices: tuple[int, ...],
        offset_start: int = 0,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """Second half: adds to y, or replaces, from column `offset_start` on."""
        y = y.view(-1, y.shape[-1])
        offset = offset_start
        for part, b, size in zip(x, lora_b_stacked, output_slices, strict=True):
            for group in self._token_groups:
                rows = part.view(-1, part.shape[-1])[group.rows].to(b.dtype)
                delta = (rows @ b[group.slot, 0].T).to(y.dtype)
                if add_inputs:
                    delta += y[group.rows, offset : offset + size]
                y[group.rows, offset : offset + size] = delta
            offset += size

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
