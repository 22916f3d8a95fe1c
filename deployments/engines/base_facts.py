"""What adapters of a base model must match, read off its checkpoint's config, not its weights."""

import hashlib
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from adapter_store.files.beside import template_of, vocabulary_of
from cluster.adapters import BaseModelFacts, Experts
from cluster.errors import ConfigError
from cluster.settings import BaseModelSettings

# The two stacked parameters of a layer's experts, in transformers from 5 on.
_STACKED = {"gate_up_proj", "down_proj"}
_ROUTERS = ("gate", "router")
# An expert's gate, up and down, where they are layers of their own: in older files.
_PARTS = ("gate_proj", "up_proj", "down_proj")
_MIXTRAL_PARTS = ("w1", "w3", "w2")


def base_model_facts(settings: BaseModelSettings, path: str, config: Any) -> BaseModelFacts:
    """All that its model has; :func:`only_adaptable` leaves what its engine can adapt.

    Args:
        config: of transformers, as the engine has it.

    Raises:
        ConfigError: transformers does not know the model.
    """
    model = _without_weights(config)
    linear, embedding, experts = _layers(model, config.model_type)
    return BaseModelFacts(
        id=settings.id,
        architecture=type(model).__name__,
        fingerprint=_fingerprint(model, path),
        max_rank=settings.lora.max_rank,
        linear_shapes=linear,
        embedding_shapes=embedding,
        experts=experts,
        is_tied=_is_tied(config),
        name=settings.path,
        chat_template=template_of(Path(path)),
        vocabulary=vocabulary_of(Path(path)),
    )


def only_adaptable(facts: BaseModelFacts, adaptable: set[str]) -> BaseModelFacts:
    """Without the layers that the engine cannot adapt, which keep their names in
    `closed_modules`."""

    def kept(layers: dict[str, Any]) -> dict[str, Any]:
        return {module: shape for module, shape in layers.items() if module in adaptable}

    return facts.model_copy(
        update={
            "linear_shapes": kept(facts.linear_shapes),
            "embedding_shapes": kept(facts.embedding_shapes),
            "experts": kept(facts.experts),
            "closed_modules": tuple(sorted(facts.modules - adaptable)),
        }
    )


def _is_tied(config: Any) -> bool:
    """Some configs say it of their text, some of the whole."""
    of_all = getattr(config, "tie_word_embeddings", False)
    return bool(getattr(config.get_text_config(), "tie_word_embeddings", of_all))


def _without_weights(config: Any) -> nn.Module:
    """The class that the checkpoint names, as vLLM goes by: no auto class knows all of them."""
    named = getattr(transformers, (config.architectures or [""])[0], None)
    with torch.device("meta"):
        if named is not None:
            model: nn.Module = named._from_config(config)  # noqa: SLF001  (of transformers)
            return model
        try:
            return transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-any-return]  # of transformers
        except ValueError as e:
            raise ConfigError(f"transformers has no model for {type(config).__name__}") from e


Layers = tuple[dict[str, tuple[int, int]], dict[str, tuple[int, int]], dict[str, Experts]]


def _layers(model: nn.Module, model_type: str) -> Layers:
    """Linear layers, embeddings, experts."""
    linear: dict[str, tuple[int, int]] = {}
    embedding: dict[str, tuple[int, int]] = {}
    experts: dict[str, Experts] = {}
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.Linear):
            linear[name] = (module.out_features, module.in_features)
        elif isinstance(module, nn.Embedding):
            embedding[name] = (module.num_embeddings, module.embedding_dim)
        elif own.keys() >= _STACKED:
            experts[name] = _experts(name, module, model_type)
        elif name.rpartition(".")[2] in _ROUTERS and getattr(own.get("weight"), "ndim", 0) == 2:
            rows, columns = own["weight"].shape
            linear[name] = (rows, columns)
        elif isinstance(module, Conv1D):  # of gpt2: (in, out), which vLLM does not adapt
            columns, rows = module.weight.shape
            linear[name] = (rows, columns)
    return linear, embedding, experts


def _experts(path: str, module: nn.Module, model_type: str) -> Experts:
    def shape(parameter: torch.Tensor) -> tuple[int, int]:
        _, rows, columns = parameter.shape
        # GPT-OSS and Llama 4 keep them as (experts, in, out).
        return (columns, rows) if is_transposed else (rows, columns)

    gate_up, down = module.get_parameter("gate_up_proj"), module.get_parameter("down_proj")
    # Both have the hidden size once: gate_up as what comes in, down as what goes out.
    is_transposed = gate_up.shape[1] == down.shape[2] and gate_up.shape[2] == 2 * down.shape[1]
    found = Experts(count=len(gate_up), gate_up=shape(gate_up), down=shape(down))
    if is_transposed:
        return found  # it never had single ones
    is_mixtral = model_type == "mixtral"
    each = path.replace(".mlp.", ".block_sparse_moe.") if is_mixtral else path
    parts = _MIXTRAL_PARTS if is_mixtral else _PARTS
    return found.model_copy(update={"each": each, "parts": parts})


def _fingerprint(model: nn.Module, path: str) -> str:
    """sha256 over architecture, shapes of linear layers (without the head), and tokenizer."""
    head = model.get_output_embeddings()  # type: ignore[operator]  # of transformers
    shapes = sorted(
        (name, (module.out_features, module.in_features))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    )
    tokenizer = Path(path) / "tokenizer.json"
    digest = hashlib.sha256(tokenizer.read_bytes()).hexdigest() if tokenizer.is_file() else path
    described = f"{type(model).__name__}\n{shapes}\n{digest}"
    return hashlib.sha256(described.encode()).hexdigest()
