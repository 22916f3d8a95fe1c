"""How well and how fast the router chooses: `make bench-router` writes `results/router.json`.

- adapters: BIG-Bench-Hard and CLINC150, from names alone to all examples, beside the baselines
- reader_*: what each kernel is worth, with and without a small model's first layers
- scope: near and far prompts out of scope, of intents and of tasks
- trained_*: what it is worth that a catalogue teaches its encoder
- weights: the demo's adapters without their cards
- expert models: MMLU by a weak and a strong model, 5 folds
- ten thousand adapters: the time of a choice, and of a new card
- the endpoint: what `auto` adds to a request, one in flight, over Ray Serve
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from sklearn.metrics import roc_auc_score

from adapter_store.files.blobs import WEIGHTS
from benchmarks import auto_latency, reader, routing_data, scope, training
from benchmarks.routing_data import Labelled, split
from benchmarks.routing_scores import centroids, mean, ridge
from cluster.settings import RouterSettings
from examples.base_model import default_cache_dir, prepare_base_model
from examples.evaluate import ADAPTERS, held_out
from examples.skills import SKILLS
from router.adapters.arrow import ArrowRouter
from router.adapters.calibration.left_out import calibration_error
from router.adapters.classifier import Classifier, Verdict
from router.adapters.encoder import SentenceEncoder
from router.adapters.evaluation import curve_of
from router.adapters.experts.predictor import QualityPredictor
from router.adapters.features import FeatureExtractor, Features, Kernel, KernelWeights
from router.adapters.fitting import Learning

HERE = Path(__file__).parent
RESULT = HERE / "results" / "router.json"
EVERYDAY = HERE.parent / "router" / "adapters" / "data" / "everyday_prompts.txt"
SEEDS = (0, 1, 2)
FEW = 20
# LoraRetriever's own words (Zhao et al. 2024, section 3.2), for its recipe.
_RETRIEVER_PROMPT = "Represent the sentence for similar task retrieval: "
console = Console(stderr=True)


class Bench:
    """The encoder, and what it has read."""

    def __init__(self, data: Path, settings: RouterSettings) -> None:
        self.data = data
        self.settings = settings
        self.extract = FeatureExtractor(self._encoder(settings.encoder_prefix))
        self.instructed = self._encoder(_RETRIEVER_PROMPT)
        self.background = self.extract(EVERYDAY.read_text().splitlines())

    def _encoder(self, prefix: str) -> SentenceEncoder:
        settings = self.settings
        return SentenceEncoder(
            settings.encoder, prefix=prefix, window_tokens=settings.window_tokens
        )

    def read(self, texts: list[str], what: str) -> Features:
        parts = []
        with console.status(f"reading {what}") as status:
            for i in range(0, len(texts), 512):
                status.update(f"reading {what}: {i} of {len(texts)}")
                parts.append(self.extract(texts[i : i + 512]))
        return Features.stack(parts)

    def classifier(self, features: Features, labels: np.ndarray) -> Classifier:
        return Classifier.learn(features, labels, self.background, self.learning()).classifier

    def learning(self, *, are_prompts: bool = False) -> Learning:
        return Learning.of(self.settings, are_prompts=are_prompts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--encoder", default=RouterSettings().encoder)
    parser.add_argument("--window", type=int, default=RouterSettings().window_tokens)
    parser.add_argument("--only", choices=PARTS, help="measure one part, keep the others' results")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    if not args.data.is_dir():
        raise SystemExit(f"{args.data} is not there: give the folder of the data sets as --data")
    settings = RouterSettings(encoder=args.encoder, window_tokens=args.window)
    bench = Bench(args.data, settings)
    known = json.loads(args.out.read_text()) if args.only and args.out.exists() else {}
    packages = ("sentence-transformers", "torch", "scikit-learn", "numpy", "ray")
    result = known | {
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": {p: version(p) for p in packages} | {"features": bench.extract.version},
        "command": f"python -m benchmarks.router --window {args.window}",
    }
    for part in PARTS if args.only is None else (args.only,):
        console.print(part)
        result[part] = PARTS[part](bench)
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    console.print_json(json.dumps(result))


# -- choosing among adapters --------------------------------------------------------------------


def adapters(bench: Bench) -> dict[str, Any]:
    tasks = routing_data.bbh(bench.data)
    domains, intents = routing_data.clinc(bench.data)
    of_tasks = bench.read(tasks.texts, "BIG-Bench-Hard")
    of_domains = bench.read(domains.texts, "CLINC150, by domain")
    of_intents = bench.read(intents.texts, "CLINC150, by intent")
    suites: dict[str, tuple[Labelled, Features, int | None]] = {
        "27 BBH tasks, their names": (tasks, of_tasks, 0),
        "27 BBH tasks, 3 examples": (tasks, of_tasks, 3),
        "27 BBH tasks, 20 examples": (tasks, of_tasks, FEW),
        "10 CLINC150 domains, 20 examples": (domains, of_domains, FEW),
        "10 CLINC150 domains, 500 examples": (domains, of_domains, 500),
        "10 CLINC150 domains, all examples": (domains, of_domains, None),
        "150 CLINC150 intents, their names": (intents, of_intents, 0),
        "150 CLINC150 intents, 3 examples": (intents, of_intents, 3),
        "150 CLINC150 intents, 20 examples": (intents, of_intents, FEW),
        "150 CLINC150 intents, all examples": (intents, of_intents, None),
    }
    found = {}
    for name, (labelled, features, few) in suites.items():
        runs: dict[str, list[dict[str, float]]] = {}
        for seed in SEEDS if few else SEEDS[:1]:
            train, test = split(labelled, few, seed)
            console.print(f"  {name}, seed {seed}: {len(train)} examples, {len(test)} prompts")
            for method, measured in _measure(bench, labelled, features, train, test).items():
                runs.setdefault(method, []).append(measured)
        found[name] = {method: mean(measured) for method, measured in runs.items()}
    return found


def _measure(
    bench: Bench, labelled: Labelled, features: Features, train: np.ndarray, test: np.ndarray
) -> dict[str, dict[str, float]]:
    labels, truth = labelled.labels[train], labelled.labels[test]
    found = {"Roundhouse": _ours(bench, features[train], labels, features[test], truth)}
    for name, score in _baselines(bench, labelled, features, train, test).items():
        found[name] = _scored(score, truth)
    return found


def _ours(
    bench: Bench, learnt: Features, labels: np.ndarray, asked: Features, truth: np.ndarray
) -> dict[str, float]:
    started = time.perf_counter()
    classifier = bench.classifier(learnt, labels)
    fit_s = time.perf_counter() - started
    everything = np.ones(classifier.classes, dtype=bool)
    verdicts = classifier.judge(asked, everything, everything)
    best = np.array([v.classes[0] for v in verdicts])
    first = np.array([v.probabilities[0] for v in verdicts])
    scope = np.array([v.scope for v in verdicts])
    inside, right = truth >= 0, best == truth
    abstains = scope < classifier.scope.threshold
    three = np.array([t in v.classes[:3] for v, t in zip(verdicts, truth, strict=True)])
    found = {
        "top1": 100 * float(right[inside].mean()),
        "top3": 100 * float(three[inside].mean()),
        "ece": 100 * calibration_error(scope * first, right),
        "abstains_in_scope": 100 * float(abstains[inside].mean()),
        "fit_s": fit_s,
    }
    if not inside.all():
        found["oos_auroc"] = 100 * float(roc_auc_score(inside, scope * first))
        found["abstains_out_of_scope"] = 100 * float(abstains[~inside].mean())
    return found


def _baselines(
    bench: Bench, labelled: Labelled, features: Features, train: np.ndarray, test: np.ndarray
) -> dict[str, np.ndarray]:
    """(prompts, classes) scores of each method."""
    labels, classes = labelled.labels[train], len(labelled.names)
    learnt, asked = features[train], features[test]
    alike = asked.meaning @ learnt.meaning.T
    kernel = Kernel(KernelWeights(meaning=0, form=0, wording=1), learnt, learnt)
    return {
        "random": np.random.default_rng(0).random((len(test), classes)),
        "centroid": asked.meaning @ centroids(learnt.meaning, labels, classes).T,
        "1-NN": np.stack([alike[:, labels == c].max(axis=1) for c in range(classes)], axis=1),
        "encoder + ridge": ridge(learnt.meaning @ learnt.meaning.T, alike, labels, classes),
        "n-grams + ridge": ridge(kernel.parts(learnt)[2], kernel.parts(asked)[2], labels, classes),
        "LoraRetriever's recipe": _retriever(bench, labelled, train, test),
    }


def _retriever(bench: Bench, labelled: Labelled, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Instructed embeddings, the mean of at most 20 examples, inner product."""
    few = np.concatenate(
        [train[labelled.labels[train] == c][:FEW] for c in range(len(labelled.names))]
    )
    learnt = bench.instructed.encode([labelled.texts[i] for i in few]).meaning
    asked = bench.instructed.encode([labelled.texts[i] for i in test]).meaning
    return asked @ centroids(learnt, labelled.labels[few], len(labelled.names)).T


def _scored(scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    inside = truth >= 0
    ranked = np.argsort(-scores, axis=1)
    found = {
        "top1": 100 * float((ranked[:, 0] == truth)[inside].mean()),
        "top3": 100 * float((ranked[:, :3] == truth[:, None]).any(axis=1)[inside].mean()),
    }
    if not inside.all():
        found["oos_auroc"] = 100 * float(roc_auc_score(inside, scores.max(axis=1)))
    return found


def weights(_: Bench) -> dict[str, Any]:
    """Arrow's prototypes: of the demo's adapters nothing is known but their weights."""
    base = str(prepare_base_model(default_cache_dir(), console))
    asked = [(skill, e.prompt) for skill in SKILLS for e in held_out(skill)[:FEW]]
    found: dict[str, Any] = {"adapters": len(SKILLS), "prompts": len(asked)}
    for layers in (8, 30):
        arrow = ArrowRouter(base, layers, EVERYDAY.read_text().splitlines())
        for skill in SKILLS:
            arrow.learn(skill, ADAPTERS / skill / WEIGHTS)
        right, took = 0, []
        for skill, prompt in asked:
            started = time.perf_counter()
            scores = arrow.scores(prompt, SKILLS)
            took.append(time.perf_counter() - started)
            right += max(scores, key=lambda s: scores[s]) == skill
        top1 = round(100 * right / len(asked), 1)
        found[f"first {layers} layers"] = {"top1": top1} | _percentiles(took)
    return found


# -- choosing among expert models ---------------------------------------------------------------


def experts(bench: Bench) -> dict[str, Any]:
    texts, subjects, scores = routing_data.mmlu(bench.data)
    features = bench.read(texts, "MMLU")
    folds = np.random.default_rng(0).permutation(len(texts)) % 5
    names = ["weak", "strong"]
    runs: dict[str, list[float]] = {}
    for fold in range(5):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        started = time.perf_counter()
        columns = {name: scores[train, i] for i, name in enumerate(names)}
        predictor = QualityPredictor.fit(features[train], columns)
        fit_s = time.perf_counter() - started
        predicted = predictor.predict(features[test])
        ordered = predicted[:, [predictor.candidates.index(n) for n in names]]
        methods = {
            "Roundhouse": ordered,
            "random": np.random.default_rng(fold).random((len(test), 2)),
            "length of the prompt": np.array([[0, len(texts[i])] for i in test], dtype=float),
            "40 nearest prompts": _nearest(features, train, test, scores),
            "mean of the subject (told)": np.stack(
                [scores[train][subjects[train] == s].mean(axis=0) for s in subjects[test]]
            ),
            "oracle": scores[test],
        }
        for method, table in methods.items():
            curve = _two(table, scores[test], names)
            runs.setdefault(method, []).append(curve.apgr)
        runs.setdefault("fit_s", []).append(fit_s)
        console.print(f"  fold {fold}: APGR {runs['Roundhouse'][-1]:.3f}, fit {fit_s:.1f} s")
    return {
        "prompts": len(texts),
        "weak": round(100 * float(scores[:, 0].mean()), 2),
        "strong": round(100 * float(scores[:, 1].mean()), 2),
        "apgr": {m: round(float(np.mean(v)), 4) for m, v in runs.items() if m != "fit_s"},
        "apgr_by_fold": [round(v, 4) for v in runs["Roundhouse"]],
        "fit_s": round(float(np.median(runs["fit_s"])), 1),
    }


def _two(predicted: np.ndarray, scores: np.ndarray, names: list[str]) -> Any:
    costs = np.array([0.0, 1.0])
    return curve_of(predicted, scores, costs, np.broadcast_to(costs, scores.shape), names)


def _nearest(
    features: Features, train: np.ndarray, test: np.ndarray, scores: np.ndarray, k: int = 40
) -> np.ndarray:
    alike = features.meaning[test] @ features.meaning[train].T
    near = np.argpartition(-alike, k, axis=1)[:, :k]
    return scores[train][near].mean(axis=1)


# -- ten thousand adapters ----------------------------------------------------------------------


def scale(bench: Bench, classes: int = 10_000, each: int = 4) -> dict[str, Any]:
    """Cards of four prompts each, from all three data sets; prompts of the same task follow one
    another, so that adapters are as alike as those of a real catalogue may be."""
    domains, intents = routing_data.clinc(bench.data)
    order = np.argsort(intents.labels, kind="stable")
    texts = [intents.texts[i] for i in order] + routing_data.mmlu(bench.data)[0]
    texts += routing_data.bbh(bench.data).texts
    features = bench.read(texts[: classes * each + each], f"{classes} cards")
    labels = np.arange(classes * each) // each
    queries = [bench.extract([domains.texts[i]]) for i in range(0, 20_000, 100)]
    found: dict[str, Any] = {"examples_each": each}
    for count in (13, 150, 1000, classes):
        chosen = np.arange(count * each)
        started = time.perf_counter()
        classifier = bench.classifier(features[chosen], labels[chosen])
        fit_s = time.perf_counter() - started
        took = [_timed(partial(_judge, classifier, query)) for query in queries]
        found[f"{count} adapters"] = {"learnt_s": round(fit_s, 2), **_percentiles(took)}
    found["encoder alone"] = _percentiles(
        [_timed(lambda i=i: bench.extract([domains.texts[i]])) for i in range(0, 20_000, 100)]
    )
    fresh = features[np.arange(classes * each, classes * each + each)]
    label = np.full(each, classes)
    found["new card, classifier"] = _percentiles(
        [_timed(lambda: classifier.with_classes(fresh, label)) for _ in range(3)]
    )
    found["card removed, classifier"] = _percentiles(
        [_timed(lambda: classifier.without_class(5, features[20:24])) for _ in range(3)]
    )
    same = [_judge(classifier, q).classes[0] == _best_of_all(classifier, q) for q in queries]
    found["shortlist holds the best"] = round(100 * float(np.mean(same)), 2)
    return found


def _judge(classifier: Classifier, query: Features) -> Verdict:
    everything = np.ones(classifier.classes, dtype=bool)
    return classifier.judge(query, everything, everything)[0]


def _best_of_all(classifier: Classifier, query: Features) -> int:
    regressors = classifier.kernel.regressors(query)
    return int((classifier.coefficients @ regressors[0] + 1 / classifier.classes).argmax())


def _timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _percentiles(seconds: list[float]) -> dict[str, float]:
    return {
        "p50_ms": round(1000 * float(np.percentile(seconds, 50)), 2),
        "p99_ms": round(1000 * float(np.percentile(seconds, 99)), 2),
    }


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "adapters": adapters,
    "reader_exams": reader.exams,
    "reader_tasks": reader.tasks,
    "reader_intents": reader.intents,
    "reader_times": reader.times,
    "scope": scope.scope,
    "trained_intents": training.intents,
    "trained_tasks": training.tasks,
    "weights": weights,
    "experts": experts,
    "scale": scale,
    "endpoint": auto_latency.endpoint,
}


if __name__ == "__main__":
    main()
