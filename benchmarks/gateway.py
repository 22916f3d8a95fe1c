"""What the way of a request to its engine and back costs, when the engine itself costs nothing.

One request at a time, its time to the first token is what the gateway adds. Then as many at a time
as CLIENTS, each followed by the next: requests a second. The client runs beside the cluster on the
same cores, so a ratio of requests a second understates what differs.
"""

import asyncio
import json
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from rich.console import Console

from benchmarks.peers import Peer, ray_serve_llm, roundhouse
from benchmarks.replay import medians

ADAPTERS = 8
CLIENTS = 32
ALONE = 300
BUSY_S = 10.0
ROUNDS = 3
_PROMPT = "the quick brown fox jumps over a lazy dog"
# What Ray Serve LLM is told beside its defaults, to its configuration and its environment.
THEIRS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "Ray Serve LLM": ({}, {}),
    "Ray Serve LLM, tokens not collected": ({"stream_batching_interval_ms": 0}, {}),
    "Ray Serve LLM behind HAProxy": ({}, {"RAY_SERVE_ENABLE_HA_PROXY": "1"}),
}


def gateway(model: dict[str, Any], sources: list[Path], folder: Path, console: Console) -> Any:
    """Requests a second and time to the first token of each gateway, with two replicas and two
    processes that speak HTTP behind one proxy.

    Args:
        model: settings of a base model, for its folder and its room for adapters.
    """
    echo = {
        "id": "echo",
        "path": "none",
        "engine": "echo",
        "replicas": 2,
        "cpus_per_replica": 0.1,
        "max_ongoing": 100,
        "lora": {"slots": ADAPTERS, "host_entries": ADAPTERS, "max_rank": 8},
    }
    found: dict[str, Any] = {"clients": CLIENTS, "tokens": len(_PROMPT.split())}
    with roundhouse(folder / "ours", echo, sources, {"http": {"ingress_replicas": 2}}) as peer:
        found["Roundhouse"] = _measure(peer, "a{}".format, console)
    theirs = model | {k: echo[k] for k in ("lora", "replicas", "max_ongoing")}
    engine = {"RAYLLM_VLLM_ENGINE_CLS": "benchmarks.echo_in_ray.EchoInRay"}
    for i, (name, (config, env)) in enumerate(THEIRS.items()):
        where = folder / f"theirs-{i}"
        options = {"ingresses": 2, "experimental": config}
        with ray_serve_llm(where, theirs, sources, env=engine | env, **options) as peer:
            found[name] = _measure(peer, "smol:a{}".format, console)
    return found


def _measure(peer: Peer, models: Callable[[int], str], console: Console) -> dict[str, Any]:
    rounds = asyncio.run(_rounds(peer.url, models))
    found = medians(rounds)
    console.print(f"  {found}")
    return found | {"rounds": rounds}


async def _rounds(url: str, models: Callable[[int], str]) -> list[dict[str, float]]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, connector=connector) as session:
        for number in range(20 * ADAPTERS):  # every adapter on every replica, nothing compiles
            await _ask(session, models(number % ADAPTERS), is_stream=bool(number % 2))
        return [await _round(session, models) for _ in range(ROUNDS)]


async def _round(session: aiohttp.ClientSession, models: Callable[[int], str]) -> dict[str, float]:
    alone = [await _ask(session, models(n % ADAPTERS), is_stream=True) for n in range(ALONE)]
    first, whole = (1000 * np.array(times) for times in zip(*alone, strict=True))
    return {
        "ttft_p50_ms": round(float(np.percentile(first, 50)), 2),
        "ttft_p99_ms": round(float(np.percentile(first, 99)), 2),
        "whole_p50_ms": round(float(np.percentile(whole, 50)), 2),
        "streams_per_s": await _busy(session, models, is_stream=True),
        "answers_per_s": await _busy(session, models, is_stream=False),
    }


async def _busy(
    session: aiohttp.ClientSession, models: Callable[[int], str], *, is_stream: bool
) -> float:
    """Requests a second with every client asking again as soon as it is answered."""
    numbers, done = count(), 0
    began = time.perf_counter()

    async def client() -> None:
        nonlocal done
        while time.perf_counter() - began < BUSY_S:
            await _ask(session, models(next(numbers) % ADAPTERS), is_stream=is_stream)
            done += 1

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return round(done / (time.perf_counter() - began), 1)


async def _ask(
    session: aiohttp.ClientSession, model: str, *, is_stream: bool
) -> tuple[float, float]:
    """Seconds until the first token and until the last byte of an answer that is whole.

    By aiohttp and parsed afterwards: `benchmarks.replay`, which looks at every token as it comes,
    would take more time here than the gateway.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": _PROMPT}],
        "max_tokens": 100,
        "stream": is_stream,
    }
    began = time.perf_counter()
    first = None
    parts = []
    async with session.post("/v1/chat/completions", json=body) as answer:
        async for part in answer.content.iter_any():
            first = first or time.perf_counter()
            parts.append(part)
        ended = time.perf_counter()
        text = b"".join(parts)
        assert answer.status == 200, text
    said = _streamed(text) if is_stream else json.loads(text)["choices"][0]["message"]["content"]
    assert said == _PROMPT, text
    return first - began, ended - began


def _streamed(text: bytes) -> str:
    events = [e.removeprefix(b"data: ") for e in text.split(b"\n\n") if e.strip()]
    assert events.pop() == b"[DONE]", text
    return "".join(json.loads(e)["choices"][0]["delta"]["content"] for e in events)
