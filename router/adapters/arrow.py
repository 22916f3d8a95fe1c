"""Adapters whose cards say nothing: which weights a prompt moves.

Arrow (Ostapenko et al. 2024, "Towards Modular LLMs by Building and Reusing a Library of LoRAs",
section 4.2): of each adapted layer the prototype is the input direction that B A amplifies most,
its first right singular vector v; a token with hidden state x scores |x . v|. No training, no data.
Raw scores say more of the token than of the adapter, so here x is taken relative to its mean over
everyday prompts, and the mean over tokens and layers relative to what those prompts score:

    s(adapter, prompt) = mean_layers mean_tokens |(x - mu) . v|  /  the same over everyday prompts

Needs the first layers of the base model, whose forward pass takes longer than the encoder's: it is
asked only about prompts that no card fits, and only where such adapters are.
"""

import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from router.adapters.reader import first_layers

# Tokens that are read of a prompt.
_WINDOW = 64
# Of everyday prompts, this share scores less than what counts as a response.
_QUIET = 0.98
# They read the attention heads, whose directions told adapters apart worse.
_READ_HEADS = ("o_proj", "out_proj", "c_proj", "dense")
_ADAPTER_PREFIX, _MODEL_PREFIX = "base_model.model.", "model."


@dataclass(frozen=True)
class _Prototypes:
    """Of one adapter: module -> unit vector, and the quotients of everyday prompts."""

    vectors: dict[str, torch.Tensor]
    usual: float
    bound: float


class ArrowRouter:
    """Scores adapters of one base model by their weights.

    Args:
        base: folder or hub id of the base model.
        layers: how many of its first layers are run.
        background: everyday prompts.
    """

    def __init__(self, base: str, layers: int, background: list[str]) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(base)
        self._model = first_layers(base, layers, torch.float32)
        self._inputs: dict[str, torch.Tensor] = {}
        self._lock = threading.Lock()
        self._watch()
        everyday = [self._states(text) for text in background]
        self._centre = {
            module: torch.cat([states[module] for states in everyday]).mean(dim=0)
            for module in everyday[0]
        }
        # As they came: modules that read the same states share their memory.
        self._everyday = everyday
        self._adapters: dict[str, _Prototypes] = {}

    @property
    def known(self) -> frozenset[str]:
        """Digests of the weights that it knows."""
        return frozenset(self._adapters)

    def learn(self, digest: str, weights: Path) -> None:
        """Know an adapter by the safetensors file of its weights."""
        self._adapters = {**self._adapters, digest: self._prototypes(load_file(weights))}

    def forget_all_but(self, digests: Collection[str]) -> None:
        self._adapters = {d: found for d, found in self._adapters.items() if d in digests}

    def scores(self, text: str, digests: Collection[str]) -> dict[str, float]:
        """Response of each adapter to a prompt; everyday prompts end at 1."""
        adapters = {d: found for d, found in self._adapters.items() if d in digests}
        if not adapters:
            return {}
        moved = self.deviations(text, {m for found in adapters.values() for m in found.vectors})
        return {
            digest: _response(moved, found.vectors) / found.usual / found.bound
            for digest, found in adapters.items()
        }

    def deviations(self, text: str, modules: Iterable[str]) -> dict[str, torch.Tensor]:
        """Module -> (tokens, hidden) x - mu of the module's formula: what a prompt sends into it,
        less what everyday prompts do."""
        with self._lock:
            states = self._states(text)
        return self._relative(states, modules)

    def _prototypes(self, tensors: Mapping[str, torch.Tensor]) -> _Prototypes:
        vectors = {}
        for name, a in tensors.items():
            module, is_a, _ = name.partition(".lora_A.")
            path = module.removeprefix(_ADAPTER_PREFIX).removeprefix(_MODEL_PREFIX)
            if is_a and path in self._centre:
                b = tensors[name.replace(".lora_A.", ".lora_B.")]
                vectors[path] = _first_direction(a.float(), b.float())
        if not vectors:
            return _Prototypes({}, 1.0, 1.0)
        everyday = np.array(
            [_response(self._relative(states, vectors), vectors) for states in self._everyday]
        )
        usual = max(float(everyday.mean()), 1e-9)
        return _Prototypes(vectors, usual, float(np.quantile(everyday / usual, _QUIET)))

    def _relative(
        self, states: Mapping[str, torch.Tensor], modules: Iterable[str]
    ) -> dict[str, torch.Tensor]:
        return {module: states[module] - self._centre[module] for module in modules}

    @torch.inference_mode()
    def _states(self, text: str) -> dict[str, torch.Tensor]:
        """Module -> (tokens, hidden) what goes into it."""
        tokens = self._tokenizer(
            text or " ", return_tensors="pt", truncation=True, max_length=_WINDOW
        )
        self._model(**tokens, use_cache=False)
        return dict(self._inputs)

    def _watch(self) -> None:
        """Keep what goes into every linear module that reads the residual stream."""
        hidden = self._model.config.hidden_size
        for path, module in self._model.named_modules():
            is_linear = isinstance(module, torch.nn.Linear) and module.in_features == hidden
            if is_linear and not path.endswith(_READ_HEADS):
                module.register_forward_pre_hook(
                    lambda _, inputs, path=path: self._inputs.__setitem__(path, inputs[0][0])
                )


def _response(moved: Mapping[str, torch.Tensor], vectors: Mapping[str, torch.Tensor]) -> float:
    """Mean over modules and tokens of |(x - mu) . v|."""
    if not vectors:
        return 0.0
    found = [(moved[module] @ vector).abs().mean() for module, vector in vectors.items()]
    return float(torch.stack(found).mean())


def _first_direction(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """First right singular vector of B A, from the small side: with B = Q R it is that of R A."""
    _, r = torch.linalg.qr(b)
    first: torch.Tensor = torch.linalg.svd(r @ a, full_matrices=False).Vh[0]
    return first
