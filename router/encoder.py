"""Prompts to vectors."""

import importlib.util
import threading
from pathlib import Path
from typing import Protocol

import numpy as np

from cluster.errors import ConfigError

PACKAGE_SCHEME = "package:"


class Encoder(Protocol):
    """Turns texts into unit vectors whose inner product says how close they mean."""

    def encode(self, texts: list[str]) -> np.ndarray:
        """Returns float32 of shape (len(texts), dimensions), each row of length 1."""


class SentenceEncoder:
    """A sentence-transformers model.

    Args:
        source: hub id, folder, or ``package:NAME/FOLDER`` inside an installed package.
    """

    def __init__(self, source: str) -> None:
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(str(resolve_encoder(source)), device="cpu")
        # Its tokenizer keeps state while it runs, and must not be entered by two threads.
        self._lock = threading.Lock()

    def encode(self, texts: list[str]) -> np.ndarray:
        with self._lock:
            return self._model.encode(
                texts, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
            )


def resolve_encoder(source: str) -> str | Path:
    """The folder or hub id behind `source`; raises :class:`ConfigError` when it cannot be there."""
    if not source.startswith(PACKAGE_SCHEME):
        return source
    package, _, folder = source.removeprefix(PACKAGE_SCHEME).partition("/")
    # Found, not imported: a package of weights may want things at import that we do not need.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"router.encoder: package {package!r} is not installed; `make demo` installs it, or "
            "set the encoder to a sentence-transformers folder or hub id"
        )
    return Path(spec.submodule_search_locations[0]) / folder
