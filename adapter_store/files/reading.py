"""An adapter's files as one: its configuration, its tensors' names and the base model's layers.

This is the one reading there is. The door checks what it finds, and the engines prepare it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from adapter_store.files.blobs import WEIGHTS
from adapter_store.files.peft_config import PeftConfig
from adapter_store.files.tensor_names import Factor, TensorNames
from cluster.adapters import BaseModelFacts
from cluster.errors import AdapterRefused

_SHOWN = 3


@dataclass(frozen=True)
class AdaptedLayer:
    """A layer of the base model, and the tensors that adapt it: W x + scale B A x.

    Attributes:
        module: the base model's path of it.
        a, b: names of the tensors in the file, of shapes (rank, in) and (out, rank).
        rank: as the configuration says.
        is_embedding: `in` is the vocabulary, and x a token.
        experts: whose pairs are stacked in these two; A has the rows of all of them.
    """

    module: str
    a: str
    b: str
    rank: int
    scale: float
    is_embedding: bool
    experts: int


@dataclass(frozen=True)
class Reading:
    """What of an adapter is applied, and what is worth saying about it."""

    layers: tuple[AdaptedLayer, ...]
    notices: tuple[str, ...]

    @property
    def rank(self) -> int:
        """What counts for limits, slots and costs."""
        return max(layer.rank for layer in self.layers)


def read_adapter(folder: Path, base: BaseModelFacts) -> Reading:
    """Read an adapter for a base model, as peft would apply it there.

    Raises:
        AdapterRefused: names the file, the key or the tensor, and the remedy.
    """
    config = PeftConfig.read(folder)
    with opened_tensors(folder) as tensors:
        return _Reader(config, base, tensors).read()


def opened_tensors(folder: Path) -> Any:
    """The file of tensors, for a `with` block; raises AdapterRefused when it is none."""
    path = folder / WEIGHTS
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as e:
        raise AdapterRefused(
            f"{WEIGHTS} is not a safetensors file{_disguise(path)}: {e}", param="source"
        ) from e


def _disguise(path: Path) -> str:
    """What the file is instead, by its content."""
    with path.open("rb") as file:
        start = file.read(4)
    is_pickle = start[:1] == b"\x80" and len(start) > 1 and start[1] <= 5
    if is_pickle or start == b"PK\x03\x04":  # torch.save writes a zip around a pickle
        return " but a pickle or torch checkpoint, which can run code when it is read"
    return ""


class _Reader:
    def __init__(self, config: PeftConfig, base: BaseModelFacts, tensors: Any) -> None:
        self._config = config
        self._base = base
        self._tensors = tensors
        self._names = TensorNames(base)
        self._notices = list(config.notices)

    def read(self) -> Reading:
        factors = list(self._factors())
        if len({f.adapter for f in factors}) > 1:
            several = ", ".join(sorted({f.adapter or "default" for f in factors}))
            raise _refused(
                f"it holds tensors of several adapters ({several}); save them one by one"
            )
        used = [factor for factor in factors if self._is_named(factor)]
        if not factors:
            raise _refused("it holds no LoRA tensors")
        if not used:
            raise _refused(
                f"no tensor is of a module that target_modules names, {factors[0].path} for one"
            )
        self._tell_ignored([factor for factor in factors if factor not in used])
        layers = tuple(self._layer(pair) for pair in self._pairs(used))
        self._check_experts({layer.module for layer in layers})
        self._tell_renamed(used)
        self._tell_missing(layers)
        return Reading(layers, tuple(self._notices))

    def _factors(self) -> Iterator[Factor]:
        for name in sorted(self._tensors.keys()):
            factor = self._names.factor(name)
            if factor is not None:
                yield factor
                continue
            shape = self._tensors.get_slice(name).get_shape()
            if not self._names.is_copy(name, shape):
                raise self._names.refusal(name, shape, self._config.base_name)
            self._notices.append(f"{name} is a copy of the base model's, and is not used")

    def _is_named(self, factor: Factor) -> bool:
        """By its path where it was trained, or where it will be used."""
        config = self._config
        return config.adapts(factor.path) or (
            factor.module not in (None, factor.path) and config.adapts(str(factor.module))
        )

    def _pairs(self, factors: list[Factor]) -> Iterator[tuple[Factor, Factor]]:
        found: dict[str, dict[str, Factor]] = {}
        for factor in factors:
            if factor.module is None:
                raise self._names.no_such_layer(factor, self._config.base_name)
            halves = found.setdefault(factor.module, {})
            if twin := halves.get(factor.half):
                raise _refused(f"{twin.tensor!r} and {factor.tensor!r} are of one layer")
            halves[factor.half] = factor
        for module, halves in found.items():
            if len(halves) != 2:
                missing = "B" if "A" in halves else "A"
                raise _refused(f"{module} has no lora_{missing}")
            yield halves["A"], halves["B"]

    def _layer(self, pair: tuple[Factor, Factor]) -> AdaptedLayer:
        a, b = pair
        module = str(a.module)
        is_embedding = module in self._base.embedding_shapes
        if not a.is_embedding == b.is_embedding == is_embedding:
            kind = "a linear layer" if is_embedding else "an embedding"
            raise _refused(f"{a.tensor!r} is of {kind}, and {module} is none")
        rank = self._config.rank_of(a.path)
        shape = self._base.shape_of(module)
        stacked = rank * shape.experts
        self._check_shape(a, (stacked, shape.columns), rank)
        self._check_shape(b, (shape.rows, stacked), rank)
        return AdaptedLayer(
            module,
            a.tensor,
            b.tensor,
            rank,
            self._config.scale_of(a.path),
            a.is_embedding,
            shape.experts,
        )

    def _check_experts(self, modules: set[str]) -> None:
        """vLLM has one switch for the two stacked parameters of a layer."""
        for path in self._base.experts:
            if len({path, f"{path}.base_layer"} & modules) == 1:
                raise _refused(
                    f"of the experts in {path}, gate_up_proj or down_proj alone is adapted; the "
                    "engine applies both or none. Train with both"
                )

    def _check_shape(self, factor: Factor, expected: tuple[int, int], rank: int) -> None:
        shape = tuple(self._tensors.get_slice(factor.tensor).get_shape())
        if shape == expected:
            return
        axis = 0 if factor.half == "A" else 1
        if len(shape) == 2 and shape[1 - axis] == expected[1 - axis]:
            raise _refused(
                f"{factor.tensor} has rank {shape[axis]} (shape {list(shape)}), where the "
                f"configuration says {rank} (r, rank_pattern)"
            )
        of = f" ({self._config.base_name[:100]})" if self._config.base_name else ""
        raise _refused(
            f"{factor.tensor} has shape {list(shape)}, {self._base.id} needs {list(expected)}; it "
            f"was trained on another base model{of}"
        )

    # -- what is said -----------------------------------------------------------------------

    def _tell_ignored(self, factors: list[Factor]) -> None:
        if factors:
            named = _some(sorted({factor.path for factor in factors}))
            self._notices.append(f"not used, since target_modules does not name them: {named}")

    def _tell_renamed(self, factors: list[Factor]) -> None:
        renamed = [factor for factor in factors if factor.is_renamed]
        if renamed:
            first = renamed[0]
            self._notices.append(
                f"{len(renamed)} tensors have other names than peft gives them; {first.tensor!r} "
                f"was taken for {first.module}"
            )

    def _tell_missing(self, layers: tuple[AdaptedLayer, ...]) -> None:
        here = {layer.module for layer in layers}
        missing = sorted(m for m in self._base.modules - here if self._config.adapts(m))
        missing = [m for m in missing if not self._has_single_experts(m, here)]
        if missing:
            self._notices.append(
                f"the file has no tensors for {_some(missing)}, which the configuration names; "
                "they answer as the base model's"
            )

    def _has_single_experts(self, module: str, here: set[str]) -> bool:
        experts = self._base.experts.get(module.removesuffix(".base_layer"))
        return experts is not None and any(m.startswith(f"{experts.each}.") for m in here)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def _refused(why: str) -> AdapterRefused:
    return AdapterRefused(f"{WEIGHTS}: {why}", param="source")
