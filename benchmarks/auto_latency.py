"""What `auto` adds to a request over HTTP: a part of `router.py`.

The same prompts to `auto` and to a named adapter, by turns, one in flight, over Ray Serve, with an
engine that costs nothing. Three catalogues: intents, the demo's, and one whose every prompt the
reader is asked about.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
from rich.console import Console

from benchmarks import routing_data
from benchmarks.adapters import write_adapter
from benchmarks.routing_data import split
from benchmarks.store import ECHO, ECHO_SHAPES, ECHO_TARGETS
from deployments.command.client import Client
from examples.base_model import default_cache_dir, prepare_base_model
from examples.evaluate import ADAPTERS, held_out
from examples.skills import SKILLS
from router.adapters.evaluation import CardLine

if TYPE_CHECKING:
    from benchmarks.router import Bench

_REQUESTS, _BEFORE = 400, 40
# Of the bar for prompts that are all read.
_TOKENS = 64
console = Console(stderr=True)
_COMPLETIONS = "/v1/chat/completions"


@dataclass(frozen=True)
class Traffic:
    """Cards, and prompts that are asked of them.

    Attributes:
        router: settings of the section.
    """

    cards: Sequence[CardLine]
    prompts: Sequence[str]
    router: dict[str, Any] = field(default_factory=dict)


def endpoint(bench: "Bench") -> dict[str, Any]:
    base = str(prepare_base_model(default_cache_dir(), console))
    traffic: dict[str, Callable[[], Traffic]] = {
        "150 intents, no reader": lambda: _intents(bench.data),
        "the demo": lambda: _demo(base),
        f"every prompt read, {_TOKENS} tokens": lambda: _all_read(bench.data, base),
    }
    return {name: _measure(made()) for name, made in traffic.items()}


def _intents(data: Path) -> Traffic:
    _, labelled = routing_data.clinc(data)
    train, test = split(labelled, 20, 0)
    cards = [
        CardLine(
            name=f"intent-{label}",
            examples=tuple(labelled.texts[i] for i in train[labelled.labels[train] == label]),
        )
        for label in range(len(labelled.names))
    ]
    return Traffic(cards, [labelled.texts[i] for i in test])


def _demo(base: str) -> Traffic:
    cards = [
        CardLine.model_validate_json((ADAPTERS / skill / "card.json").read_text())
        for skill in SKILLS
    ]
    prompts = [example.prompt for skill in SKILLS for example in held_out(skill)]
    return Traffic(cards, prompts, {"reader": base})


def _all_read(data: Path, base: str) -> Traffic:
    """Exams of one example each: where the reader may say more, and nothing tells when it does."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    labelled = routing_data.agieval(data)
    train, test = split(labelled, 1, 0)
    cards = [
        CardLine(name=labelled.names[labelled.labels[i]], examples=(labelled.texts[i],))
        for i in train
    ]
    ids = [tokenizer(labelled.texts[i])["input_ids"] for i in test]
    prompts = [tokenizer.decode(tokens[:_TOKENS]) for tokens in ids if len(tokens) >= _TOKENS]
    return Traffic(cards, prompts, {"reader": base})


def _measure(traffic: Traffic) -> dict[str, Any]:
    from tests.conftest import running_cluster

    asked = np.random.default_rng(0).permutation(list(traffic.prompts))[: _BEFORE + _REQUESTS]
    with tempfile.TemporaryDirectory(prefix="rh-bench-") as temporary:
        folder = Path(temporary)
        source = folder / "adapter"
        write_adapter(source, ECHO_SHAPES, 4, ECHO_TARGETS, seed=0)
        settings = {"models": [ECHO], "router": traffic.router}
        with running_cluster(folder, settings, 900) as running:
            admin = Client(running.url)
            for card in traffic.cards:
                told = card.model_dump(mode="json")
                admin.post("/v1/adapters", told | {"source": str(source), "base_model": "echo"})
            time.sleep(10)  # until the router has learnt them anew
            with httpx.Client(base_url=running.url, timeout=60) as client:
                return _compared(client, asked.tolist(), traffic.cards[0].name)


def _compared(client: httpx.Client, prompts: list[str], named: str) -> dict[str, Any]:
    """One after the other to `auto`, to an adapter, and to who would only choose."""
    took: dict[str, list[float]] = {"auto": [], "named": [], "POST /v1/route": []}
    has_read = []
    for text in prompts:
        for kind, model in (("auto", "auto"), ("named", named)):
            message = {"role": "user", "content": text}
            body = {"model": model, "messages": [message], "max_tokens": 1}
            took[kind].append(_asked(client, _COMPLETIONS, body)[0])
        seconds, told = _asked(client, "/v1/route", {"input": text})
        took["POST /v1/route"].append(seconds)
        has_read.append(told["decisions"][0]["has_read"])
    times = {kind: np.array(seconds[_BEFORE:]) for kind, seconds in took.items()}
    times["added"] = times["auto"] - times["named"]
    found: dict[str, Any] = {kind: _percentiles(seconds) for kind, seconds in times.items()}
    return found | {
        "requests": len(prompts) - _BEFORE,
        "asked": round(100 * float(np.mean(has_read[_BEFORE:])), 1),
    }


def _asked(client: httpx.Client, path: str, body: dict[str, Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    answer = client.post(path, json=body).raise_for_status()
    return time.perf_counter() - started, answer.json()


def _percentiles(seconds: Any) -> dict[str, float]:
    return {
        "p50_ms": round(1000 * float(np.percentile(seconds, 50)), 2),
        "p99_ms": round(1000 * float(np.percentile(seconds, 99)), 2),
    }
