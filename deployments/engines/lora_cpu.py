"""Multi-LoRA batches on CPU: every row gets exactly its own adapter, base rows get none.

Rows are grouped by adapter slot once per engine step; each layer is then one call of the operator
``roundhouse::lora_linear``, which is the compiled kernel of `lora_kernel.cpp`, or a product of
matrices per group where there is no compiler. Being an operator, it is opaque to `torch.compile`:
the groups are data, never baked into a graph. The stock CPU kernels gather a copy of the weights
per row instead, and read the slot index -1 of base rows as "the last slot".

How the weights lie: A as (slots, 1, rank, in), as in vLLM; B with the shape (slots, 1, out, rank)
that vLLM writes to, but stored as (slots, 1, rank, out), which is how both products read them in
order. Each layer has a table of the rank in use, (slots, slices): beyond it nothing is read, so an
adapter costs what its own rank is, and what an earlier adapter left in a slot is never seen.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from typing_extensions import override
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from deployments.engines import lora_kernel

logger = logging.getLogger(__name__)

NO_ADAPTER = -1
_COMPILED = (torch.bfloat16, torch.float32)

_library = torch.library.Library("roundhouse", "FRAGMENT")
# The first for the types below, compiled where there is a compiler; the second for any.
for _name in ("lora_linear", "lora_linear_by_groups"):
    _library.define(
        f"{_name}(Tensor(a!) y, Tensor x, Tensor[] a, Tensor[] b, Tensor batch, float scale) -> ()"
    )
_library.define(
    "lora_shrink(Tensor(a!)[] y, Tensor x, Tensor[] a, Tensor batch, float scale) -> ()"
)
_library.define(
    "lora_expand(Tensor(a!) y, Tensor[] x, Tensor[] b, Tensor batch, int offset, bool add) -> ()"
)
_library.define("set_ranks(Tensor first_a, Tensor ranks) -> ()")

# The tables of `set_ranks`, by the address of a layer's first A and first B.
_ranks: dict[int, torch.Tensor] = {}


def set_ranks(first_a: torch.Tensor, first_b: torch.Tensor, ranks: torch.Tensor) -> None:
    """Give the layer of these weights its table of ranks, (slots, slices) of int32.

    The table is kept, not copied: change it in place when a slot's adapter changes.
    """
    _ranks[first_a.data_ptr()] = _ranks[first_b.data_ptr()] = ranks
    if KERNEL == "compiled":
        torch.ops.roundhouse.set_ranks(first_a, ranks)


class GroupedLora(PunicaWrapperCPU):
    """vLLM's CPU LoRA wrapper with one operator per layer.

    Shapes: x (rows, in); y (rows, out), changed in place; A and B as said above. vLLM folds the
    adapter's scale into B when it loads it.
    """

    def __init__(
        self, max_num_batched_tokens: int, max_batches: int, device: Any, **kwargs: Any
    ) -> None:
        super().__init__(max_num_batched_tokens, max_batches, device, **kwargs)
        # The rows of the step at hand, as `_pack` groups them. One tensor for good, so that a
        # compiled graph may hold on to it; as long as a batch in which every row has an adapter of
        # its own.
        self.token_batch = torch.zeros(2 + 3 * max_num_batched_tokens, dtype=torch.int32)
        self.sampler_batch = torch.zeros_like(self.token_batch)
        # While the log-probabilities of one request's prompt are computed: its slot, or -1.
        self.prompt_of: int | None = None

    @override
    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        super().update_metadata(*args, **kwargs)
        _pack(self.token_lora_indices, self.token_batch)
        _pack(self.sampler_indices, self.sampler_batch)

    @override
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
        _linear(y, x, lora_a_stacked, lora_b_stacked, self.token_batch, scale)

    @override
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
        parts = [part.view(-1, part.shape[-1]) for part in y]
        torch.ops.roundhouse.lora_shrink(parts, x, lora_a_stacked, self.token_batch, scale)

    @override
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
        parts = [part.view(-1, part.shape[-1]) for part in x]
        torch.ops.roundhouse.lora_expand(
            y, parts, lora_b_stacked, self.token_batch, offset_start, add_inputs
        )

    @override
    def add_lora_embedding(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        # x is A's product already: its rows are looked up, not multiplied.
        self.add_expand(y, (x,), (lora_b_stacked,), (lora_b_stacked.shape[2],), 0, add_inputs)

    @override
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
        batch = self.sampler_batch
        if self.prompt_of is not None:
            batch = torch.zeros(2 + 3 * len(x), dtype=torch.int32)
            _pack(torch.full((len(x),), self.prompt_of), batch)
        _linear(y, x, (lora_a_stacked,), (lora_b_stacked,), batch, scale)


def _linear(
    y: torch.Tensor,
    x: torch.Tensor,
    a: tuple[torch.Tensor, ...],
    b: tuple[torch.Tensor, ...],
    batch: torch.Tensor,
    scale: float,
) -> None:
    kernels = torch.ops.roundhouse
    is_compiled_for = x.dtype in _COMPILED and x.dtype == y.dtype == a[0].dtype
    run = kernels.lora_linear if is_compiled_for else kernels.lora_linear_by_groups
    run(y, x, a, b, batch, scale)


def _pack(slots: torch.Tensor, packed: torch.Tensor) -> None:
    """Write the rows of a batch, grouped: [groups, slots.., starts.. (one more), rows..]."""
    of_row = slots.numpy()
    order = np.argsort(of_row, kind="stable")
    order = order[np.count_nonzero(of_row == NO_ADAPTER) :]
    used, starts = np.unique(of_row[order], return_index=True)
    parts = np.concatenate(([len(used)], used, starts, [len(order)], order))
    packed.numpy()[: len(parts)] = parts


@dataclass(frozen=True)
class _Group:
    """Rows of the batch that share an adapter: a slice where they are neighbours."""

    slot: int
    rows: slice | torch.Tensor


def _groups(packed: torch.Tensor) -> Iterator[_Group]:
    count = int(packed[0])
    slots = packed[1 : 1 + count].tolist()
    starts = packed[1 + count : 2 + 2 * count].tolist()
    rows = packed[2 + 2 * count :]
    for i, slot in enumerate(slots):
        members = rows[starts[i] : starts[i + 1]]
        first, last = int(members[0]), int(members[-1])
        neighbours = last - first + 1 == len(members)
        yield _Group(slot, slice(first, last + 1) if neighbours else members)


def linear_by_groups(
    y: torch.Tensor,
    x: torch.Tensor,
    a: list[torch.Tensor],
    b: list[torch.Tensor],
    batch: torch.Tensor,
    scale: float,
) -> None:
    """The whole layer without a compiler: two products for each group and slice."""
    ranks = _ranks[a[0].data_ptr()]
    for group in _groups(batch):
        rows = x[group.rows]
        offset = 0
        for a_part, b_part, rank in zip(a, b, ranks[group.slot].tolist(), strict=True):
            size = b_part.shape[2]
            if rank:
                h = rows @ a_part[group.slot, 0, :rank].T
                delta = h @ b_part[group.slot, 0, :, :rank].T
                y[group.rows, offset : offset + size] += delta if scale == 1 else delta * scale
            offset += size


def _shrink_by_groups(
    y: list[torch.Tensor], x: torch.Tensor, a: list[torch.Tensor], batch: torch.Tensor, scale: float
) -> None:
    ranks = _ranks[a[0].data_ptr()]
    for group in _groups(batch):
        rows = x[group.rows]
        for y_part, a_part, rank in zip(y, a, ranks[group.slot].tolist(), strict=True):
            if rank:
                h = (rows @ a_part[group.slot, 0, :rank].T) * scale
                y_part[group.rows, :rank] = h.to(y_part.dtype)


def _expand_by_groups(
    y: torch.Tensor,
    x: list[torch.Tensor],
    b: list[torch.Tensor],
    batch: torch.Tensor,
    offset: int,
    add: bool,
) -> None:
    ranks = _ranks[b[0].data_ptr()]
    for x_part, b_part, part in zip(x, b, range(len(b)), strict=True):
        size = b_part.shape[2]
        for group in _groups(batch):
            rank = int(ranks[group.slot, part])
            if rank:
                h = x_part[group.rows, :rank].to(b_part.dtype)
                delta = (h @ b_part[group.slot, 0, :, :rank].T).to(y.dtype)
                if add:
                    delta += y[group.rows, offset : offset + size]
                y[group.rows, offset : offset + size] = delta
        offset += size


def _load_kernel() -> str:
    """Put the compiled kernel, or the fallback, behind `lora_linear`; returns which it is."""
    _library.impl("lora_shrink", _shrink_by_groups, "CPU")
    _library.impl("lora_expand", _expand_by_groups, "CPU")
    _library.impl("lora_linear_by_groups", linear_by_groups, "CPU")
    for name in ("lora_linear", "lora_linear_by_groups", "lora_shrink", "lora_expand"):
        torch.library.register_fake(f"roundhouse::{name}", lambda *_args: None)
    try:
        torch.ops.load_library(lora_kernel.ensure_built())
    except (lora_kernel.KernelUnavailable, OSError) as e:
        logger.warning("LoRA layers run on the slower kernel in Python: %s", e)
        _library.impl("lora_linear", linear_by_groups, "CPU")
        return "grouped"
    return "compiled"


# Which kernel this process runs.
KERNEL = _load_kernel()
