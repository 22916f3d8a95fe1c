"""Prompts as a base model reads them: the hidden states of its first layers.

Two vectors of a text. The mean over its tokens tells what kind of text it is, in other words than a
sentence encoder's, which was trained on topics. The state of the last token, where the model's own
answer would begin, tells what the model is about to do. The first token's state is left out of the
mean: attention uses it as a sink, whatever it says (Xiao et al., ICLR 2024).
"""

import json
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.errors import ConfigError
from cluster.settings import BaseModelSettings, RouterSettings
from router.adapters.encoder import digest_of, fastest_dtype, resolve, short_name

_BATCH = 32
_INDEX, _WHOLE = "model.safetensors.index.json", "model.safetensors"
# After the text, as before an answer: the state there holds what is to come. Of the text's own last
# word it would hold mostly that word (a point or two of accuracy, and half of the likelihood).
_CLOSING = "\n"


class Reader:
    """The first layers of a causal language model.

    Args:
        source: hub id, folder, or ``package:NAME/FOLDER`` inside an installed package.
        layers: how many are run.
        window_tokens: of a longer text the first two thirds of a window are read and the last
            third, as the encoder does.
    """

    def __init__(self, source: str, *, layers: int, window_tokens: int) -> None:
        from transformers import AutoTokenizer

        where = resolve(source, "router.reader")
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if self._device.type == "cuda" else fastest_dtype()
        self._model = first_layers(where, layers, dtype).to(self._device)
        self._tokenizer = AutoTokenizer.from_pretrained(where)
        first = self._tokenizer.bos_token_id
        self._opening = [] if first is None else [first]
        self._gap, self._closing = self._ids(["\n…\n", _CLOSING])
        self._window = window_tokens
        digest = digest_of(self._model)
        self.version = f"{short_name(source)}:{digest}:{layers}:{window_tokens}"
        # Its tokenizer keeps state while it runs, and must not be entered by two threads.
        self._lock = threading.Lock()

    @classmethod
    def of(
        cls, settings: RouterSettings, models: Sequence[BaseModelSettings] = ()
    ) -> "Reader | None":
        """The reader that the settings name, if they do: by its source, or as one of the models."""
        if settings.reader is None:
            return None
        paths = {m.id: str(Path(m.path).expanduser()) for m in models}
        return cls(
            paths.get(settings.reader, settings.reader),
            layers=settings.reader_layers,
            window_tokens=settings.reader_window_tokens,
        )

    def read(self, texts: list[str]) -> np.ndarray:
        """(n, 2, h) float32: of each text the mean over its tokens, and the last token's state."""
        with self._lock:
            cut = [self._cut(ids) for ids in self._ids(texts)]
        # Padding costs as much as text: like lengths go together.
        order = np.argsort([len(ids) for ids in cut], kind="stable")
        parts = []
        for start in range(0, len(order), _BATCH):
            # Between batches another thread may have its turn: a prompt must not wait for a card.
            with self._lock:
                parts.append(self._states([cut[i] for i in order[start : start + _BATCH]]))
        back = np.argsort(order, kind="stable")
        found: np.ndarray = np.concatenate(parts)[back]
        return found

    def _ids(self, texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = self._tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]
        return found

    def _cut(self, ids: list[int]) -> list[int]:
        """What is read of a text's tokens: head and tail when they are more than the window."""
        if len(ids) > self._window:
            tail = self._window // 3
            ids = [*ids[: self._window - tail], *self._gap, *ids[-tail:]]
        return [*self._opening, *ids, *self._closing] or [0]

    @torch.inference_mode()
    def _states(self, batch: list[list[int]]) -> np.ndarray:
        lengths = torch.tensor([len(ids) for ids in batch], device=self._device)
        longest = max(map(len, batch))
        # Padded behind, where a causal model cannot look: it needs no mask.
        padded = [ids + [0] * (longest - len(ids)) for ids in batch]
        tokens = torch.tensor(padded, device=self._device)
        states = self._model(input_ids=tokens, use_cache=False).last_hidden_state.float()
        place = torch.arange(longest, device=self._device)
        counted = (place < lengths[:, None]) & ((place > 0) | (lengths[:, None] == 1))
        weights = counted / counted.sum(dim=1, keepdim=True)
        mean = torch.einsum("nt,nth->nh", weights, states)
        last = states[torch.arange(len(batch), device=self._device), lengths - 1]
        found: np.ndarray = torch.stack([mean, last], dim=1).cpu().numpy()
        return found


def first_layers(source: str | Path, layers: int, dtype: torch.dtype) -> Any:
    """The body of a causal language model with its first layers alone.

    Of safetensors no other tensor is read, and no file without one of these is fetched or opened.

    Raises:
        ConfigError: the checkpoint lacks some of their weights, or is of no such model.
    """
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(source).get_text_config(decoder=True)
    if layers > config.num_hidden_layers:
        raise ConfigError(f"{source} has {config.num_hidden_layers} layers, fewer than {layers}")
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    weights = _below(source, layers)
    with torch.device("meta"):
        kind = type(AutoModel.from_config(config, dtype=dtype))
    model, told = kind.from_pretrained(
        None if weights else source,
        config=config,
        state_dict=weights or None,
        dtype=dtype,
        output_loading_info=True,
    )
    if missing := sorted(told["missing_keys"]):
        raise ConfigError(f"{source}: no weights for {missing[0]} of its first {layers} layers")
    return model.eval()


def _below(source: str | Path, layers: int) -> dict[str, torch.Tensor]:
    """The weights below a layer, of safetensors; nothing of other kinds of checkpoint."""
    from safetensors import safe_open
    from transformers.utils import cached_file

    found: dict[str, torch.Tensor] = {}
    for file in _files_below(source, layers):
        with safe_open(cached_file(source, file), framework="pt") as tensors:
            names = [name for name in tensors.keys() if _is_below(name, layers)]  # noqa: SIM118
            found |= {name: tensors.get_tensor(name) for name in names}
    return found


def _files_below(source: str | Path, layers: int) -> list[str]:
    """The safetensors files that have some of these weights."""
    from transformers.utils import cached_file

    index = cached_file(source, _INDEX, _raise_exceptions_for_missing_entries=False)
    if index is not None:
        names = json.loads(Path(index).read_text())["weight_map"]
        return sorted({file for name, file in names.items() if _is_below(name, layers)})
    whole = cached_file(source, _WHOLE, _raise_exceptions_for_missing_entries=False)
    return [_WHOLE] if whole is not None else []


def _is_below(name: str, layers: int) -> bool:
    """Of a weight, by its name. Of the numbers in it the first is the layer's: later ones are of
    experts."""
    numbered = re.search(r"\.(\d+)\.", name)
    is_head = name.startswith("lm_head")
    return not is_head and (numbered is None or int(numbered[1]) < layers)
