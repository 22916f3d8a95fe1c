"""Prompts to vectors: one forward pass of a sentence encoder, read at two depths."""

import hashlib
import importlib.util
import threading
from collections.abc import Mapping
from copy import copy, deepcopy
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cluster.errors import ConfigError
from cluster.settings import RouterSettings

PACKAGE_SCHEME = "package:"
# Joins the two ends of a long prompt; most tokenizers know it as one token.
_GAP = " … "
_BATCH = 32


@dataclass(frozen=True)
class Embeddings:
    """Of n texts, every row of length 1.

    Attributes:
        meaning: (n, d) the encoder's own sentence embedding.
        form: (n, h) mean of the middle layer's hidden states, where syntax and the kind of task
            show more than the topic does (Jawahar et al., ACL 2019); h is 0 for encoders without
            layers.
    """

    meaning: np.ndarray
    form: np.ndarray


class Encoder(Protocol):
    """Turns texts into vectors whose inner products say how alike the texts are."""

    @property
    def version(self) -> str:
        """Changes when the vectors do, and vectors of different versions must not be compared."""

    def encode(self, texts: list[str]) -> Embeddings:
        """Float32 embeddings of the texts."""


class SentenceEncoder:
    """A sentence-transformers model.

    Args:
        source: hub id, folder, or ``package:NAME/FOLDER`` inside an installed package.
        prefix: instruction put before every text, for encoders that were trained with one.
        window_tokens: of a longer text the encoder reads the first two thirds of a window and the
            last third: the instruction stands first, the question last, and time grows with length.
    """

    def __init__(self, source: str, *, prefix: str = "", window_tokens: int) -> None:
        from sentence_transformers import SentenceTransformer

        where = str(resolve(source, "router.encoder"))
        self._model = SentenceTransformer(
            where, device="cpu", model_kwargs={"dtype": fastest_dtype()}
        ).eval()
        self._prefix = prefix
        # Room for the prefix and the marks at both ends: what is longer, the model would cut off.
        reserved = len(self._model.tokenizer.tokenize(prefix)) + 4
        self._window = min(window_tokens, max(8, (self._model.max_seq_length or 512) - reserved))
        self._named, self._read_as = short_name(source), f"{window_tokens}:{prefix}"
        self.version = self._versioned()
        transformer = getattr(self._model[0], "auto_model", None)
        if transformer is not None:
            transformer.config.output_hidden_states = True
        # Its tokenizer keeps state while it runs, and must not be entered by two threads.
        self._lock = threading.Lock()

    @classmethod
    def of(cls, settings: RouterSettings) -> "SentenceEncoder":
        """The encoder that the settings name."""
        return cls(
            settings.encoder, prefix=settings.encoder_prefix, window_tokens=settings.window_tokens
        )

    def trainable(self) -> Any:
        """A copy of the model in float32, which learns; reads what `prepared` gives."""
        return deepcopy(self._model).float()

    @property
    def weights(self) -> Mapping[str, Any]:
        """By the names of the model's own."""
        state: Mapping[str, Any] = self._model.state_dict()
        return state

    def with_weights(self, weights: Mapping[str, Any]) -> "SentenceEncoder":
        """The same encoder with other weights, by the names of the model's own.

        Raises:
            ValueError: they are not of this model.
        """
        own = self._model.state_dict()
        if {n: w.shape for n, w in own.items()} != {n: w.shape for n, w in weights.items()}:
            raise ValueError("they are of a model of another shape")
        other = copy(self)
        other._model, other._lock = deepcopy(self._model), threading.Lock()  # noqa: SLF001
        other._model.load_state_dict(weights)  # noqa: SLF001  (its own copy)
        other.version = other._versioned()  # noqa: SLF001
        return other

    def prepared(self, texts: list[str]) -> list[str]:
        """What the model sees of texts: their ends, behind the prefix."""
        return [self._prefix + self._ends_of(text) for text in texts]

    def _versioned(self) -> str:
        return f"{self._named}:{digest_of(self._model)}:{self._read_as}"

    def encode(self, texts: list[str]) -> Embeddings:
        import torch

        # Padding costs as much as text: like lengths go together.
        order = np.argsort([len(text) for text in texts], kind="stable")
        parts = []
        for start in range(0, len(order), _BATCH):
            # Between batches another thread may have its turn: a prompt must not wait for a card.
            with self._lock, torch.inference_mode():
                batch = [texts[i] for i in order[start : start + _BATCH]]
                parts.append(self._forward(self.prepared(batch)))
        back = np.argsort(order, kind="stable")
        return Embeddings(
            unit_rows(np.concatenate([p[0] for p in parts])[back]),
            unit_rows(np.concatenate([p[1] for p in parts])[back]),
        )

    def _forward(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        out = self._model(self._model.preprocess(texts))
        meaning = out["sentence_embedding"].float().numpy()
        layers = out.get("all_layer_embeddings")
        if layers is None:
            return meaning, np.zeros((len(texts), 0), dtype=np.float32)
        mask = out["attention_mask"].unsqueeze(-1).float()
        middle = (layers[len(layers) // 2].float() * mask).sum(1) / mask.sum(1).clamp(min=1)
        return meaning, middle.numpy()

    def _ends_of(self, text: str) -> str:
        """The text, or its head and tail when it is longer than the window."""
        # No token of a common tokenizer is longer than this many characters on average.
        if len(text) <= self._window:
            return text
        tokenizer = self._model.tokenizer
        if not getattr(tokenizer, "is_fast", False):
            return text
        spans = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )["offset_mapping"]
        if len(spans) <= self._window:
            return text
        tail = self._window // 3
        head = self._window - tail
        return text[: spans[head - 1][1]] + _GAP + text[spans[-tail][0] :]


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Each row scaled to length 1; a row of zeros stays one."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: np.ndarray = (rows / np.maximum(lengths, 1e-9)).astype(np.float32)
    return scaled


def resolve(source: str, setting: str) -> str | Path:
    """The folder or hub id behind `source`; raises :class:`ConfigError`, which names the setting,
    when it cannot be there."""
    if not source.startswith(PACKAGE_SCHEME):
        return source
    package, _, folder = source.removeprefix(PACKAGE_SCHEME).partition("/")
    # Found, not imported: a package of weights may want things at import that we do not need.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"{setting}: package {package!r} is not installed; install it (`make demo` "
            "brings the encoder's), or give a folder or a hub id"
        )
    return Path(spec.submodule_search_locations[0]) / folder


def fastest_dtype() -> Any:
    """Of the processor: bfloat16 halves the time, where it multiplies that."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    has_bf16 = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if has_bf16 else torch.float32


def short_name(source: str) -> str:
    """Of a source, with the version of its package, for the version of what it gives."""
    package, _, _ = source.removeprefix(PACKAGE_SCHEME).partition("/")
    if not source.startswith(PACKAGE_SCHEME):
        return Path(source).name
    try:
        return f"{package}-{version(package)}"
    except PackageNotFoundError:
        return package


def digest_of(model: Any) -> str:
    """A fingerprint of the weights: the same hub id may get new ones."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(weight.shape)}{weight.flatten()[:64].tolist()}".encode())
    return digest.hexdigest()[:12]
