"""An adapter as an engine's worker maps it: one file, nothing left to parse, convert or scale.

A worker takes a new adapter over inside the engine's loop, while every running request waits. All
that can be done before is done before: tensors in the engine's dtype, the scale folded into B (as
vLLM does), B in the order in which the kernels read it, and one index.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from vllm.config.lora import LoRAConfig
from vllm.lora.peft_helper import PEFTHelper

from adapter_store.files.blobs import WEIGHTS

FILE = "prepared.safetensors"

_A, _B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class Layer:
    """One adapted layer: A (rank, in) and B (out, rank), the scale folded into B.

    `name` is that of A's tensor in peft's file.
    """

    name: str
    a: torch.Tensor
    b: torch.Tensor


def write(source: Path, target: Path, config: LoRAConfig, *, transpose_b: bool) -> None:
    """Prepare the peft adapter in `source` as `target` / :data:`FILE`.

    Raises:
        ValueError: something that vLLM or this format does not take; says what.
    """
    helper = PEFTHelper.from_local_dir(str(source), max_position_embeddings=None)
    helper.validate_legal(config)
    tensors = safetensors.torch.load_file(source / WEIGHTS)
    names = sorted(name.removesuffix(_A) for name in tensors if name.endswith(_A))
    if set(tensors) != {name + half for name in names for half in (_A, _B)}:
        raise ValueError("tensors other than pairs of lora_A.weight and lora_B.weight")
    index, parts = [], []
    for name in names:
        module = name.removeprefix("base_model.model.")
        _, scale = helper.get_rank_and_scaling(module)
        a = tensors[name + _A].to(config.lora_dtype)
        b = tensors[name + _B].to(config.lora_dtype) * scale
        index.append({"name": name + _A, "in": a.shape[1], "out": b.shape[0], "rank": a.shape[0]})
        parts += [a.reshape(-1), (b.T if transpose_b else b).reshape(-1)]
    header = {"layers": json.dumps(index), "transposed": json.dumps(transpose_b)}
    safetensors.torch.save_file({"all": torch.cat(parts)}, target / FILE, header)


def read(folder: Path) -> Iterator[Layer]:
    """Map a prepared file; the tensors are views of the mapping, which replicas of a node share."""
    with safetensors.safe_open(folder / FILE, "pt") as file:
        header = file.metadata()
        whole = file.get_tensor("all")
    index = json.loads(header["layers"])
    transposed = json.loads(header["transposed"])
    sizes = [n for layer in index for n in _sizes(layer)]
    parts = iter(whole.split(sizes))
    for layer in index:
        a, b = next(parts), next(parts)
        rank, out = layer["rank"], layer["out"]
        shaped = b.view(rank, out).T if transposed else b.view(out, rank)
        yield Layer(layer["name"], a.view(rank, layer["in"]), shaped)


def _sizes(layer: dict[str, Any]) -> tuple[int, int]:
    return layer["rank"] * layer["in"], layer["rank"] * layer["out"]
