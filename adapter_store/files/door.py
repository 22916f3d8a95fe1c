"""The checks at the door: what an adapter must be before anything of it is stored."""

import hashlib
import json
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open

from adapter_store.files.blobs import CONFIG, WEIGHTS, digest_of, size_of
from cluster.adapters import BaseModelFacts
from cluster.errors import AdapterRefused
from cluster.values import Value

# Far beyond any trained adapter. One that overflows leaves NaN in the engine's KV cache, from where
# it silences the requests of every other tenant.
MAX_WEIGHT = 1e3
MAX_SCALE = 1000
# Truthy, these change what an adapter computes, in ways that the engine does not know.
_UNSUPPORTED = frozenset(
    {
        "alora_invocation_tokens",
        "alpha_pattern",
        "fan_in_fan_out",
        "layer_replication",
        "lora_bias",
        "modules_to_save",
        "rank_pattern",
        "target_parameters",
        "trainable_token_indices",
    }
)
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_PREFIX = "base_model.model."
_FACTORS = {".lora_A.weight": "A", ".lora_B.weight": "B"}


class Checked(Value):
    """What the checks learnt."""

    digest: str
    size_bytes: int
    rank: int
    target_modules: tuple[str, ...]


def check_adapter(folder: Path, base: BaseModelFacts) -> Checked:
    """Check a staged adapter against the base model that it is for.

    Raises:
        AdapterRefused: names the file, the key and the remedy.
    """
    rank = _check_config(read_json_object(folder / CONFIG), base)
    return Checked(
        digest=digest_of(folder),
        size_bytes=size_of(folder),
        rank=rank,
        target_modules=_check_weights(folder / WEIGHTS, rank, base),
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


def check_base(base: BaseModelFacts, expected: str) -> None:
    """The base model is the one that the adapter was trained on."""
    if expected != base.fingerprint:
        raise AdapterRefused(
            f"the adapter is for a base model with fingerprint {expected}, {base.id} here has "
            f"{base.fingerprint}; register it for the base model that it was trained on",
            param="base_fingerprint",
        )


def read_json_object(path: Path) -> dict[str, Any]:
    """A file of an adapter's folder as a JSON object; raises :class:`AdapterRefused`."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as e:
        raise AdapterRefused(f"{path.name} is not JSON: {e}", param="source") from e
    if not isinstance(value, dict):
        raise AdapterRefused(f"{path.name} must be a JSON object", param="source")
    return value


def _check_config(config: dict[str, Any], base: BaseModelFacts) -> int:
    if config.get("peft_type") != "LORA":
        _refuse_key("peft_type", config.get("peft_type"), "only LORA adapters can be served")
    _check_features(config)
    _check_targets(config.get("target_modules"), base)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= base.max_rank:
        _refuse_key("r", rank, f"{base.id} takes ranks from 1 to {base.max_rank} (lora.max_rank)")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        _refuse_key("lora_alpha", alpha, "a number is needed")
    # Also refuses NaN, which no comparison holds for.
    if not abs(alpha) <= MAX_SCALE * rank:
        _refuse_key("lora_alpha", str(alpha)[:40], f"at most {MAX_SCALE} times r can be served")
    return rank


def _check_features(config: dict[str, Any]) -> None:
    """Refuse by name what the engine would not compute as training did."""
    if config.get("use_dora"):
        _refuse_key("use_dora", True, "the engine cannot apply DoRA; merge it or train plain LoRA")
    if config.get("use_rslora") not in (None, True, False):
        _refuse_key("use_rslora", config["use_rslora"], "true or false is needed")
    for key in sorted(config):
        unknown_variant = key.startswith("use_") and key != "use_rslora"
        if config[key] and (key in _UNSUPPORTED or unknown_variant):
            _refuse_key(key, config[key], "the engine cannot apply it; train without")
    if config.get("bias", "none") != "none":
        _refuse_key("bias", config["bias"], "train with bias='none'")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        _refuse_key(
            "init_lora_weights",
            start,
            "it changes the base model; save with path_initial_model_for_weight_conversion",
        )


def _check_targets(targets: Any, base: BaseModelFacts) -> None:
    if targets is None or isinstance(targets, str):  # a pattern; the tensors tell what it matched
        return
    if not isinstance(targets, list) or not all(isinstance(t, str) for t in targets):
        _refuse_key("target_modules", targets, "a list of module names is needed")
    for target in targets:
        if not any(m == target or m.endswith(f".{target}") for m in base.linear_shapes):
            _refuse_key("target_modules", target, f"{base.id} has no such linear layer")


def _refuse_key(key: str, value: Any, remedy: str) -> NoReturn:
    shown = json.dumps(value)
    shown = shown if len(shown) <= 100 else shown[:97] + "..."
    raise AdapterRefused(f"{CONFIG}: {key} is {shown}; {remedy}", param="source")


def _check_weights(path: Path, rank: int, base: BaseModelFacts) -> tuple[str, ...]:
    try:
        with safe_open(path, framework="pt") as tensors:
            factors = _pair_factors(tensors.keys(), base)
            for module, pair in factors.items():
                out_features, in_features = base.linear_shapes[module]
                _check_tensor(tensors, pair["A"], (rank, in_features))
                _check_tensor(tensors, pair["B"], (out_features, rank))
    except SafetensorError as e:
        raise AdapterRefused(
            f"{WEIGHTS} is not a safetensors file{_disguise(path)}: {e}", param="source"
        ) from e
    return tuple(sorted({module.rpartition(".")[2] for module in factors}))


def _disguise(path: Path) -> str:
    """What the file is instead, by its content."""
    with path.open("rb") as file:
        start = file.read(4)
    is_pickle = start[:1] == b"\x80" and len(start) > 1 and start[1] <= 5
    if is_pickle or start == b"PK\x03\x04":  # torch.save writes a zip around a pickle
        return " but a pickle or torch checkpoint, which can run code when it is read"
    return ""


def _pair_factors(names: list[str], base: BaseModelFacts) -> dict[str, dict[str, str]]:
    """Tensor names by module and factor: ``{module: {"A": name, "B": name}}``."""
    factors: dict[str, dict[str, str]] = {}
    for name in names:
        suffix = next((s for s in _FACTORS if name.endswith(s)), None)
        module = name.removeprefix(_PREFIX).removesuffix(suffix or "")
        if suffix is None or not name.startswith(_PREFIX) or module not in base.linear_shapes:
            raise AdapterRefused(
                f"{WEIGHTS}: tensor {name[:200]!r} belongs to no linear layer of {base.id} "
                f"({base.architecture}); was the adapter trained on another base model?",
                param="source",
            )
        factors.setdefault(module, {})[_FACTORS[suffix]] = name
    if not factors:
        raise AdapterRefused(f"{WEIGHTS} holds no LoRA tensors", param="source")
    for module, pair in factors.items():
        if len(pair) != 2:
            missing = "B" if "A" in pair else "A"
            raise AdapterRefused(f"{WEIGHTS}: {module} has no lora_{missing}", param="source")
    return factors


def _check_tensor(tensors: Any, name: str, expected: tuple[int, int]) -> None:
    shape = tuple(tensors.get_slice(name).get_shape())
    if shape != expected:
        raise AdapterRefused(
            f"{WEIGHTS}: {name} has shape {list(shape)}, the base model needs {list(expected)}",
            param="source",
        )
    tensor = tensors.get_tensor(name)
    if tensor.dtype not in _DTYPES or not (tensor.abs() <= MAX_WEIGHT).all():
        raise AdapterRefused(
            f"{WEIGHTS}: {name} must be float32, float16 or bfloat16 with finite values of at "
            f"most {MAX_WEIGHT:g}; was the training stable?",
            param="source",
        )
