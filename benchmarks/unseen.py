"""Prompts of topics that no adapter was made for: `make bench-unseen` writes `results/unseen.json`.

Whether each of seven small models answered prompts of MMLU-Pro rightly was recorded. One of them,
neither among the best nor the worst, is the base model; the others stand for adapters that were
made for something else. Each of ten topics in turn is new: of its prompts the outcomes of a few are
known, and all outcomes of the other topics.
"""

import argparse
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from sklearn.cluster import KMeans

from benchmarks.unseen_scores import PARTS, Found, means, table
from cluster.settings import RouterSettings
from router.adapters.encoder import SentenceEncoder
from router.adapters.features import FeatureExtractor, Features
from router.adapters.outcomes.nearby import Nearby, Neighbours, Surroundings
from router.adapters.prompt_router import everyday_prompts
from router.adapters.prompts import clip

HERE = Path(__file__).parent
RESULT = HERE / "results" / "unseen.json"
FEEDBACK = (0, 5, 20, 100)
TOPICS, EACH = 10, 120
# Enough to have so many of each topic.
_READ = 2400
_BATCH = 200
console = Console(stderr=True)


@dataclass(frozen=True)
class Topics:
    """n prompts.

    Attributes:
        labels: (n,) topic.
        scores: (n, models) 1 where the answer was right.
        base: column of the base model.
    """

    features: Features
    background: Features
    labels: np.ndarray
    scores: np.ndarray
    names: list[str]
    base: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    found = {}
    with Progress(console=console) as progress:
        topics = read(args.data, progress)
        for topic in progress.track(range(TOPICS), description="leaving topics out"):
            found[f"topic {topic}"] = leave_out(topics, topic)
    packages = ("sentence-transformers", "scikit-learn", "numpy")
    result = {
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": {p: version(p) for p in packages},
        "command": "python -m benchmarks.unseen",
        "prompts": len(topics.labels),
        "base": topics.names[topics.base],
        "topics": table(found),
        "mean": means([f.right for f in found.values()]),
    }
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    console.print_json(json.dumps(result["mean"]))


def read(data: Path, progress: Progress) -> Topics:
    """Topics are clusters of the prompts' meaning: the records do not tell the subjects."""
    file = data / "mmlu_pro_outcomes" / "small7_train.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    some = [lines[i] for i in np.random.default_rng(0).permutation(len(lines))[:_READ]]
    extract = FeatureExtractor(SentenceEncoder.of(RouterSettings()))
    texts = [clip(line["input"]) for line in some]
    starts = progress.track(range(0, _READ, _BATCH), description="reading prompts")
    features = Features.stack([extract(texts[i : i + _BATCH]) for i in starts])
    labels = KMeans(TOPICS, n_init=3, random_state=0).fit_predict(features.meaning)
    kept = np.concatenate([np.flatnonzero(labels == topic)[:EACH] for topic in range(TOPICS)])
    names = sorted(some[0]["scores"])
    scores = np.array([[line["scores"][name] for name in names] for line in some], dtype=float)
    base = int(scores.mean(axis=0).argsort()[len(names) // 2])
    background = extract(everyday_prompts())
    return Topics(features[kept], background, labels[kept], scores[kept], names, base)


def leave_out(topics: Topics, topic: int) -> Found:
    """What each way to choose makes of a topic's prompts."""
    own, others = np.flatnonzero(topics.labels == topic), np.flatnonzero(topics.labels != topic)
    scores = topics.scores[own]
    best = int(scores.mean(axis=0).argmax())
    right = {
        "base": scores[:, topics.base],
        "oracle": scores[:, best],
        "nearest topic's best": scores[:, _best_of_nearest(topics, topic)],
    }
    for few in FEEDBACK:
        ours, mean = np.zeros(len(own)), np.zeros(len(own))
        for known, asked in deals(len(own)):
            told = own[known[:few]]
            chosen = _ours(topics, np.concatenate([others, told]), own[asked])
            ours[asked] = scores[asked, chosen]
            mean[asked] = (
                scores[asked, int(topics.scores[told].mean(axis=0).argmax())] if few else 0
            )
        right[f"Roundhouse, {few}"] = ours
        if few:
            right[f"best mean, {few}"] = mean
    return Found(right, topics.names[best], _helpful(topics, scores))


def deals(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each prompt is asked once; feedback is of the others, in random order."""
    rng = np.random.default_rng(0)
    for asked in np.array_split(rng.permutation(count), PARTS):
        yield rng.permutation(np.setdiff1d(np.arange(count), asked)), asked


def _ours(topics: Topics, known: np.ndarray, asked: np.ndarray) -> list[int]:
    """The best of those that `auto` may choose, where costs are equal; else the base model."""
    scores = {name: topics.scores[known, i] for i, name in enumerate(topics.names)}
    near = Nearby.of(topics.features[known], scores, np.ones(len(known)), topics.background)
    return [_choice(topics, around) for around in near(topics.features[asked])]


def _choice(topics: Topics, around: Surroundings) -> int:
    gains = around.gains(topics.names, topics.names[topics.base])
    sure = RouterSettings().overrule_scope
    helpful = {name: gain.adapter for name, gain in gains.items() if gain.confidence > sure}
    if not helpful:
        return topics.base
    return topics.names.index(max(helpful, key=lambda name: helpful[name]))


def _best_of_nearest(topics: Topics, topic: int) -> int:
    """LORAUTER's way (2026): the model that did best on the known topic that is most alike."""
    centres = [topics.features.meaning[topics.labels == t].mean(axis=0) for t in range(TOPICS)]
    alike = [float(centres[topic] @ c) if t != topic else -1.0 for t, c in enumerate(centres)]
    nearest = topics.labels == int(np.argmax(alike))
    return int(topics.scores[nearest].mean(axis=0).argmax())


def _helpful(topics: Topics, scores: np.ndarray) -> list[str]:
    """Models that are better than the base model beyond doubt, all outcomes told."""
    ones = np.ones(len(scores))
    told: dict[str, Any] = {name: scores[:, i] for i, name in enumerate(topics.names)}
    around = Surroundings((Neighbours(told, ones, ones),))
    gains = around.gains(topics.names, topics.names[topics.base])
    return [n for n, gain in gains.items() if gain.confidence > RouterSettings().overrule_scope]


if __name__ == "__main__":
    main()
