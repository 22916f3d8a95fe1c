"""What peft's `adapter_config.json` says of an adapter, read once, by peft's rules.

The door and the engines read it here, so that what passes is what will be applied.
"""

import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import regex

from adapter_store.files.blobs import CONFIG
from adapter_store.files.disguise import disguise_of
from cluster.errors import AdapterRefused

# Of a layer's factors: alpha by rank.
MAX_SCALE = 1000
_UNKNOWN = (
    "not known here; remove the key if it only steered training, else train plain LoRA or convert "
    "it with peft's save_as_lora"
)
_OF_THE_TRAINER = "train plain LoRA, or convert it with peft's save_as_lora"
# True, or set: what the adapter then computes is not B A x scale, and what can be done about it.
_OTHER_METHODS = {
    "alora_invocation_tokens": "an activated LoRA; " + _OF_THE_TRAINER,
    "arrow_config": "a router over other adapters (Arrow); register those, and ask for `auto`",
    "kasa_config": "KaSA, which also cuts the base model's weights; train plain LoRA",
    "layer_replication": "it doubles layers of the base model; serve the model so made as a base",
    "lora_bias": "its factors have biases; train with lora_bias=False",
    "monteclora_config": "MonteCLoRA, which samples its weights; " + _OF_THE_TRAINER,
    "trainable_token_indices": "it changes single rows of the embedding; train without",
    "use_bdlora": "block-diagonal LoRA; " + _OF_THE_TRAINER,
    "use_dora": "DoRA, which scales the base model's weights; " + _OF_THE_TRAINER,
    "use_qalora": "QA-LoRA, which pools its input; " + _OF_THE_TRAINER,
}
# Set, they tell how training began or went on; what is saved computes as plain LoRA.
_OF_TRAINING = frozenset(
    {
        "corda_config",
        "eva_config",
        "loftq_config",
        "lora_ga_config",
        "megatron_config",
        "runtime_config",
        "velora_config",
    }
)
_STARTS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
# Long for any pattern that a trainer wrote; a hostile one would take for ever.
_MATCHING_S = 3.0
# peft's, of rank and alpha.
_DEFAULT = 8
_LONGEST_PATTERN = 10_000
# No model has more layers; Python refuses to read thousands.
_DIGITS = 9


def read_json_object(path: Path) -> dict[str, Any]:
    """A file of an adapter's folder as a JSON object, in UTF-8 or 16, with or without a mark.

    Raises:
        AdapterRefused: it is none.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as e:
        raise AdapterRefused(
            f"{path.name} is not JSON{disguise_of(path)}: {e}", param="source"
        ) from e
    if not isinstance(value, dict):
        raise AdapterRefused(f"{path.name} must be a JSON object", param="source")
    return value


@dataclass(frozen=True)
class PeftConfig:
    """A plain LoRA adapter, as peft would apply it.

    Attributes:
        rank, alpha: where no pattern says otherwise.
        ties_weights: embedding and head are adapted together, where they are one matrix.
        base_name: of the base model that it was trained on, as its trainer called it.
    """

    rank: int
    alpha: float
    use_rslora: bool
    ties_weights: bool
    base_name: str
    notices: tuple[str, ...]
    _targets: "_Targets"
    _ranks: "_ByModule"
    _alphas: "_ByModule"

    @classmethod
    def read(cls, folder: Path) -> "PeftConfig":
        """Of an adapter's folder.

        Raises:
            AdapterRefused: names the key and the remedy.
        """
        config = read_json_object(folder / CONFIG)
        _check_method(config)
        until = time.monotonic() + _MATCHING_S
        rank = _rank(config.get("r", _DEFAULT), "r")
        alpha = _number(config.get("lora_alpha", _DEFAULT), "lora_alpha")
        rslora = config.get("use_rslora")
        if rslora not in (None, True, False):
            _refuse("use_rslora", rslora, "true or false is needed")
        base_name = config.get("base_model_name_or_path")
        return cls(
            rank=rank,
            alpha=alpha,
            use_rslora=bool(rslora),
            ties_weights=bool(config.get("ensure_weight_tying")),
            base_name=base_name if isinstance(base_name, str) else "",
            notices=_notices(config, alpha),
            _targets=_Targets.read(config, until),
            _ranks=_ByModule.read(config, "rank_pattern", _rank, until),
            _alphas=_ByModule.read(config, "alpha_pattern", _number, until),
        )

    def adapts(self, module: str, *, is_linear: bool = True) -> bool:
        """Whether a module, by its path in the model that was trained, is one that it adapts.

        Args:
            is_linear: what `all-linear` means; embeddings and experts are not.
        """
        return self._targets.fit(module, is_linear)

    def adapts_half(self, experts: str) -> bool:
        """Whether one alone of the two stacked parameters of experts is adapted; the file calls
        either as it calls `down_proj`."""
        both = (f"{experts}.gate_up_proj", f"{experts}.down_proj")
        return sum(self._targets.parameters.fit(parameter) for parameter in both) == 1

    def rank_of(self, module: str) -> int:
        found: int = self._ranks.of(_in_patterns(module), self.rank)
        return found

    def scale_of(self, module: str, rank: int) -> float:
        """What B A is multiplied with: alpha / r, or alpha / sqrt(r) (rsLoRA, arXiv 2312.03732)."""
        alpha: float = self._alphas.of(_in_patterns(module), self.alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


@dataclass(frozen=True)
class _Pattern:
    """A regular expression of a stranger: it may take its time, but no more."""

    key: str
    compiled: "regex.Pattern[str]"
    until: float

    @classmethod
    def read(cls, key: str, pattern: str, until: float) -> "_Pattern":
        if len(pattern) > _LONGEST_PATTERN or time.monotonic() > until:
            _refuse(key, pattern, "the patterns are too long, or too many; write them simpler")
        try:
            re.compile(pattern)  # peft's; `regex`, which alone can be stopped, takes more
            return cls(key, regex.compile(pattern), until)
        except (re.error, regex.error, RecursionError, OverflowError) as e:
            raise AdapterRefused(
                f"{CONFIG}: {key}: {pattern[:100]!r} is not a regular expression: {e}",
                param="source",
            ) from e

    def match(self, module: str, *, whole: bool = False) -> "regex.Match[str] | None":
        match = self.compiled.fullmatch if whole else self.compiled.match
        try:
            left_s = self.until - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            return match(module, concurrent=True, timeout=left_s)
        except TimeoutError as e:
            raise AdapterRefused(
                f"{CONFIG}: {self.key}: {self.compiled.pattern[:100]!r} takes too long to match; "
                "write it simpler",
                param="source",
            ) from e


@dataclass(frozen=True)
class _ByModule:
    """What a pattern at the end of a module's path says of it; the first that fits counts
    (peft's `get_pattern_key`)."""

    patterns: tuple[tuple[_Pattern, Any], ...]

    @classmethod
    def read(
        cls, config: dict[str, Any], key: str, value: Callable[[Any, str], Any], until: float
    ) -> "_ByModule":
        given = config.get(key) or {}
        if not isinstance(given, dict):
            _refuse(key, given, "an object of names or patterns is needed")
        return cls(
            tuple(
                (_Pattern.read(key, rf"(.*\.)?({name})$", until), value(of, f"{key}: {name}"))
                for name, of in given.items()
            )
        )

    def of(self, module: str, otherwise: Any) -> Any:
        return next((v for pattern, v in self.patterns if pattern.match(module)), otherwise)


@dataclass(frozen=True)
class _Names:
    """Modules by the ends of their paths, or by one pattern for the whole path."""

    ends: tuple[str, ...]
    pattern: _Pattern | None = None

    @classmethod
    def read(cls, key: str, value: Any, until: float) -> "_Names":
        if isinstance(value, str):
            return cls((), _Pattern.read(key, value, until))
        return cls(_strings(key, value))

    def fit(self, module: str) -> bool:
        if self.pattern is not None:
            return self.pattern.match(module, whole=True) is not None
        return any(module == end or module.endswith(f".{end}") for end in self.ends)


@dataclass(frozen=True)
class _Targets:
    """Which modules are adapted (peft's `check_target_module_exists`)."""

    named: _Names | None  # None: every linear layer but the head
    excluded: _Names
    layers: frozenset[int]
    layer_patterns: tuple[_Pattern, ...]
    parameters: _Names

    @classmethod
    def read(cls, config: dict[str, Any], until: float) -> "_Targets":
        named = config.get("target_modules")
        parameters = config.get("target_parameters")
        if not named and not parameters:
            _refuse("target_modules", named, "name the modules that were trained, as peft does")
        layers = config.get("layers_to_transform")
        is_all = isinstance(named, str) and named.lower() == "all-linear"
        indexes = [layers] if isinstance(layers, int) else layers or []
        if not isinstance(indexes, list) or not all(type(i) is int for i in indexes):
            _refuse("layers_to_transform", layers, "a number or a list of numbers is needed")
        parents = config.get("layers_pattern") or []
        parents = _strings("layers_pattern", [parents] if isinstance(parents, str) else parents)
        # The number behind the layers' own name, or the first one in the path.
        found = [rf"(?:^|.*?\.){parent}\.(?P<index>\d+)\." for parent in parents]
        found = found or [r".*?\.[^.]*\.(?P<index>\d+)\."]
        return cls(
            named=(None if is_all else _Names.read("target_modules", named or [], until)),
            parameters=_Names.read("target_parameters", parameters or [], until),
            excluded=_Names.read("exclude_modules", config.get("exclude_modules") or [], until),
            layers=frozenset(indexes),
            layer_patterns=tuple(_Pattern.read("layers_pattern", p, until) for p in found),
        )

    def fit(self, module: str, is_linear: bool) -> bool:
        if self.excluded.fit(module):
            return False
        if any(self.parameters.fit(parameter) for parameter in _parameters(module)):
            return True
        if self.named is None:  # which peft makes a list of
            is_named = is_linear and module.rpartition(".")[2] != "lm_head"
        else:
            is_named = self.named.fit(module)
        if not is_named:
            return False
        # A whole path names its layer, and so, peft expects, does a pattern for one.
        is_whole = self.named is not None and (
            self.named.pattern is not None or module in self.named.ends
        )
        is_free = not self.layers or is_whole
        return is_free or self._layer_of(module) in self.layers

    def _layer_of(self, module: str) -> int | None:
        for pattern in self.layer_patterns:
            if found := pattern.match(module):
                return int(found["index"][:_DIGITS])
        return None


def _in_patterns(module: str) -> str:
    """The name that patterns of ranks and alphas mean: of experts, the parameter's."""
    parameter = _parameters(module)[0]
    return module if parameter.endswith(".weight") else parameter


def _parameters(module: str) -> tuple[str, ...]:
    """What peft calls a module's parameters, of which the two of experts have modules of their own
    in its files."""
    stacked, _, _ = module.rpartition(".base_layer")
    if stacked.endswith(".experts"):
        return (f"{stacked}.gate_up_proj",)
    if module.endswith(".experts"):
        return (f"{module}.down_proj",)
    return (f"{module}.weight",)


def _check_method(config: dict[str, Any]) -> None:
    """Refuse by its name what does not compute as plain LoRA."""
    kind = config.get("peft_type")
    if kind is None and "lora_parameters" in config:
        raise AdapterRefused(
            f"{CONFIG} is MLX's; convert the adapter to peft's form (mlx_lm.fuse makes a whole "
            "model, which can be served as a base)",
            param="source",
        )
    if kind is None:
        _refuse("peft_type", None, "it is missing; LORA is what peft writes for a LoRA adapter")
    if kind != "LORA":
        _refuse(
            "peft_type", kind, "LORA is what can be served; convert it with peft's save_as_lora"
        )
    for key in sorted(config):
        if not config[key]:
            continue
        if key in _OTHER_METHODS:
            _refuse(key, config[key], _OTHER_METHODS[key])
        is_method = key.startswith("use_") or key.endswith("_config")
        if is_method and key != "use_rslora" and key not in _OF_TRAINING:
            _refuse(key, config[key], _UNKNOWN)
    _check_other_weights(config)
    _check_start(config.get("init_lora_weights"))


def _check_other_weights(config: dict[str, Any]) -> None:
    if modules := config.get("modules_to_save"):
        remedy = (
            "whole modules cannot be served beside others' requests (a classifier's head not at "
            "all); train with LoRA on them"
        )
        _refuse("modules_to_save", modules, remedy)
    if config.get("bias") not in (None, "none"):
        _refuse("bias", config["bias"], "train with bias='none'")


def _check_start(start: Any) -> None:
    if start is None or isinstance(start, bool):
        return
    name = start.lower() if isinstance(start, str) else ""
    if name.startswith(_CHANGES_BASE):
        remedy = "it changes the base model; save with path_initial_model_for_weight_conversion"
        _refuse("init_lora_weights", start, remedy)
    if name not in _STARTS:
        remedy = (
            "not known here; set it to true if it only chose the weights that training began at"
        )
        _refuse("init_lora_weights", start, remedy)


def _notices(config: dict[str, Any], alpha: float) -> tuple[str, ...]:
    found = []
    if alpha == 0 and not config.get("alpha_pattern"):
        found.append("lora_alpha is 0: it answers as the base model")
    if str(config.get("init_lora_weights")).lower() == "lora_ga":
        found.append(
            "init_lora_weights is lora_ga, which shifts the base model in training: saved without "
            "path_initial_model_for_weight_conversion it answers otherwise than it was trained to, "
            "in peft as here"
        )
    task = config.get("task_type")
    if isinstance(task, str) and task not in ("", "CAUSAL_LM"):
        found.append(f"task_type is {task[:40]}: it was trained for that; here it generates text")
    return tuple(found)


# -- values ---------------------------------------------------------------------------------


def _rank(value: Any, key: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
        _refuse(key, value, "an integer from 1 up is needed")
    return value


def _number(value: Any, key: str) -> float:
    # The comparison also refuses NaN, which none holds for, and numbers that no float holds.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e9:
        _refuse(key, value, "a finite number is needed")
    return float(value)


def _strings(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        _refuse(key, value, "a list of names, or a pattern, is needed")
    return tuple(value)


def _refuse(key: str, value: Any, remedy: str) -> NoReturn:
    shown = "null, or missing" if value is None else json.dumps(value)
    shown = shown if len(shown) <= 100 else shown[:97] + "..."
    raise AdapterRefused(f"{CONFIG}: {key} is {shown}; {remedy}", param="source")
