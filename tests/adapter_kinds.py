"""Adapters as trainers save them, and what becomes of each: a test's cases, and the docs'."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapter_store.files.blobs import CONFIG, WEIGHTS

RESULTS = Path(__file__).parents[1] / "docs" / "adapter-kinds.json"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
CLOSE = 1e-4

Change = Callable[[Path], None]


def nothing(folder: Path) -> None:
    """As peft saved it."""


@dataclass(frozen=True)
class Kind:
    """One kind of adapter.

    Attributes:
        what: trainer, method or flag, as the docs have it.
        lora: arguments of peft's LoraConfig that it is made with.
        change: what is done to the folder that peft saved.
        refused: part of the refusal; None when it is served.
        notice: part of the notice that it is served with.
        as_changed: whether peft, too, is to read the changed folder; else the one that it saved.
    """

    what: str
    lora: dict[str, Any] = field(default_factory=dict)
    change: Change = nothing
    refused: str | None = None
    notice: str | None = None
    as_changed: bool = False


def config(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        found = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(found | changes))

    return change


def encoded(encoding: str) -> Change:
    def change(folder: Path) -> None:
        (folder / CONFIG).write_bytes((folder / CONFIG).read_text().encode(encoding))

    return change


def tensors(edit: Callable[[dict[str, Any]], dict[str, Any]]) -> Change:
    def change(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        save_file(edit(load_file(folder / WEIGHTS)), folder / WEIGHTS)

    return change


def renamed(old: str, new: str) -> Change:
    return tensors(lambda found: {k.replace(old, new, 1): v for k, v in found.items()})


def with_tensor(name: str, *shape: int) -> Change:
    import torch

    return tensors(lambda found: found | {name: torch.zeros(*shape)})


def cast(dtype: str) -> Change:
    import torch

    return tensors(lambda found: {k: v.to(getattr(torch, dtype)) for k, v in found.items()})


def zero_b(found: dict[str, Any]) -> dict[str, Any]:
    return {k: v * 0 if "lora_B" in k else v for k, v in found.items()}


def beside(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content) and None


def instead(name: str, content: bytes = b"x", *, of: str = WEIGHTS) -> Change:
    """A folder that has another file in the place of one of peft's."""

    def change(folder: Path) -> None:
        (folder / of).unlink()
        (folder / name).write_bytes(content)

    return change


_ATTENTION_0 = "base_model.model.model.layers.0.self_attn.q_proj"
_TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"

SERVED = [
    Kind("LoRA on attention"),
    Kind("on all linear layers", {"target_modules": "all-linear"}),
    Kind(
        "`All-Linear`",
        {"target_modules": "all-linear"},
        change=config(target_modules="All-Linear"),
        as_changed=True,
    ),
    Kind(
        "a whole path beside layers chosen",
        {"target_modules": ["model.layers.1.mlp.up_proj", "v_proj"], "layers_to_transform": [0]},
    ),
    Kind(
        "trained as another task",
        change=config(task_type="SEQ_2_SEQ_LM"),
        notice="task_type is SEQ_2_SEQ_LM",
    ),
    Kind("`target_modules`: a pattern", {"target_modules": r".*\.(q_proj|down_proj)"}),
    Kind("full paths", {"target_modules": ["model.layers.1.mlp.up_proj", "layers.0.mlp.up_proj"]}),
    Kind("some that this base model has not", {"target_modules": ["q_proj", "c_attn", "w1"]}),
    Kind(
        "fewer modules than there are tensors for",
        change=config(target_modules=["q_proj", "o_proj"]),
        notice="the configuration does not name them: model.layers.0.self_attn.k_proj",
        as_changed=True,
    ),
    Kind(
        "fewer layers than there are tensors for",
        change=config(layers_to_transform=[1]),
        notice="model.layers.0.self_attn.k_proj, model.layers.0.self_attn.o_proj, ",
        as_changed=True,
    ),
    Kind("`layers_to_transform`: a list", {"layers_to_transform": [0, 2]}),
    Kind("`layers_to_transform`: a number", {"layers_to_transform": 1}),
    Kind("`layers_pattern`", {"layers_to_transform": [0], "layers_pattern": "layers"}),
    Kind("`exclude_modules`", {"exclude_modules": r".*layers\.1\..*"}),
    Kind("rsLoRA", {"use_rslora": True}),
    Kind("`rank_pattern`", {"rank_pattern": {"v_proj": 2, "model.layers.1.self_attn.q_proj": 8}}),
    Kind("`rank_pattern`: regular expressions", {"rank_pattern": {r"layers\.[01]\..*_proj": 1}}),
    Kind(
        "`alpha_pattern`, with rsLoRA",
        {"alpha_pattern": {r"self_attn\.(q|k)_proj": 3, "v_proj": 11}, "use_rslora": True},
    ),
    Kind("begun with gaussian", {"init_lora_weights": "gaussian"}),
    Kind("begun with orthogonal", {"init_lora_weights": "orthogonal"}),
    Kind("begun with EVA", change=config(init_lora_weights="eva", eva_config={"rho": 2.0})),
    Kind(
        "begun with LoRA-GA", change=config(init_lora_weights="lora_ga"), notice="shifts the base"
    ),
    Kind("VeLoRA", change=config(velora_config={"num_groups": 32})),
    Kind("dropout", {"lora_dropout": 0.3}),
    Kind("`fan_in_fan_out`", change=config(fan_in_fan_out=True)),
    Kind("on the head", {"target_modules": ["q_proj", "lm_head"]}, notice="is taken for a copy"),
    Kind(
        "on the embedding",
        {"target_modules": ["q_proj", "embed_tokens"]},
        notice="is taken for a copy",
    ),
    Kind(
        "on head and embedding, saved without copies",
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        change=tensors(lambda t: {k: v for k, v in t.items() if "base_layer" not in k}),
    ),
    Kind("float16", change=cast("float16"), as_changed=True),
    Kind("bfloat16", change=cast("bfloat16"), as_changed=True),
    Kind("float64", change=cast("float64"), notice="its tensors are float64"),
    Kind("alpha 0", change=config(lora_alpha=0), notice="lora_alpha is 0", as_changed=True),
    Kind("never trained (B is zero)", change=tensors(zero_b), notice="zero", as_changed=True),
    Kind("configuration with a byte-order mark", change=encoded("utf-8-sig")),
    Kind("configuration in UTF-16", change=encoded("utf-16")),
    Kind(
        "own save: torch.compile's `_orig_mod`",
        change=renamed("model.model.", "model._orig_mod.model."),
        notice="24 tensors have other names",
    ),
    Kind(
        "own save: `.default.` kept", change=renamed(".weight", ".default.weight"), notice="names"
    ),
    Kind(
        "own save: one `model.` more",
        change=renamed("base_model.", "base_model.model."),
        notice="names",
    ),
    Kind("own save: no prefix", change=renamed("base_model.model.", ""), notice="names"),
    Kind(
        "own save: DDP's `module.`",
        change=renamed("base_model.model.", "module.base_model.model."),
        notice="names",
    ),
    Kind(
        "with a copy of the embedding",
        change=with_tensor("base_model.model.model.embed_tokens.base_layer.weight", 512, 128),
        notice="is taken for a copy",
    ),
    Kind(
        "another chat template beside it",
        change=beside("chat_template.jinja", _TEMPLATE + "!"),
        notice="another chat template",
    ),
    Kind(
        "another tokenizer beside it",
        change=beside("tokenizer.json", json.dumps({"model": {"vocab": {"a": 0}}})),
        notice="another tokenizer",
    ),
    Kind(
        "another base model's name, and the same shapes",
        change=config(base_model_name_or_path="org/Big-7B"),
        notice="it was trained on 'org/Big-7B'",
    ),
]

REFUSED = [
    Kind("rank above the limit", {"r": 16}, refused="takes ranks from 1 to 8"),
    Kind("a pattern's rank above it", {"rank_pattern": {"q_proj": 9}}, refused="rank is 9"),
    Kind("`target_modules` missing", change=config(target_modules=None), refused="target_modules"),
    Kind(
        "`target_modules` that name no tensor",
        change=config(target_modules=["up_proj"]),
        refused="no tensor is of a module that target_modules names",
    ),
    Kind("DoRA", {"use_dora": True}, refused="use_dora is true; DoRA"),
    Kind("biases", change=config(bias="lora_only"), refused="bias='none'"),
    Kind("`lora_bias`", change=config(lora_bias=True), refused="lora_bias is true"),
    Kind("`modules_to_save`", {"modules_to_save": ["lm_head"]}, refused="modules_to_save"),
    Kind(
        "`trainable_token_indices`",
        {"trainable_token_indices": [1]},
        refused="trainable_token_indices is [1]; it changes single rows",
    ),
    Kind(
        "PiSSA, not converted",
        change=config(init_lora_weights="pissa_niter_4"),
        refused="it changes the base",
    ),
    Kind(
        "OLoRA, not converted",
        change=config(init_lora_weights="olora"),
        refused="it changes the base",
    ),
    Kind(
        "CorDA, not converted",
        change=config(init_lora_weights="corda"),
        refused="it changes the base",
    ),
    Kind("LoftQ", change=config(init_lora_weights="loftq"), refused="it changes the base"),
    Kind("an unknown start", change=config(init_lora_weights="sparkle"), refused="not known here"),
    Kind("KaSA", change=config(kasa_config={"beta": 1e-4}), refused="KaSA"),
    Kind("MonteCLoRA", change=config(monteclora_config={"n": 1}), refused="MonteCLoRA"),
    Kind("Arrow", change=config(arrow_config={"top_k": 3}), refused="Arrow"),
    Kind("aLoRA", {"alora_invocation_tokens": [1, 2]}, refused="activated LoRA"),
    Kind(
        "`layer_replication`",
        change=config(layer_replication=[[0, 2], [1, 3]]),
        refused="layer_replication",
    ),
    Kind("QA-LoRA", change=config(use_qalora=True), refused="QA-LoRA"),
    Kind("BD-LoRA", change=config(use_bdlora={"nblocks": 2}), refused="block-diagonal"),
    Kind("a variant that nobody knows", change=config(use_sparkle=True), refused="use_sparkle"),
    Kind(
        "a method that nobody knows",
        change=config(sparkle_config={"a": 1}),
        refused="sparkle_config",
    ),
    Kind(
        "LoHa",
        change=config(peft_type="LOHA"),
        refused='peft_type is "LOHA"; LORA is what can be served',
    ),
    Kind("IA3", change=config(peft_type="IA3"), refused='peft_type is "IA3"'),
    Kind(
        "a resized vocabulary",
        change=with_tensor("base_model.model.lm_head.weight", 520, 128),
        refused="is a whole matrix of [520, 128]: the vocabulary was resized",
    ),
    Kind(
        "a resized vocabulary, adapted",
        change=with_tensor("base_model.model.lm_head.base_layer.weight", 520, 128),
        refused="is a whole matrix of [520, 128]: the vocabulary was resized",
    ),
    Kind(
        "a larger model's",
        change=renamed("layers.0.", "layers.30."),
        refused="not so many of them",
    ),
    Kind(
        "another architecture's (gpt2)",
        change=renamed("model.layers.0.self_attn.q_proj", "transformer.h.0.attn.q_proj"),
        refused="belongs to no layer of tiny (LlamaForCausalLM), which has",
    ),
    Kind("tensors of another rank", change=config(r=2), refused="has rank 4 (shape [4, 128])"),
    Kind(
        "half a pair",
        change=tensors(
            lambda t: {k: v for k, v in t.items() if k != f"{_ATTENTION_0}.lora_B.weight"}
        ),
        refused="has no lora_B",
    ),
    Kind(
        "two adapters in one file",
        change=with_tensor(f"{_ATTENTION_0}.lora_A.other.weight", 4, 128),
        refused="tensors of several adapters (default, other)",
    ),
    Kind(
        "values that are not finite",
        change=tensors(lambda t: {k: v / 0 for k, v in t.items()}),
        refused="finite values",
    ),
    Kind(
        "a pattern without an end",
        change=config(rank_pattern={"(.|..|...)+[^a-z]": 2}),
        refused="rank_pattern",
    ),
    Kind(
        "no pattern at all", change=config(exclude_modules="(["), refused="not a regular expression"
    ),
    Kind(
        "sharded",
        change=instead("adapter_model-00001-of-00002.safetensors"),
        refused="saved in shards",
    ),
    Kind("`adapter_model.bin`", change=instead("adapter_model.bin"), refused="pickle"),
    Kind("MLX", change=instead("adapters.safetensors"), refused="is an adapter of MLX"),
    Kind("LeRobot", change=instead("train_config.json"), refused="LeRobot"),
    Kind("llama.cpp's GGUF", change=instead("adapter.gguf"), refused="llama.cpp"),
    Kind("a whole model", change=instead("model.safetensors"), refused="a whole model"),
    Kind("a training run's folder", change=instead("checkpoint-500"), refused="a training run"),
]


def table() -> list[str]:
    """Of the docs, from what the test has found."""
    found: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text())
    lines = ["| kind | what happens | difference from peft |", "|---|---|---|"]
    for what, row in found.items():
        difference = row.get("difference")
        shown = "" if difference is None else f"{difference:.0e}"
        lines.append(f"| {what} | {row['says']} | {shown} |")
    return lines
