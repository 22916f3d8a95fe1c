"""What recorded outcomes of seven small models on MMLU-Pro foretell of prompts not seen before, and
what bounds that: part of `benchmarks.experts`."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from router.adapters.evaluation import OutcomeLine, read_lines
from router.adapters.experts.predictor import QualityPredictor
from router.adapters.features import FeatureExtractor, Features, Glances
from router.adapters.prompts import clip

# Of each prompt, so many nearest count beside what is known of all; as many again as these weigh.
_NEIGHBOURS, _PRIOR = 200, 20
_LEARNT = (500, 1000, 2000, 4000)


def foretold(data: Path, extract: FeatureExtractor) -> dict[str, Any]:
    """Learn from the train part, choose on the test part, once."""
    folder = data / "mmlu_pro_outcomes"
    parts = [read_lines(folder / f"small7_{part}.jsonl", OutcomeLine) for part in ("train", "test")]
    names = sorted(parts[0][0].scores)
    texts = [[clip(line.input) for line in lines] for lines in parts]
    scores = [np.array([[line.scores[n] for n in names] for line in lines]) for lines in parts]
    learnt, asked = (Glances(extract, t, _glance(extract, t)) for t in texts)
    alone = int(scores[0].mean(axis=0).argmax())
    repeated = np.isin(texts[1], texts[0])
    nearest = _by_neighbours(learnt.glanced, asked.glanced, scores[0])
    chosen, predictor = _chosen(learnt, asked, scores[0], names)
    by_count = {
        str(count): _worth(scores[1], _chosen(learnt, asked, scores[0], names, count)[0])
        for count in _LEARNT
    }
    return {
        "learnt from": len(texts[0]),
        "prompts": len(texts[1]),
        "asked before, word for word": int(repeated.sum()),
        "reads": predictor.reads,
        "worth": {
            "at random": round(float(scores[1].mean()), 4),
            "best model alone": _worth(scores[1], np.full(len(repeated), alone)),
            "200 nearest prompts": _worth(scores[1], nearest),
            "Roundhouse": _worth(scores[1], chosen),
            "oracle": round(float(scores[1].max(axis=1).mean()), 4),
        },
        "worth of new prompts": {
            "best model alone": round(float(scores[1][~repeated, alone].mean()), 4),
            "Roundhouse": _worth(scores[1][~repeated], chosen[~repeated]),
        },
        "by outcomes learnt": by_count | {str(len(texts[0])): _worth(scores[1], chosen)},
        "repeats": _repeats(texts[0] + texts[1], np.concatenate(scores)),
    }


def _glance(extract: FeatureExtractor, texts: Sequence[str]) -> Features:
    return Features.stack(
        [extract.glance([*texts[i : i + 256]]) for i in range(0, len(texts), 256)]
    )


def _worth(scores: np.ndarray, chosen: np.ndarray) -> float:
    return round(float(scores[np.arange(len(scores)), chosen].mean()), 4)


def _chosen(
    learnt: Glances,
    asked: Glances,
    scores: np.ndarray,
    names: list[str],
    count: int | None = None,
) -> tuple[np.ndarray, QualityPredictor]:
    """(n,) whom the predictor chooses that has learnt the first so many prompts."""
    columns = {name: scores[:count, i] for i, name in enumerate(names)}
    predictor = QualityPredictor.fit(
        learnt.glanced[:count], columns, texts=learnt.texts[:count], read=learnt.read
    )
    if predictor is None:
        raise SystemExit("too few outcomes to learn from")
    every = np.arange(len(asked.texts))
    features = asked.read(every) if predictor.reads else asked.glanced
    return predictor.predict(features, asked.texts).argmax(axis=1), predictor


def _by_neighbours(learnt: Features, asked: Features, scores: np.ndarray) -> np.ndarray:
    alike = asked.meaning @ learnt.meaning.T + asked.form @ learnt.form.T
    near = np.argpartition(-alike, _NEIGHBOURS, axis=1)[:, :_NEIGHBOURS]
    found: np.ndarray = (scores[near].sum(axis=1) + _PRIOR * scores.mean(axis=0)).argmax(axis=1)
    return found


def _repeats(texts: list[str], scores: np.ndarray) -> dict[str, float]:
    """Of prompts that are there twice: how often an outcome comes again, and what it is worth to
    choose who was right the other time."""
    places = defaultdict(list)
    for i, text in enumerate(texts):
        places[text].append(i)
    pairs = [(a, b) for found in places.values() for a in found for b in found if a != b]
    one, other = np.array(pairs).T
    chosen = (scores[other] + 1e-3 * scores.mean(axis=0)).argmax(axis=1)
    return {
        "pairs": len(pairs) // 2,
        "same outcome": round(float((scores[one] == scores[other]).mean()), 4),
        "worth of who was right": _worth(scores[one], chosen),
        "oracle": round(float(scores[one].max(axis=1).mean()), 4),
    }
