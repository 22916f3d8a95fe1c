"""An adapter as an engine's worker maps it: one file, nothing left to parse, convert or scale.

A worker takes a new adapter over inside the engine's loop, while every running request waits. All
that can be done before is done before: tensors in the engine's dtype, the scale folded into B (as
vLLM does), B in the order in which the kernels read it, and one index.
"""

import errno
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError

from adapter_store.files.layers import AdaptedLayer
from adapter_store.files.reading import opened_tensors, read_adapter
from cluster.adapters import BaseModelFacts

FILE = "prepared.safetensors"


@dataclass(frozen=True)
class Layer:
    """One adapted layer: A (rank, in) and B (out, rank), the scale folded into B.

    `name` is that which peft gives the tensor of A.
    """

    name: str
    a: torch.Tensor
    b: torch.Tensor


def write(
    source: Path, target: Path, base: BaseModelFacts, dtype: torch.dtype, *, transpose_b: bool
) -> None:
    """Prepare the peft adapter in `source` as `target` / :data:`FILE`.

    Raises:
        AdapterRefused: as at the door; see :func:`adapter_store.files.reading.read_adapter`.
        OSError: it cannot be written.
    """
    index: list[dict[str, Any]] = []
    parts: list[torch.Tensor] = []
    reading = read_adapter(source, base)
    with opened_tensors(source) as tensors:
        for layer in reading.layers:
            a = tensors.get_tensor(layer.a).to(dtype)
            b = tensors.get_tensor(layer.b).to(dtype) * layer.scale
            index.append(
                {"name": _name(layer), "in": a.shape[1], "out": b.shape[0], "rank": a.shape[0]}
            )
            parts += [a.reshape(-1), (b.T if transpose_b else b).reshape(-1)]
    header = {"layers": json.dumps(index), "transposed": json.dumps(transpose_b)}
    try:
        safetensors.torch.save_file({"all": torch.cat(parts)}, target / FILE, header)
    except SafetensorError as e:
        raise _of_the_disk(e) from e


def _of_the_disk(error: SafetensorError) -> OSError:
    """What the library tells in words alone, such as a full disk."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(found[1]) if found else errno.EIO, str(error))


def _name(layer: AdaptedLayer) -> str:
    """What peft calls the tensor of A."""
    kind = "lora_embedding_A" if layer.is_embedding else "lora_A.weight"
    return f"base_model.model.{layer.module}.{kind}"


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
