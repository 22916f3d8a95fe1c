"""How soon a turn of a chat begins to be answered: the demo on real vLLM, one request in flight."""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np
import yaml
from rich.console import Console

from examples.evaluate import ADAPTERS
from examples.skills import SKILLS

DEMO = Path(__file__).parent.parent / "examples" / "roundhouse.yaml"
ANSWER_TOKENS = 32
console = Console(stderr=True)


class Turn(Protocol):
    text: str
    task: str | None


def first_turns(made: Sequence[Sequence[Turn]], margin: float) -> dict[str, Any]:
    """Play conversations against the demo with such a `router.stay_margin`."""
    from tests.conftest import running_cluster

    settings = yaml.safe_load(DEMO.read_text())
    settings["preload"] = [str(ADAPTERS / skill) for skill in SKILLS]
    settings["router"] = {"stay_margin": margin}
    with (
        tempfile.TemporaryDirectory(prefix="rh-bench-") as folder,
        running_cluster(Path(folder), settings, 600) as running,
        httpx.Client(base_url=running.url, timeout=120) as client,
    ):
        _play(client, made[0])  # the first requests compile
        played = [turn for turns in made[1:] for turn in _play(client, turns)]
    later = [seconds for seconds, _, place in played if place]
    return {
        "turns": len(later),
        "p50_ms": round(1000 * float(np.percentile(later, 50)), 1),
        "p99_ms": round(1000 * float(np.percentile(later, 99)), 1),
        "right": round(100 * float(np.mean([right for _, right, place in played if place])), 1),
    }


def _play(client: httpx.Client, turns: Sequence[Turn]) -> list[tuple[float, bool, int]]:
    """Of each turn: seconds until its first token, whether the right one answered, its place."""
    messages: list[dict[str, str]] = []
    found = []
    for place, turn in enumerate(turns):
        messages.append({"role": "user", "content": turn.text})
        seconds, adapter, answer = _ask(client, messages)
        messages.append({"role": "assistant", "content": answer})
        found.append((seconds, adapter == (turn.task or "base"), place))
    shown = (f"{1000 * seconds:.0f}{'' if right else '!'}" for seconds, right, _ in found)
    console.print(f"  {' '.join(shown)} ms")
    return found


def _ask(client: httpx.Client, messages: list[dict[str, str]]) -> tuple[float, str, str]:
    body = {"model": "auto", "messages": messages, "stream": True, "temperature": 0}
    body |= {"max_tokens": ANSWER_TOKENS}
    began, first, answer = time.perf_counter(), 0.0, ""
    with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        reply.raise_for_status()
        for line in reply.iter_lines():
            if not line.startswith("data: {"):
                continue
            for choice in json.loads(line[6:])["choices"]:
                text = choice["delta"].get("content") or ""
                first = first or (time.perf_counter() - began if text else 0.0)
                answer += text
    return first or time.perf_counter() - began, reply.headers["x-roundhouse-adapter"], answer
