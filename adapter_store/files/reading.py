"""An adapter's files as one: its configuration, its tensors' names and the base model's layers.

This is the one reading there is. The door checks what it finds, and the engines prepare it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from adapter_store.files.blobs import WEIGHTS
from adapter_store.files.disguise import disguise_of
from adapter_store.files.experts import check_experts, half_of_experts
from adapter_store.files.layers import AdaptedLayer
from adapter_store.files.peft_config import PeftConfig
from adapter_store.files.tensor_names import Factor, TensorNames, cut
from cluster.adapters import BaseModelFacts
from cluster.errors import AdapterRefused

_SHOWN = 3
# More than any model has layers and experts; names alone would fill the memory.
_MOST_TENSORS = 1_000_000


@dataclass(frozen=True)
class Reading:
    """What of an adapter is applied, and what is worth saying about it.

    Attributes:
        trained_on: the base model, as the adapter's trainer called it; "" where it does not say.
    """

    layers: tuple[AdaptedLayer, ...]
    notices: tuple[str, ...]
    trained_on: str

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
            f"{WEIGHTS} is not a safetensors file{disguise_of(path)}: {e}", param="source"
        ) from e


class _Reader:
    def __init__(self, config: PeftConfig, base: BaseModelFacts, tensors: Any) -> None:
        self._config = config
        self._base = base
        self._tensors = tensors
        self._names = TensorNames(base)
        self._notices = list(config.notices)
        self._tied = self._tied_modules()

    def read(self) -> Reading:
        factors = list(self._factors())
        if not factors:
            raise _refused("it holds no LoRA tensors")
        adapters = sorted({factor.adapter or "default" for factor in factors})
        if len(adapters) > 1:
            several = _some(adapters)
            raise _refused(f"it holds tensors of several adapters ({several}); save each alone")
        used, ignored = self._split(factors)
        if not used:
            first = cut(factors[0].path)
            raise _refused(f"no tensor is of a module that target_modules names, {first} for one")
        self._tell_ignored(ignored)
        layers = tuple(self._layer(pair) for pair in self._pairs(used))
        check_experts(layers, self._base)
        self._check_tied({layer.module for layer in layers})
        self._tell_renamed(used)
        self._tell_missing(layers)
        return Reading(layers, tuple(self._notices), self._config.base_name)

    def _factors(self) -> Iterator[Factor]:
        names = self._tensors.keys()
        if len(names) > _MOST_TENSORS:
            raise _refused(f"it has {len(names)} tensors, {_MOST_TENSORS} are allowed")
        for name in sorted(names):
            factor = self._names.factor(name)
            if factor is not None:
                yield factor
                continue
            shape = self._tensors.get_slice(name).get_shape()
            if not self._names.is_copy(name, shape):
                raise self._names.refusal(name, shape, self._config.base_name)
            self._notices.append(
                f"{cut(name)} is not used: it is taken for a copy of the base model's, which peft "
                "saves along; what was trained of it would be lost"
            )

    def _split(self, factors: list[Factor]) -> tuple[list[Factor], list[Factor]]:
        """Those that the configuration names, and the others."""
        named: list[Factor] = []
        others: list[Factor] = []
        for factor in factors:
            (named if self._is_named(factor) else others).append(factor)
        return named, others

    def _is_named(self, factor: Factor) -> bool:
        """By its path where it was trained, or where it will be used."""
        experts = (factor.module or "").removesuffix(".base_layer")
        if experts in self._base.experts and self._config.adapts_half(experts):
            raise half_of_experts(experts)
        if factor.module in self._tied:
            return True
        is_linear = not factor.is_embedding
        paths = dict.fromkeys((factor.path, factor.module or factor.path))
        return any(self._config.adapts(path, is_linear=is_linear) for path in paths)

    def _pairs(self, factors: list[Factor]) -> Iterator[tuple[Factor, Factor]]:
        found: dict[str, dict[str, Factor]] = {}
        for factor in factors:
            if factor.module is None:
                raise self._names.no_such_layer(factor, self._config.base_name)
            halves = found.setdefault(factor.module, {})
            if twin := halves.get(factor.half):
                both = f"{cut(twin.tensor)!r} and {cut(factor.tensor)!r}"
                raise _refused(f"{both} are of one layer")
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
            raise _refused(f"{cut(a.tensor)!r} is of {kind}, and {module} is none")
        rank = self._config.rank_of(a.path)
        shape = self._base.shape_of(module)
        stacked = rank * shape.experts
        self._check_shape(a, (stacked, shape.columns), rank)
        self._check_shape(b, (shape.rows, stacked), rank)
        scale = self._config.scale_of(a.path, rank)
        return AdaptedLayer(module, a.tensor, b.tensor, rank, scale, is_embedding, shape.experts)

    def _check_shape(self, factor: Factor, expected: tuple[int, int], rank: int) -> None:
        shape = tuple(self._tensors.get_slice(factor.tensor).get_shape())
        if shape == expected:
            return
        axis = 0 if factor.half == "A" else 1
        name, base = cut(factor.tensor), self._base.id
        if len(shape) == 2 and shape[1 - axis] == expected[1 - axis]:
            raise _refused(
                f"{name} has rank {shape[axis]} (shape {list(shape)}), where the configuration "
                f"says {rank} (r, rank_pattern)"
            )
        of = f" ({self._config.base_name[:100]})" if self._config.base_name else ""
        raise _refused(
            f"{name} has shape {list(shape)}, {base} needs {list(expected)}; it was trained on "
            f"another base model{of}"
        )

    def _tied_modules(self) -> frozenset[str]:
        """Embedding and head, where the base model has one matrix for both and peft was told to
        adapt them together (`ensure_weight_tying`): it then names one, and saves both."""
        if not (self._config.ties_weights and self._base.is_tied):
            return frozenset()
        both = frozenset(
            module
            for module in self._base.linear_shapes.keys() | self._base.embedding_shapes.keys()
            if module.rpartition(".")[2] in ("embed_tokens", "wte", "lm_head")
        )
        named = any(self._config.adapts(module, is_linear=False) for module in both)
        return both if named else frozenset()

    def _check_tied(self, here: set[str]) -> None:
        if missing := self._tied - here:
            raise _refused(
                f"ensure_weight_tying adapts {_some(sorted(self._tied))} together, and there are "
                f"no tensors for {_some(sorted(missing))}; save it anew with peft"
            )

    # -- what is said -----------------------------------------------------------------------

    def _tell_ignored(self, factors: list[Factor]) -> None:
        if factors:
            named = _some(sorted({factor.path for factor in factors}))
            self._notices.append(f"not used, since the configuration does not name them: {named}")

    def _tell_renamed(self, factors: list[Factor]) -> None:
        renamed = [factor for factor in factors if factor.is_renamed]
        if renamed:
            first = renamed[0]
            self._notices.append(
                f"{len(renamed)} tensors have other names than peft gives them; "
                f"{cut(first.tensor)!r} was taken for {first.module}"
            )

    def _tell_missing(self, layers: tuple[AdaptedLayer, ...]) -> None:
        here, base = {layer.module for layer in layers}, self._base
        missing = sorted(
            module
            for module in base.modules - here
            if self._config.adapts(module, is_linear=module in base.linear_shapes)
            and not self._has_single_experts(module, here)
        )
        if missing:
            self._notices.append(
                f"the file has no tensors for {_some(missing)}, which the configuration names; "
                "they answer as the base model's"
            )

    def _has_single_experts(self, module: str, here: set[str]) -> bool:
        experts = self._base.experts.get(module.removesuffix(".base_layer"))
        if experts is None or not experts.each:
            return False
        return f"{experts.each}.0.{experts.parts[0]}" in here


def _some(names: list[str]) -> str:
    shown = ", ".join(cut(name) for name in names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def _refused(why: str) -> AdapterRefused:
    return AdapterRefused(f"{WEIGHTS}: {why}", param="source")
