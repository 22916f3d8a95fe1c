"""What a catalogue's teaching its encoder is worth. Parts of `router.py`.

Trained by what `roundhouse router train` does, on the examples alone; of many test prompts some are
taken at random. `calibrated as if untrained` is the same encoder with what was held out forgotten.
"""

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from benchmarks import routing_data
from benchmarks.reader import MOST_PROMPTS, scored
from benchmarks.routing_data import Labelled, split
from benchmarks.routing_scores import mean
from router.adapters.calibration.left_out import Crossed
from router.adapters.cascade import Cascade, Judged
from router.adapters.encoder import SentenceEncoder
from router.adapters.features import FeatureExtractor
from router.adapters.prompt_router import everyday_prompts
from router.adapters.training.lessons import Lessons
from router.adapters.training.schooling import school
from router.adapters.training.trained import HeldOut

if TYPE_CHECKING:
    from benchmarks.router import Bench

console = Console(stderr=True)


def intents(bench: "Bench") -> dict[str, Any]:
    _, labelled = routing_data.clinc(bench.data)
    return _suite(bench, labelled, {5: 1})


def tasks(bench: "Bench") -> dict[str, Any]:
    return _suite(bench, routing_data.bbh(bench.data), {3: 1})


def _suite(bench: "Bench", labelled: Labelled, shots: dict[int, int]) -> dict[str, Any]:
    """By the examples that each card has, and of how many draws of them."""
    found: dict[str, Any] = {}
    for few, seeds in shots.items():
        runs: dict[str, list[dict[str, float]]] = {}
        for seed in range(seeds):
            for method, measured in _measured(bench, labelled, few, seed).items():
                runs.setdefault(method, []).append(measured)
        found[f"{few} examples"] = {m: mean(measured) for m, measured in runs.items()}
        console.print(few, json.dumps(found[f"{few} examples"]))
    return found


def _measured(
    bench: "Bench", labelled: Labelled, few: int, seed: int
) -> dict[str, dict[str, float]]:
    train, test = split(labelled, few, seed)
    test = np.random.default_rng(0).permutation(test)[:MOST_PROMPTS]
    # By name, as the catalogue has them.
    names = sorted(labelled.names)
    place = {labelled.names.index(name): i for i, name in enumerate(names)} | {-1: -1}
    truth = np.array([place[label] for label in labelled.labels[test]])
    own = {i: labelled.names.index(name) for i, name in enumerate(names)}
    cards = {
        name: tuple(dict.fromkeys(labelled.texts[r] for r in train if labelled.labels[r] == own[i]))
        for i, name in enumerate(names)
    }
    asked = [labelled.texts[i] for i in test]
    encoder, lessons = SentenceEncoder.of(bench.settings), Lessons.of(cards, [], shared=False)
    # Of the processor: others may use it, too.
    started = time.process_time()
    terms = bench.settings.training
    made = school(encoder, None, lessons, terms, bench.settings.max_landmarks, _tell)
    took_s = time.process_time() - started
    shares = {"before", "after", "error"}
    marks = {k: 100 * v if k in shares else v for k, v in asdict(made.marks).items()}
    found = {
        "untrained": _by(bench, encoder, cards, asked, truth, ()),
        "cross-validation": {"top1": 0.0, "train_cpu_s": round(took_s), **marks},
    }
    if made.encoder is not None:
        sides = HeldOut.of(lessons, made.sides).among(cards)
        found["trained"] = _by(bench, made.encoder, cards, asked, truth, sides)
        found["trained, calibrated as if untrained"] = _by(
            bench, made.encoder, cards, asked, truth, ()
        )
    return found


def _by(
    bench: "Bench",
    encoder: SentenceEncoder,
    cards: dict[str, tuple[str, ...]],
    asked: list[str],
    truth: np.ndarray,
    sides: tuple[Crossed, ...],
) -> dict[str, float]:
    extract = FeatureExtractor(encoder)
    labels = np.repeat(np.arange(len(cards)), [len(texts) for texts in cards.values()])
    learnt = extract([text for texts in cards.values() for text in texts])
    beside = extract(everyday_prompts())
    cascade = Cascade.fit(learnt, labels, beside, bench.learning(), sides)
    anything = np.ones(len(cards), dtype=bool)
    verdicts = cascade.quick.judge(extract(asked), anything, anything)
    return scored([Judged(v, cascade.quick, False) for v in verdicts], truth)


def _tell(doing: str, done: int, total: int, loss: float) -> None:
    if done % 25 == 0:
        console.print(f"  {doing}: {done} of {total}, loss {loss:.3f}")
