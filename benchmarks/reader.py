"""What a reader adds to the choice: each kernel alone, and the cascade. Parts of `router.py`.

The reader is the demo's base model. Everything is learnt from the examples alone; of many test
prompts some are taken at random.
"""

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from sklearn.metrics import roc_auc_score

from benchmarks import routing_data
from benchmarks.routing_data import Labelled, split
from benchmarks.routing_scores import mean, ridge
from cluster.settings import RouterSettings
from examples.base_model import default_cache_dir, prepare_base_model
from examples.evaluate import ADAPTERS, held_out
from examples.skills import SKILLS
from router.adapters.calibration.left_out import calibration_error
from router.adapters.cascade import Cascade, Judged
from router.adapters.encoder import SentenceEncoder
from router.adapters.evaluation import CardLine, PromptLine, evaluate_cards
from router.adapters.features import FeatureExtractor, Features, Kernel, KernelWeights
from router.adapters.prompt_router import everyday_prompts
from router.adapters.reader import Reader

if TYPE_CHECKING:
    from benchmarks.router import Bench

MOST_PROMPTS = 2500
# Of the endpoint's bar: every prompt needs the reader, and has so many tokens.
_LONG_TOKENS = 64
console = Console(stderr=True)


def exams(bench: "Bench") -> dict[str, Any]:
    labelled = routing_data.agieval(bench.data)
    return _suite(bench, labelled, "20 AGIEval exams", {20: 1, 5: 3, 3: 3, 1: 3})


def tasks(bench: "Bench") -> dict[str, Any]:
    labelled = routing_data.bbh(bench.data)
    return _suite(bench, labelled, "27 BBH tasks", {0: 1, 1: 3, 3: 3, 20: 1})


def intents(bench: "Bench") -> dict[str, Any]:
    _, labelled = routing_data.clinc(bench.data)
    return _suite(bench, labelled, "150 CLINC150 intents", {5: 2})


def _suite(bench: "Bench", labelled: Labelled, name: str, shots: dict[int, int]) -> dict[str, Any]:
    """By the examples that each card has (0: its name), and of how many draws of them."""
    extract = extractor(bench.settings)
    background = extract(everyday_prompts())
    features = Read(labelled, extract, name)
    found: dict[str, Any] = {"features": extract.version}
    for few, seeds in shots.items():
        runs: dict[str, list[dict[str, float]]] = {}
        for seed in range(seeds):
            train, test = split(labelled, few, seed)
            test = np.random.default_rng(0).permutation(test)[:MOST_PROMPTS]
            told = _measure(bench, labelled, features, background, train, test)
            for method, measured in told.items():
                runs.setdefault(method, []).append(measured)
        found[f"{few} examples"] = {m: mean(measured) for m, measured in runs.items()}
        console.print(name, few, json.dumps(found[f"{few} examples"]))
    return found


def extractor(settings: RouterSettings) -> FeatureExtractor:
    """With the demo's base model as the reader."""
    return FeatureExtractor(SentenceEncoder.of(settings), _reader(settings))


def _reader(settings: RouterSettings) -> Reader:
    base = str(prepare_base_model(default_cache_dir(), console))
    return Reader(base, layers=settings.reader_layers, window_tokens=settings.reader_window_tokens)


class Read:
    """The features of some texts, each read once."""

    def __init__(self, labelled: Labelled, extract: FeatureExtractor, what: str) -> None:
        self._texts, self._extract, self._what = labelled.texts, extract, what
        self._known: dict[int, Features] = {}

    def __call__(self, rows: np.ndarray) -> Features:
        new = [i for i in rows.tolist() if i not in self._known]
        for start in range(0, len(new), 256):
            some = new[start : start + 256]
            console.print(f"  {self._what}: read {start} of {len(new)}")
            read = self._extract([self._texts[i] for i in some])
            self._known |= {row: read[i : i + 1] for i, row in enumerate(some)}
        return Features.stack([self._known[i] for i in rows.tolist()])


def _measure(
    bench: "Bench",
    labelled: Labelled,
    read: Callable[[np.ndarray], Features],
    background: Features,
    train: np.ndarray,
    test: np.ndarray,
) -> dict[str, dict[str, float]]:
    learnt, asked = read(train), read(test)
    labels, truth = labelled.labels[train], labelled.labels[test]
    started = time.perf_counter()
    are_prompts = bool((labelled.split[train] != "name").all())
    cascade = Cascade.fit(learnt, labels, background, bench.learning(are_prompts=are_prompts))
    fit_s = time.perf_counter() - started
    anything = np.ones(len(labelled.names), dtype=bool)
    judged = cascade.judge(asked, anything, anything, lambda rows: asked[rows])
    by = {
        "without the reader": cascade.quick,
        "always asked": cascade.best,
    }
    found = {
        name: scored([Judged(v, c, False) for v in c.judge(asked, anything, anything)], truth)
        for name, c in by.items()
    }
    found["cascade"] = scored(judged, truth) | {
        "asked": 100 * float(np.mean([j.has_read for j in judged])),
        "fit_s": fit_s,
    }
    found["weights"] = {"top1": 0.0} | cascade.best.kernel.weights.told
    return found | _alone(learnt, labels, asked, truth, len(labelled.names))


def _alone(
    learnt: Features, labels: np.ndarray, asked: Features, truth: np.ndarray, classes: int
) -> dict[str, dict[str, float]]:
    """Kernel ridge on each kind of likeness by itself, its strength by left-out examples."""
    weights = KernelWeights(wording=1, mean=1, last=1)
    kernel = Kernel(weights, learnt, learnt)
    between, alike = kernel.parts(learnt), kernel.parts(asked)
    found = {}
    kinds: dict[str, Callable[[Any], np.ndarray]] = {
        "meaning": lambda parts: np.exp(parts.meaning),
        "form": lambda parts: np.exp(parts.form),
        "meaning and form": lambda parts: parts.shares(KernelWeights())["meaning and form"],
        "wording": lambda parts: parts.wording,
        "reader, mean": lambda parts: parts.mean,
        "reader, last": lambda parts: parts.last,
    }
    for name, of in kinds.items():
        scores = ridge(of(between), of(alike), labels, classes)
        inside = truth >= 0
        right = scores.argmax(axis=1) == truth
        found[f"alone: {name}"] = {"top1": 100 * float(right[inside].mean())}
    return found


def scored(judged: list[Judged], truth: np.ndarray) -> dict[str, float]:
    best = np.array([j.verdict.classes[0] for j in judged])
    sure = np.array([j.verdict.scope * j.verdict.probabilities[0] for j in judged])
    stays_out = np.array([j.verdict.scope < j.by.scope.threshold for j in judged])
    inside = truth >= 0
    found = {
        "top1": 100 * float((best == truth)[inside].mean()),
        "ece": 100 * calibration_error(sure, best == truth),
        "abstains_in_scope": 100 * float(stays_out[inside].mean()),
    }
    if not inside.all():
        found["oos_auroc"] = 100 * float(roc_auc_score(inside, sure))
        found["abstains_out_of_scope"] = 100 * float(stays_out[~inside].mean())
    return found


def times(bench: "Bench", prompts: int = 400) -> dict[str, Any]:
    """Of a choice, one prompt at a time, on the demo's cards and the demo's prompts; and of reading
    texts of one length."""
    settings = bench.settings
    encoder, read = SentenceEncoder.of(settings), _reader(settings)
    cards = [
        CardLine.model_validate_json((ADAPTERS / skill / "card.json").read_text())
        for skill in SKILLS
    ]
    asked = [PromptLine(input=e.prompt, adapter=skill) for skill in SKILLS for e in held_out(skill)]
    order = np.random.default_rng(0).permutation(len(asked))[:prompts]
    some = [asked[i] for i in order]
    found: dict[str, Any] = {}
    for name, who in (("the demo, without the reader", None), ("the demo, cascade", read)):
        told, _ = evaluate_cards(cards, some, encoder, settings, lambda *_: None, who)
        found[name] = {k: told[k] for k in ("prompts", "top1", "latency_ms", "reader_asked")}
    for tokens in (16, _LONG_TOKENS, settings.reader_window_tokens):
        words = " word" * tokens
        found[f"reading {tokens} tokens"] = _timed(lambda words=words: read.read([words]))
    return found


def _timed(work: Callable[[], Any], times: int = 60, before: int = 10) -> dict[str, float]:
    took = []
    for _ in range(before + times):
        started = time.perf_counter()
        work()
        took.append(1000 * (time.perf_counter() - started))
    return {f"p{q}": round(float(np.percentile(took[before:], q)), 2) for q in (50, 99)}
