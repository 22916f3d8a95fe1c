"""The checks at the door: what an adapter must be before anything of it is stored."""

import hashlib
from pathlib import Path

import torch

from adapter_store.files.beside import notices_beside
from adapter_store.files.blobs import WEIGHTS, digest_of, size_of
from adapter_store.files.layers import AdaptedLayer
from adapter_store.files.peft_config import MAX_SCALE
from adapter_store.files.reading import Reading, opened_tensors, read_adapter
from adapter_store.files.tensor_names import cut
from cluster.adapters import BaseModelFacts
from cluster.errors import AdapterRefused
from cluster.values import Value

# Far beyond any trained adapter. One that overflows leaves NaN in the engine's KV cache, from where
# it silences the requests of every other tenant.
MAX_WEIGHT = 1e3
# The engines fold the scale into B; float16 holds no more.
_MAX_SCALED = float(torch.finfo(torch.float16).max)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Checked(Value):
    """What the checks learnt.

    Attributes:
        notices: what is odd, and served all the same.
    """

    digest: str
    size_bytes: int
    rank: int
    target_modules: tuple[str, ...]
    notices: tuple[str, ...] = ()


def check_adapter(folder: Path, base: BaseModelFacts) -> Checked:
    """Check a staged adapter against the base model that it is for.

    Raises:
        AdapterRefused: names the file, the key and the remedy.
    """
    reading = read_adapter(folder, base)
    if reading.rank > base.max_rank:
        raise AdapterRefused(
            f"the adapter's rank is {reading.rank} (r, rank_pattern); {base.id} takes ranks from 1 "
            f"to {base.max_rank} (lora.max_rank)",
            param="source",
        )
    return Checked(
        digest=digest_of(folder),
        size_bytes=size_of(folder),
        rank=reading.rank,
        target_modules=tuple(sorted({layer.module.rpartition(".")[2] for layer in reading.layers})),
        notices=(
            *reading.notices,
            *_check_values(folder, reading),
            *notices_beside(folder, base, reading.trained_on),
        ),
    )


def check_sha256(folder: Path, expected: str) -> None:
    """The weights are the ones that the caller means."""
    with (folder / WEIGHTS).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected.lower():
        raise AdapterRefused(
            f"{WEIGHTS} has sha256 {found}, {expected.lower()} was expected; was it changed on the "
            "way?",
            param="sha256",
        )


def _check_values(folder: Path, reading: Reading) -> list[str]:
    """Every value is one that the engines can compute with; returns notices."""
    is_silent, are_double = True, False
    with opened_tensors(folder) as tensors:
        for layer in reading.layers:
            a, b = tensors.get_tensor(layer.a), tensors.get_tensor(layer.b)
            _check_tensor(layer.a, a)
            largest = _check_tensor(layer.b, b)
            _check_scale(layer, largest)
            is_silent = is_silent and not largest
            are_double = are_double or torch.float64 in (a.dtype, b.dtype)
    notices = []
    if is_silent:
        notices.append("every lora_B is zero: it answers as the base model")
    if are_double:
        notices.append("its tensors are float64, and are used in the precision of the base model")
    return notices


def _check_tensor(name: str, tensor: torch.Tensor) -> float:
    """The largest of its values, whatever their sign, found without a copy of them."""
    if tensor.dtype in _DTYPES:
        low, high = (float(value) for value in tensor.aminmax())
        if low >= -MAX_WEIGHT and high <= MAX_WEIGHT:  # neither is true of NaN
            return max(-low, high)
    raise AdapterRefused(
        f"{WEIGHTS}: {cut(name)} is {str(tensor.dtype).removeprefix('torch.')}; it must be "
        f"float32, float16, bfloat16 or float64 with finite values of at most {MAX_WEIGHT:g}",
        param="source",
    )


def _check_scale(layer: AdaptedLayer, largest: float) -> None:
    if abs(layer.scale) > MAX_SCALE or largest * abs(layer.scale) > _MAX_SCALED:
        raise AdapterRefused(
            f"{layer.module} is scaled by {layer.scale:g} (lora_alpha, r, alpha_pattern); at most "
            f"{MAX_SCALE}, and {_MAX_SCALED:g} with the weights of lora_B, can be served",
            param="source",
        )
