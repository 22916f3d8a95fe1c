"""Whether any adapter was meant: near and far prompts out of scope, beside other scores for it.

A part of `router.py`. Everything is learnt from the examples in scope and the shipped everyday
prompts; no prompt of these suites is seen before it is judged. The others score by the
same examples: the surest probability and the energy of the very same scores (Hendrycks & Gimpel,
ICLR 2017; Liu et al., NeurIPS 2020), the nearest example (Sun et al., ICML 2022, k = 1) and the
Mahalanobis distance to the nearest class (Lee et al., NeurIPS 2018), both in the encoder's space.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from scipy.special import logsumexp, softmax
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks import routing_data
from benchmarks.reader import Read, extractor
from benchmarks.routing_data import Labelled, split
from benchmarks.routing_scores import centroids
from router.adapters.cascade import Cascade
from router.adapters.features import Features
from router.adapters.prompt_router import everyday_prompts

if TYPE_CHECKING:
    from benchmarks.router import Bench

_INSIDE, _OUTSIDE, _FOLDS, _FEW = 1200, 600, 2, 20
# Of the classes, those whose prompts are near and out of scope.
_LEFT_OUT = 0.25
_RECALL = 0.95
console = Console(stderr=True)


@dataclass(frozen=True)
class Suite:
    """Examples of a catalogue, and prompts in scope and out of it.

    Attributes:
        labels: (n,) class of each example.
    """

    name: str
    learnt: Features
    labels: np.ndarray
    inside: Features
    outside: Features


def scope(bench: "Bench") -> dict[str, Any]:
    extract = extractor(bench.settings)
    background = extract(everyday_prompts())
    runs: dict[str, list[dict[str, dict[str, float]]]] = {}
    for suite in _suites(bench, extract):
        told = _judged(bench, suite, background)
        console.print(suite.name, json.dumps(told))
        runs.setdefault(suite.name, []).append(told)
    means = {
        name: {
            method: {
                key: round(float(np.mean([run[method][key] for run in told])), 1)
                for key in told[0][method]
            }
            for method in told[0]
        }
        for name, told in runs.items()
    }
    return {"features": extract.version, "prompts": [_INSIDE, _OUTSIDE]} | means


def _suites(bench: "Bench", extract: Any) -> Iterator[Suite]:
    _, intents = routing_data.clinc(bench.data)
    tasks = {"exams (AGIEval)": routing_data.agieval(bench.data)}
    tasks["tasks (BBH)"] = routing_data.bbh(bench.data)
    reads = {name: Read(labelled, extract, name) for name, labelled in tasks.items()}
    read_intents = Read(intents, extract, "CLINC150")
    train, test = split(intents, _FEW, 0)
    asked = {name: _some(split(tasks[name], _FEW, 0)[1], _OUTSIDE) for name in tasks}
    foreign = Features.stack([reads[name](rows[: _OUTSIDE // 2]) for name, rows in asked.items()])
    inside = _some(test[intents.labels[test] >= 0], _INSIDE)
    known = (read_intents(train), intents.labels[train], read_intents(inside))
    near = read_intents(_some(test[intents.labels[test] < 0], _OUTSIDE))
    yield Suite("intents (CLINC150), near: its own questions out of scope", *known, near)
    yield Suite("intents (CLINC150), far: exams and tasks", *known, foreign)
    elsewhere = read_intents(inside[:_OUTSIDE])
    for name, labelled in tasks.items():
        for fold in range(_FOLDS):
            yield from _tasks(name, labelled, reads[name], elsewhere, fold)


def _tasks(
    name: str, labelled: Labelled, read: Read, elsewhere: Features, fold: int
) -> Iterator[Suite]:
    """Without some of the tasks, whose prompts are out of scope then."""
    classes = len(labelled.names)
    kept = np.random.default_rng(fold).permutation(classes)[round(_LEFT_OUT * classes) :]
    train, test = split(labelled, _FEW, fold)
    is_kept = np.isin(labelled.labels, kept)
    train = train[is_kept[train]]
    _, labels = np.unique(labelled.labels[train], return_inverse=True)
    known = (read(train), labels, read(_some(test[is_kept[test]], _INSIDE)))
    near = read(_some(test[~is_kept[test]], _OUTSIDE))
    yield Suite(f"{name}, near: those of {classes - len(kept)} more", *known, near)
    yield Suite(f"{name}, far: intents", *known, elsewhere)


def _some(rows: np.ndarray, most: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(rows)[:most]


def _judged(bench: "Bench", suite: Suite, background: Features) -> dict[str, dict[str, float]]:
    cascade = Cascade.fit(suite.learnt, suite.labels, background, bench.learning())
    asked = Features.stack([suite.inside, suite.outside])
    is_inside = np.arange(len(asked)) < len(suite.inside)
    anything = np.ones(cascade.best.classes, dtype=bool)
    judged = cascade.judge(asked, anything, anything, lambda rows: asked[rows])
    scores = np.array([j.verdict.scope for j in judged])
    accepted = np.array([j.verdict.scope >= j.by.scope.threshold for j in judged])
    found = {
        "Roundhouse": _measured(scores, is_inside)
        | {
            "kept in scope": 100 * float(accepted[is_inside].mean()),
            "turned away out of scope": 100 * float((~accepted)[~is_inside].mean()),
        }
    }
    for method, other in _others(cascade, suite, asked).items():
        found[method] = _measured(other, is_inside)
    return found


def _others(cascade: Cascade, suite: Suite, asked: Features) -> dict[str, np.ndarray]:
    """(n,) by each method, larger where it is surer that a prompt is in scope."""
    best = cascade.best
    regressors = best.kernel.regressors(asked if best.kernel.weights.reads else asked.unread)
    logits = best.confidence.temperature * best.regression.score(regressors)
    learnt, meaning = suite.learnt.meaning, asked.meaning
    means = centroids(learnt, suite.labels, best.classes)
    away = learnt - means[suite.labels]
    # As many dimensions as a few hundred examples hardly span: drawn towards a ball.
    spread = away.T @ away / len(away)
    spread += np.trace(spread) / len(spread) * np.eye(len(spread))
    whole = np.linalg.cholesky(np.linalg.inv(spread))
    gaps = (meaning @ whole)[:, None] - (means @ whole)[None]
    return {
        "surest probability": softmax(logits, axis=1).max(axis=1),
        "energy": logsumexp(logits, axis=1),
        "nearest example": (meaning @ learnt.T).max(axis=1),
        "Mahalanobis": -(gaps**2).sum(axis=2).min(axis=1),
    }


def _measured(scores: np.ndarray, is_inside: np.ndarray) -> dict[str, float]:
    least = np.quantile(scores[is_inside], 1 - _RECALL)
    return {
        "auroc": 100 * float(roc_auc_score(is_inside, scores)),
        "aupr": 100 * float(average_precision_score(~is_inside, -scores)),
        "fpr95": 100 * float((scores[~is_inside] >= least).mean()),
    }
