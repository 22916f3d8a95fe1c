"""Tunes an encoder so that texts of one adapter come near, and those of others do not.

Supervised contrast (Khosla et al., NeurIPS 2020) as few-shot intent detection uses it (CPFT: Zhang
et al., EMNLP 2021; SetFit: Tunstall et al., 2022). A batch is two texts of each of up to 32
adapters; with z a text's unit embedding, z+ that of the other of its adapter, and t = 0.05,

    loss = -log (exp(<z, z+> / t) / sum over all others z' of exp(<z, z'> / t))
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from router.adapters.encoder import SentenceEncoder, fastest_dtype

_CLASSES, _SCALE = 32, 20.0
_RATE, _WARM, _DECAY, _LONGEST = 5e-5, 0.1, 0.01, 1.0
# Few texts seen more often are learnt by heart.
_EPOCHS = 20

# Told which step of how many is done, and the loss of it.
Stepped = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Course:
    """How long, and by which seed."""

    steps: int
    seed: int = 0

    def steps_for(self, labels: np.ndarray) -> int:
        """Fewer where there are few texts."""
        batch = 2 * min(_CLASSES, int((np.bincount(labels) > 1).sum()))
        return min(self.steps, ceil(_EPOCHS * len(labels) / batch))


def tuned(
    encoder: SentenceEncoder,
    texts: list[str],
    labels: np.ndarray,
    course: Course,
    stepped: Stepped,
) -> SentenceEncoder:
    """The encoder, tuned on n texts; the same seed gives the same one on the same machine."""
    import torch
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    model, seen = encoder.trainable(), encoder.prepared(texts)
    # All four directions: each text against all others of the batch.
    directions: Any = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
    contrast = MultipleNegativesRankingLoss(model, scale=_SCALE, directions=directions)
    steps = course.steps_for(labels)
    learning = [p for p in _held_still(model).parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=_RATE, weight_decay=_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _pace(step, steps))
    batches = np.random.default_rng(course.seed)
    is_fast = fastest_dtype() == torch.bfloat16
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(course.seed)
        model.train()
        for step in range(steps):
            pairs = _batch(labels, batches)
            columns = [model.preprocess([seen[i] for i in column]) for column in pairs.T]
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_fast):
                loss = contrast(columns, None)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learning, _LONGEST)
            optimizer.step()
            schedule.step()
            stepped(step + 1, steps, loss.item())
    return encoder.with_weights({n: w.to(torch.bfloat16) for n, w in model.state_dict().items()})


def _held_still(model: Any) -> Any:
    """The model with its words where they are: those that no lesson has must stay near those that
    some have. It saves a third of the time besides."""
    transformer = getattr(model[0], "auto_model", None)
    if transformer is not None:
        transformer.get_input_embeddings().requires_grad_(False)
    return model


def _pace(step: int, steps: int) -> float:
    """Of the learning rate: up within the first tenth, then evenly down."""
    warm = max(1.0, _WARM * steps)
    return float(min((step + 1) / warm, max(0.0, (steps - step) / (steps - warm + 1))))


def _batch(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(classes, 2) texts of some classes."""
    several = np.flatnonzero(np.bincount(labels) > 1)
    chosen = rng.permutation(several)[:_CLASSES]
    return np.array([rng.permutation(np.flatnonzero(labels == c))[:2] for c in chosen])
