"""Plays a trace against an OpenAI-compatible endpoint, streaming, and measures every request."""

import asyncio
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from benchmarks.trace import Request

_WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "wizards")
TIMEOUT_S = 120
PERCENTS = (*range(0, 100, 5), 99, 100)


@dataclass
class Played:
    """What became of one request; times in seconds."""

    request: Request
    status: int = 0
    ttft_s: float | None = None
    latency_s: float | None = None
    tokens: int = 0
    longest_gap_s: float = 0.0
    residency: str = ""
    replica: str = ""
    problem: str = ""


@dataclass
class Replay:
    """All of a trace."""

    played: list[Played] = field(default_factory=list)
    lasted_s: float = 0.0


def prompt_of(request: Request, number: int) -> str:
    """Words that no other prompt starts with, so that no prefix cache helps."""
    rng = np.random.default_rng(number)
    return f"{number} " + " ".join(rng.choice(_WORDS, request.prompt_words - 1))


async def replay(
    url: str,
    trace: list[Request],
    model_of: Callable[[int], str],
    on_progress: Callable[[int], None] = lambda _: None,
) -> Replay:
    """Send every request at its time, whatever became of those before it."""
    found = Replay()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits) as client:
        began = time.perf_counter()

        async def play(number: int, request: Request) -> None:
            await asyncio.sleep(began + request.at_s - time.perf_counter())
            found.played.append(await _ask(client, number, request, model_of(request.adapter)))
            on_progress(len(found.played))

        await asyncio.gather(*(play(i, r) for i, r in enumerate(trace)))
        found.lasted_s = time.perf_counter() - began
    return found


async def _ask(client: httpx.AsyncClient, number: int, request: Request, model: str) -> Played:
    played = Played(request)
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt_of(request, number)}],
        "max_tokens": request.answer_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    began = last = time.perf_counter()
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            played.status = answer.status_code
            played.residency = answer.headers.get("x-roundhouse-residency", "")
            played.replica = answer.headers.get("x-roundhouse-replica", "")
            if answer.status_code != 200:
                played.problem = (await answer.aread())[:300].decode(errors="replace")
                return played
            async for line in answer.aiter_lines():
                if not _has_text(line):
                    continue
                now = time.perf_counter()
                if played.ttft_s is None:
                    played.ttft_s = now - began
                else:
                    played.longest_gap_s = max(played.longest_gap_s, now - last)
                last = now
                played.tokens += 1
    except httpx.HTTPError as e:
        played.problem = repr(e)
        return played
    played.latency_s = last - began
    if played.ttft_s is None:
        played.problem = "an answer without a token"
    return played


def _has_text(line: str) -> bool:
    if not line.startswith("data: {"):
        return False
    choices = json.loads(line[6:]).get("choices") or [{}]
    return bool((choices[0].get("delta") or {}).get("content"))


def summarise(
    found: Replay, unloaded_ttft_s: float | None = None, replicas: int = 0
) -> dict[str, float | list | dict]:
    """The numbers that are reported, see `docs/benchmarks.md`."""
    answered = [p for p in found.played if p.ttft_s is not None and not p.problem]
    ttft = np.array([p.ttft_s for p in answered]) if answered else np.array([np.nan])
    tpot = np.array(
        [(p.latency_s - p.ttft_s) / (p.tokens - 1) for p in answered if p.tokens > 1] or [np.nan]
    )
    everyone = len(found.played)
    tiers = Counter(p.residency for p in answered if p.residency)
    on = Counter(p.replica for p in answered if p.replica)
    summary = {
        "requests": everyone,
        "answered": len(answered),
        "refused (429)": sum(p.status == 429 for p in found.played),
        "failed": sum(bool(p.problem) and p.status != 429 for p in found.played),
        "requests_per_s": round(len(answered) / max(p.request.at_s for p in found.played), 2),
        "requests_per_s_with_drain": round(len(answered) / found.lasted_s, 2),
        "ttft_p50_ms": _ms(np.percentile(ttft, 50)),
        "ttft_p99_ms": _ms(np.percentile(ttft, 99)),
        "ttft_ms_by_percent": [_ms(np.percentile(ttft, p)) for p in PERCENTS],
        "tpot_p50_ms": _ms(np.percentile(tpot, 50)),
        "tpot_p99_ms": _ms(np.percentile(tpot, 99)),
        "longest_gap_ms": _ms(max((p.longest_gap_s for p in answered), default=0.0)),
        "ttft_under_6s": round(100 * float((ttft < 6).sum()) / everyone, 1),
    }
    if unloaded_ttft_s is not None:
        fast = float((ttft < 5 * unloaded_ttft_s).sum())
        summary["ttft_under_5x_unloaded"] = round(100 * fast / everyone, 1)
    if tiers:
        summary["tiers"] = {tier: tiers[tier] for tier in ("slot", "host", "node", "remote")}
        hits = tiers["slot"] + tiers["host"]
        summary["hit_ratio"] = round(100 * hits / tiers.total(), 1)
    if on:
        summary["max_over_mean_load"] = round(max(on.values()) * replicas / on.total(), 2)
    problems = Counter(p.problem[:120] for p in found.played if p.problem and p.status != 429)
    if problems:
        summary["problems"] = dict(problems.most_common(3))
    return summary


def medians(all: list[dict[str, Any]]) -> dict[str, float]:
    """Of each number that summaries of several traces or rounds have."""
    keys = [k for k, v in all[0].items() if isinstance(v, int | float)]
    return {k: round(statistics.median(one[k] for one in all if k in one), 1) for k in keys}


def _ms(seconds: float) -> float:
    return round(1000 * float(seconds), 1)
