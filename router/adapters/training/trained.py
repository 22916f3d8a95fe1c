"""What is kept of a training: the encoder's weights, and what its lessons are like to encoders that
were not tuned on them.

Two files, as adapters have, so that they are kept where those are: the lineage as JSON, and the
tensors: `encoder.*` in bfloat16, `SIDE.scores`, `SIDE.signals` and `SIDE.weights` of the held-out
examples for each classifier, `labels` and `keys` of these.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from router.adapters.calibration.left_out import Crossed, LeftOut
from router.adapters.encoder import SentenceEncoder
from router.adapters.features import KernelWeights
from router.adapters.training.lessons import Lessons, key_of
from router.adapters.training.schooling import Schooled

_OF_MODEL = "encoder."
_SIDES = ("quick", "full")


@dataclass(frozen=True)
class HeldOut:
    """What n examples of a catalogue were like while they were held out.

    Attributes:
        names: (c,) adapters.
        keys: (n,) of the examples, as :func:`key_of` gives them.
        sides: for the quick classifier, and for the full one; rows are those of the keys.
    """

    names: tuple[str, ...]
    keys: tuple[str, ...]
    sides: tuple[Crossed, ...]

    @classmethod
    def of(cls, lessons: Lessons, sides: Sequence[Crossed]) -> "HeldOut":
        keys = lessons.keys
        return cls(lessons.names, tuple(keys[i] for i in sides[0].rows), tuple(sides))

    def among(self, cards: Mapping[str, tuple[str, ...]]) -> tuple[Crossed, ...]:
        """As examples of a catalogue, whose classes are its adapters and whose examples are their
        texts, one behind the other; what is gone is left out. Empty where nothing is left.

        A class that came later scores nothing on examples that it was not there for.
        """
        pairs = [(name, text) for name, texts in cards.items() for text in texts]
        places = {key_of(name, text): i for i, (name, text) in enumerate(pairs)}
        kept = [(i, places[key]) for i, key in enumerate(self.keys) if key in places]
        if not kept:
            return ()
        own, rows = (np.array(column) for column in zip(*kept, strict=True))
        class_of = {name: i for i, name in enumerate(cards)}
        labels = np.array([class_of[pairs[row][0]] for row in rows])
        columns = [i for i, name in enumerate(self.names) if name in class_of]
        targets = [class_of[self.names[i]] for i in columns]
        cells = np.ix_(own, np.array(columns))
        found = []
        for side in self.sides:
            scores = np.zeros((len(own), len(cards)))
            scores[:, targets] = side.left_out.scores[cells]
            left_out = LeftOut(scores, side.left_out.signals[own], labels)
            found.append(Crossed(rows, side.weights, left_out))
        return tuple(found)


@dataclass(frozen=True)
class Trained:
    """An encoder, and what its lessons were like."""

    encoder: SentenceEncoder
    held_out: HeldOut


def write(
    folder: Path, files: tuple[str, str], lineage: str, lessons: Lessons, made: Schooled
) -> None:
    """Write the lineage and the tensors into files of these names."""
    import torch
    from safetensors.torch import save_file

    if made.encoder is None:
        raise ValueError("it is no better: there is nothing to keep")
    held_out = HeldOut.of(lessons, made.sides)
    tensors = {_OF_MODEL + n: w.to(torch.bfloat16) for n, w in made.encoder.weights.items()}
    for name, side in zip(_SIDES, held_out.sides, strict=False):
        tensors[f"{name}.scores"] = torch.from_numpy(side.left_out.scores).half()
        tensors[f"{name}.signals"] = torch.from_numpy(side.left_out.signals).float()
        tensors[f"{name}.weights"] = torch.tensor(astuple(side.weights), dtype=torch.float64)
    tensors["labels"] = torch.from_numpy(held_out.sides[0].left_out.labels)
    told = {"names": json.dumps(held_out.names), "keys": json.dumps(held_out.keys)}
    config, weights = files
    (folder / config).write_text(lineage)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / weights, told)


def read(file: Path, parent: SentenceEncoder) -> Trained:
    """What was written.

    Raises:
        ValueError: it does not fit the parent, or is not what it should be.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            told = opened.metadata() or {}
            tensors: dict[str, Any] = {n: opened.get_tensor(n) for n in opened.keys()}  # noqa: SIM118
        names, keys = (tuple(json.loads(told[field])) for field in ("names", "keys"))
        labels = tensors["labels"].numpy()
        sides = tuple(
            Crossed(
                np.arange(len(keys)),
                KernelWeights(**dict(zip(_WEIGHTS, tensors[f"{s}.weights"].tolist(), strict=True))),
                LeftOut(
                    tensors[f"{s}.scores"].float().numpy(), tensors[f"{s}.signals"].numpy(), labels
                ),
            )
            for s in _SIDES
            if f"{s}.weights" in tensors
        )
    except (KeyError, SafetensorError, OSError) as e:
        raise ValueError(f"it cannot be read: {type(e).__name__}: {e}") from e
    weights = {n.removeprefix(_OF_MODEL): w for n, w in tensors.items() if n.startswith(_OF_MODEL)}
    if not all(bool(torch.isfinite(w).all()) for w in weights.values() if w.is_floating_point()):
        raise ValueError("its weights are not finite")
    return Trained(parent.with_weights(weights), HeldOut(names, keys, sides))


_WEIGHTS = tuple(field.name for field in fields(KernelWeights))
