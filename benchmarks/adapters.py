"""Adapters of random weights, in peft's format, for benchmarks and tests."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from adapter_store.files.blobs import CONFIG, WEIGHTS


def write_adapter(
    folder: Path,
    shapes: Mapping[str, tuple[int, int]],
    rank: int,
    targets: Sequence[str],
    *,
    seed: int,
    spread: float = 0.02,
) -> int:
    """Write an adapter for every layer of `shapes` that ends in one of `targets`.

    Args:
        shapes: module path -> (out_features, in_features).
        spread: standard deviation of the weights.

    Returns:
        The size of the weights in bytes.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int) -> torch.Tensor:
        return (torch.randn(*size, generator=generator) * spread).bfloat16()

    tensors = {}
    for module, (out, size_in) in shapes.items():
        if module.rpartition(".")[2] in targets:
            tensors[f"base_model.model.{module}.lora_A.weight"] = random(rank, size_in)
            tensors[f"base_model.model.{module}.lora_B.weight"] = random(out, rank)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(targets),
        "bias": "none",
    }
    (folder / CONFIG).write_text(json.dumps(config))
    return sum(t.numel() * t.element_size() for t in tensors.values())
