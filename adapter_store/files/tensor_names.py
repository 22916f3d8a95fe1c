"""What the tensors of an adapter's file are, by their names: as peft writes them, or nearly so."""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from adapter_store.files.blobs import WEIGHTS
from cluster.adapters import BaseModelFacts
from cluster.errors import AdapterRefused

_LONGEST = 200
_PREFIX = "base_model.model."
# `.default` and the like: peft's name of the adapter in the model, which its own files leave out.
_FACTOR = re.compile(
    r"(?P<path>.+)\.lora_(?:(?P<linear>[AB])(?:\.(?P<of>[^.]+))?\.weight"
    r"|embedding_(?P<embedding>[AB])(?:\.(?P<of_embedding>[^.]+))?)"
)
_SINGLE_EXPERT = re.compile(r"(?P<experts>.+\.experts)\.(?P<number>\d{1,5})\.(?P<part>\w+)")
# What wraps a model while it is trained, and leaves its name in the paths.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# What may stand before the path that a model and its kin share.
_LEADING = frozenset(
    {
        "_forward_module",
        "actor",
        "base_model",
        "decoder",
        "language_model",
        "llm",
        "llm_model",
        "model",
        "module",
        "paligemma",
        "policy",
        "pretrained_model",
        "text_model",
        "thinker",
        "transformer",
    }
)
# Other releases' and trainers' names within a path -> ours.
_RENAMED = (
    (".block_sparse_moe.", ".mlp."),
    ("vision_tower.vision_model.", "vision_tower."),
    ("unembed_tokens", "lm_head"),
)

# Part of a tensor's name -> what such a file is.
_OTHERS = {
    "lora_magnitude_vector": "DoRA's; train plain LoRA, or convert it with peft's save_as_lora",
    "lora_diag": "KaSA's; train plain LoRA",
    "lora_E": "AdaLoRA's; convert it with peft's save_as_lora",
    "hada_w": "LoHa's; convert it with peft's save_as_lora",
    "lokr_w": "LoKr's; convert it with peft's save_as_lora",
    "ia3_l": "IA3's, which scales activations; train LoRA",
    "oft_": "OFT's, which rotates weights; train LoRA",
    "boft_": "BOFT's, which rotates weights; train LoRA",
    "vera_lambda": "VeRA's; convert it with peft's save_as_lora",
    "prompt_embeddings": "a trained prompt's; train LoRA",
    "lora_monteclora": "MonteCLoRA's, which samples its weights; train plain LoRA",
    ".original_module.": "peft's copy of a whole module (modules_to_save); train LoRA alone",
    "lora_unet_": "of an image model's adapter (kohya); this is a language model",
    "lora_te_": "of an image model's adapter (kohya); this is a language model",
    ".lora_down.": "named as diffusers does; save the adapter with peft's save_pretrained",
    ".lora_up.": "named as diffusers does; save the adapter with peft's save_pretrained",
    ".lora_a": "MLX's; convert them to peft's form (lora_A.weight, transposed)",
    ".lora_b": "MLX's; convert them to peft's form (lora_B.weight, transposed)",
}


# Whole matrices that grow with the vocabulary.
_EMBEDDINGS = tuple(
    f".{module}{kind}.weight"
    for module in ("embed_tokens", "lm_head", "wte")
    for kind in ("", ".base_layer")
)


class Factor(NamedTuple):
    """One half of an adapted layer.

    Attributes:
        path: of the layer in the model that was trained, as peft's configuration means it.
        module: the base model's path of it; None where it has none.
        half: ``A`` or ``B``.
        adapter: what peft calls the adapter within the model; mostly left out.
    """

    tensor: str
    path: str
    module: str | None
    half: str
    is_embedding: bool
    adapter: str

    @property
    def is_renamed(self) -> bool:
        prefix = self.tensor.partition(".lora_")[0]
        return bool(self.adapter) or prefix != f"{_PREFIX}{self.module}"


class TensorNames:
    """Finds the base model's layer for a tensor of an adapter."""

    def __init__(self, base: BaseModelFacts) -> None:
        self._base = base
        self._modules = base.modules
        by_core = defaultdict(list)
        for module in self._modules:
            by_core[_core(module)].append(module)
        self._by_core = {core: found[0] for core, found in by_core.items() if len(found) == 1}

    def factor(self, name: str) -> Factor | None:
        """What half of which layer a tensor is; None for anything else."""
        found = _FACTOR.fullmatch(name)
        if found is None:
            return None
        path = ".".join(s for s in found["path"].split(".") if s not in _WRAPPERS)
        path = path.removeprefix(_PREFIX)
        return Factor(
            tensor=name,
            path=path,
            module=self._module(path),
            half=found["linear"] or found["embedding"],
            is_embedding=found["embedding"] is not None,
            adapter=found["of"] or found["of_embedding"] or "",
        )

    def _module(self, path: str) -> str | None:
        if path in self._modules:
            return path
        if found := _SINGLE_EXPERT.fullmatch(path):
            experts = self._base.experts.get(self._by_core.get(_core(found["experts"]), ""))
            is_one = experts is not None and found["part"] in experts.parts
            if experts is None or not is_one or int(found["number"]) >= experts.count:
                return None
            return f"{experts.each}.{int(found['number'])}.{found['part']}"
        return self._by_core.get(_core(path))

    def is_copy(self, name: str, shape: Iterable[int]) -> bool:
        """Whether a tensor is the base model's own embedding or head, which peft saves with an
        adapter that is trained on them."""
        path, found, _ = name.removeprefix(_PREFIX).rpartition(".base_layer.weight")
        module = self._module(path) or ""
        head = {m: s for m, s in self._base.linear_shapes.items() if m.endswith("lm_head")}
        shapes = head | self._base.embedding_shapes
        return bool(found) and shapes.get(module) == tuple(shape)

    def refusal(self, name: str, shape: Iterable[int], trained_on: str) -> AdapterRefused:
        """Why a tensor that is no factor cannot be served.

        Args:
            trained_on: the base model's name, as the adapter's configuration has it.
        """
        shown, size = repr(cut(name)), list(shape)
        for part, what in _OTHERS.items():
            if part in name:
                return _refused(f"{shown} is {what}")
        if name.endswith(_EMBEDDINGS):
            return _refused(
                f"{shown} is a whole matrix of {size}: the vocabulary was resized, or the "
                "embedding trained, with the adapter. Serve the merged model as a base model, or, "
                "where no new tokens are used, save with save_embedding_layers=False"
            )
        if name.endswith(".bias"):
            return _refused(f"{shown} is a bias; train with bias='none' and lora_bias=False")
        if ".modules_to_save." in name or name.endswith((".score.weight", ".classifier.weight")):
            return _refused(f"{shown} is a whole module; only LoRA on modules can be served")
        if name.endswith(".weight") and ".lora_" not in name:
            return _refused(f"{shown} is a whole matrix of {size}; is this a merged model?")
        return _refused(f"{shown} belongs to no LoRA layer{_of(trained_on)}")

    def no_such_layer(self, factor: Factor, trained_on: str) -> AdapterRefused:
        """Why a factor cannot be served whose layer the base model has not."""
        base = self._base
        shown = repr(cut(factor.tensor))
        if factor.path in base.closed_modules or _core(factor.path) in map(
            _core, base.closed_modules
        ):
            return _refused(
                f"{shown} adapts {cut(factor.path)}, which {base.id} has, but its engine cannot "
                "adapt; train without this module"
            )
        kin = re.sub(r"\.\d+\.", ".0.", factor.path)
        if kin != factor.path and (kin in self._modules or _core(kin) in self._by_core):
            return _refused(
                f"{shown}: {base.id} has such a layer, but not so many of them; the adapter was "
                f"trained on a larger model{_of(trained_on)}"
            )
        last = factor.path.rpartition(".")[2]
        alike = next((m for m in sorted(self._modules) if m.rpartition(".")[2] == last), None)
        if alike is not None:
            return _refused(
                f"{shown} belongs to no layer of {base.id} ({base.architecture}), which has "
                f"{alike}: name the tensors so if that is meant; else it was trained on another "
                f"base model{_of(trained_on)}"
            )
        return _refused(
            f"{shown} belongs to no layer of {base.id} ({base.architecture}); it was trained on "
            f"another base model{_of(trained_on)}"
        )


def cut(name: str) -> str:
    """A name, to be shown: it may be as long as the file."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."


def _core(path: str) -> str:
    """A module's path without what differs between a model alone and the same within another."""
    for old, new in _RENAMED:
        path = path.replace(old, new)
    segments = path.split(".")
    while len(segments) > 1 and segments[0] in _LEADING:
        segments = segments[1:]
    return ".".join(segments)


def _of(trained_on: str) -> str:
    return f" ({trained_on[:100]})" if trained_on else ""


def _refused(why: str) -> AdapterRefused:
    return AdapterRefused(f"{WEIGHTS}: {why}", param="source")
