"""Choosing expert models while they answer: `make bench-experts` writes `results/experts.json`.

Recorded outcomes of seven small models on MMLU-Pro are played back as feedback: each prompt goes to
`auto` on the real endpoint, where engines answer that cost nothing; its score, given at
`POST /v1/feedback`, is what the model had that answered; the prompt router learns every so many.
Half way, in one of the scenes, the best and the worst model change places. Beside it stand the best
model alone, a predictor that has learnt all outcomes of other prompts before, and the oracle.
"""

import argparse
import asyncio
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.progress import Progress

from adapter_store.embedded import embedded_server
from adapter_store.routing_log import OutcomeReader
from adapter_store.store import Store
from benchmarks.expert_outcomes import foretold
from cluster.settings import BaseModelSettings, RouterSettings, StoreSettings
from router.adapters.encoder import Embeddings, SentenceEncoder
from router.adapters.evaluation import OutcomeLine, read_lines
from router.adapters.experts.predictor import QualityPredictor
from router.adapters.features import FeatureExtractor, Features
from router.adapters.prompt_router import PromptRouter
from router.adapters.prompts import clip
from router.adapters.reader import Reader
from tests.conftest import ECHO_FACTS
from tests.test_http import World, world

HERE = Path(__file__).parent
RESULT = HERE / "results" / "experts.json"
# Asked at once, and how many are rated before the router learns anew.
_AT_ONCE, _LEARN_EVERY = 25, 50
_WINDOWS = 10
# Of the replay's clock, on which one prompt comes a second.
_HALF_LIFE_S = 150.0

_SHARE = 0.2

# Settings of the router, and whether all seven models are rated on every prompt.
Policy = tuple[dict[str, Any], bool]
_THOMPSON = {"explore": "thompson", "explore_share": _SHARE}
SCENES: dict[str, dict[str, Policy]] = {
    "steady": {
        "none, all seven rated": ({}, True),
        "ucb": (_THOMPSON | {"explore": "ucb"}, False),
        "thompson": (_THOMPSON, False),
    },
    "drift": {
        "thompson": (_THOMPSON, False),
        "thompson, half-life": (_THOMPSON | {"feedback_half_life_s": _HALF_LIFE_S}, False),
    },
}


class _Remembering:
    """An encoder that encodes each text once: the same prompts are played many times."""

    def __init__(self, encoder: SentenceEncoder) -> None:
        self._encoder = encoder
        self._known: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def version(self) -> str:
        return self._encoder.version

    def encode(self, texts: list[str]) -> Embeddings:
        if new := [text for text in dict.fromkeys(texts) if text not in self._known]:
            found = self._encoder.encode(new)
            self._known |= dict(zip(new, zip(found.meaning, found.form, strict=True), strict=True))
        meaning, form = zip(*(self._known[text] for text in texts), strict=True)
        return Embeddings(np.stack(meaning), np.stack(form))


class Stream:
    """Prompts one after the other, and what each model's answer to each is worth.

    Attributes:
        scores: (n, c), as it is at the time: models may change places.
    """

    def __init__(self, texts: list[str], scores: np.ndarray, names: list[str]) -> None:
        self.texts, self.scores, self.names = texts, scores, names

    def drifting(self) -> "Stream":
        """The best and the worst model change places half way."""
        means, late = self.scores.mean(axis=0), len(self.texts) // 2
        best, worst = int(means.argmax()), int(means.argmin())
        scores = self.scores.copy()
        scores[late:, [best, worst]] = self.scores[late:, [worst, best]]
        return Stream(self.texts, scores, self.names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--before", type=int, default=4000, help="prompts learnt from offline")
    parser.add_argument("--reader", help="of the router, for what is foretold")
    parser.add_argument(
        "--only", choices=("foretold", "steady", "drift"), help="keep the others' results"
    )
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    encoder = _Remembering(SentenceEncoder.of(RouterSettings()))
    known = json.loads(args.out.read_text()) if args.only and args.out.exists() else {}
    result: dict[str, Any] = known | {
        "command": f"python -m benchmarks.experts --prompts {args.prompts} --before {args.before}",
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": {p: version(p) for p in ("sentence-transformers", "torch", "numpy", "redis")},
    }
    if args.only in (None, "foretold"):
        reader = Reader.of(RouterSettings(reader=args.reader)) if args.reader else None
        result["foretold"] = foretold(args.data, FeatureExtractor(encoder, reader))
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    scenes = [scene for scene in SCENES if args.only in (None, scene)]
    if scenes:
        lines = read_lines(args.data / "mmlu_pro_outcomes" / "small7_train.jsonl", OutcomeLine)
        stream, offline = _prepare(lines, args.prompts, args.before, encoder)
        result |= _told(stream)
        for scene in scenes:
            result[scene] = _scene(scene, stream, offline, encoder)
            args.out.write_text(json.dumps(result, indent=2) + "\n")
    if SCENES.keys() <= result.keys():
        _draw(result, args.out.with_suffix(".svg"))


def _told(stream: Stream) -> dict[str, Any]:
    means = stream.scores.mean(axis=0).round(4).tolist()
    return {
        "models": dict(zip(stream.names, means, strict=True)),
        "default model": _default(stream),
        "explore_share": _SHARE,
        "half_life": f"{_HALF_LIFE_S:g} prompts",
    }


def _scene(
    scene: str, stream: Stream, offline: np.ndarray, encoder: _Remembering
) -> dict[str, Any]:
    played = stream.drifting() if scene == "drift" else stream
    found: dict[str, Any] = {"bounds": _bounds(played, offline)}
    with Progress() as progress:
        for name, (settings, all_rated) in SCENES[scene].items():
            task = progress.add_task(f"{scene}: {name}", total=len(played.texts))
            advance = partial(progress.advance, task)
            got, explored = asyncio.run(_play(played, settings, all_rated, encoder, advance))
            found[name] = _summary(played, got, offline) | {"explored": explored}
    return found


def _prepare(
    lines: list[OutcomeLine], prompts: int, before: int, encoder: _Remembering
) -> tuple[Stream, np.ndarray]:
    """The stream, and (n,) whom a predictor chooses that has learnt other prompts."""
    # What was asked twice would be known before.
    distinct = list({clip(line.input): line for line in lines}.items())
    order = np.random.default_rng(0).permutation(len(distinct))[: prompts + before]
    texts = [distinct[i][0] for i in order]
    names = sorted(distinct[0][1].scores)
    scores = np.array([[distinct[i][1].scores[name] for name in names] for i in order])
    extract = FeatureExtractor(encoder)
    with Progress() as progress:
        starts = progress.track(range(0, len(texts), 100), description="reading the prompts")
        parts = [extract.glance(texts[i : i + 100]) for i in starts]
    features = Features.stack(parts)
    known = {name: scores[prompts:, i] for i, name in enumerate(names)}
    predictor = QualityPredictor.fit(features[prompts:], known)
    if predictor is None:
        raise SystemExit(f"--before {before}: too few to learn from")
    chosen = predictor.predict(features[:prompts]).argmax(axis=1)
    return Stream(texts[:prompts], scores[:prompts], names), chosen


def _default(stream: Stream) -> str:
    """The middle one, as somebody may have put first who has measured nothing."""
    return stream.names[int(np.argsort(stream.scores.mean(axis=0))[len(stream.names) // 2])]


async def _play(
    stream: Stream,
    settings: dict[str, Any],
    all_rated: bool,
    encoder: _Remembering,
    advance: Callable[[], None],
) -> tuple[np.ndarray, int]:
    """(n,) what the answers were worth, and how many choices were explored."""
    default = _default(stream)
    # The world's own model is called `echo`.
    ids = ["echo" if name == default else name for name in stream.names]
    ordered = sorted(ids, key=lambda name: name != "echo")
    models = [BaseModelSettings(id=name, path="none") for name in ordered]
    router = PromptRouter(encoder, RouterSettings(**settings), models)
    others = [{"id": name, "path": "none", "engine": "echo"} for name in ordered[1:]]
    async with AsyncExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="rh-bench-")))
        server = held.enter_context(embedded_server(folder))
        where = StoreSettings(url=server.url, namespace="experts")
        store = Store(where)
        held.push_async_callback(store.close)
        await store.registry.put_base_model(ECHO_FACTS)
        rh = await held.enter_async_context(world(where, router, folder, others=others))
        reader, got, explored = OutcomeReader(rh.log), np.zeros(len(stream.texts)), 0
        for batch in _batches(len(stream.texts), _AT_ONCE):
            found = await asyncio.gather(*(_ask(rh, stream, ids, i, all_rated) for i in batch))
            for i, (score, was_explored) in zip(batch, found, strict=True):
                got[i] = score
                explored += was_explored
                advance()
            if (batch[-1] + 1) % _LEARN_EVERY == 0:
                await reader.read()
                await asyncio.to_thread(router.learn_outcomes, _on_the_clock(stream, reader))
        return got, explored


async def _ask(
    rh: World, stream: Stream, ids: list[str], i: int, all_rated: bool
) -> tuple[float, bool]:
    """What the answer to a prompt is worth, once that was said, and whether it was explored."""
    request_id = f"p{i}"
    message = {"role": "user", "content": stream.texts[i]}
    body = {"model": "auto", "messages": [message], "max_tokens": 1}
    answer = await rh.client.post(
        "/v1/chat/completions", json=body, headers={"x-request-id": request_id}
    )
    answer.raise_for_status()
    scores = dict(zip(ids, stream.scores[i].tolist(), strict=True))
    score = scores[answer.json()["model"]]

    kept = await _kept(rh, request_id)
    said = {"scores": scores} if all_rated else {"score": score}
    told = await rh.client.post("/v1/feedback", json={"request_id": request_id} | said)
    told.raise_for_status()
    return score, kept["decision"].get("explored", False)


async def _kept(rh: World, request_id: str) -> dict[str, Any]:
    """What was decided; decisions are written in the background."""
    while True:
        told = await rh.client.get(f"/v1/decisions/{request_id}")
        if told.status_code == 200:
            found: dict[str, Any] = told.json()
            return found
        await asyncio.sleep(0.02)


def _on_the_clock(stream: Stream, reader: OutcomeReader) -> list[Any]:
    """The outcomes, each at the second that is its prompt's number."""
    number = {text: i for i, text in enumerate(stream.texts)}
    return [o.model_copy(update={"at": float(number[o.input])}) for o in reader.known]


def _batches(count: int, size: int) -> Iterator[range]:
    return (range(i, min(i + size, count)) for i in range(0, count, size))


def _bounds(stream: Stream, offline: np.ndarray) -> dict[str, Any]:
    rows = np.arange(len(stream.texts))
    alone = int(stream.scores.mean(axis=0).argmax())
    return {
        "at random": round(float(stream.scores.mean()), 4),
        "default model": round(
            float(stream.scores[:, stream.names.index(_default(stream))].mean()), 4
        ),
        "best model alone": round(float(stream.scores[:, alone].mean()), 4),
        "learnt before": _in_windows(stream.scores[rows, offline]),
        "oracle": _in_windows(stream.scores.max(axis=1)),
    }


def _summary(stream: Stream, got: np.ndarray, offline: np.ndarray) -> dict[str, Any]:
    rows = np.arange(len(stream.texts))
    regret = {
        "oracle": stream.scores.max(axis=1) - got,
        "learnt before": stream.scores[rows, offline] - got,
    }
    half = len(got) // 2
    return _in_windows(got) | {
        "second half": round(float(got[half:].mean()), 4),
        "regret": {to: _curve(lost) for to, lost in regret.items()},
    }


def _in_windows(scores: np.ndarray) -> dict[str, Any]:
    parts = [round(float(part.mean()), 4) for part in np.array_split(scores, _WINDOWS)]
    return {"mean": round(float(scores.mean()), 4), "by tenth": parts}


def _curve(lost: np.ndarray) -> list[float]:
    """Cumulative, after each tenth."""
    return [round(float(part[-1]), 1) for part in np.array_split(np.cumsum(lost), _WINDOWS)]


def _draw(result: dict[str, Any], path: Path) -> None:
    """Regret beside what was learnt before: below 0 it is better."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, scene in zip(figure.subplots(1, 2), ("steady", "drift"), strict=True):
        for name, found in result[scene].items():
            if name != "bounds":
                curve = found["regret"]["learnt before"]
                axes.plot(np.arange(1, len(curve) + 1) * 100 / len(curve), curve, label=name)
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.set(title=scene, xlabel="% of the prompts", ylabel="answers lost")
        axes.legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
