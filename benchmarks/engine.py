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
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

from rich.console import Console

from benchmarks.adapters import write_adapter

BATCH, PROMPT_TOKENS, DECODE_TOKENS, PREFILL_TOKENS = 16, 24, 33, 900
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
CACHE = Path(os.environ.get("ROUNDHOUSE_CACHE", "~/.cache/roundhouse")).expanduser()
MODEL = CACHE / "smollm2-135m-instruct"

console = Console(stderr=True)


# --- subjects: each answers `generate` and `use` ---------------------------------------------


class VllmSubject:
    """Our engine, or stock vLLM, driven below the HTTP layer."""

    def __init__(self, ours: bool, rank: int, folder: Path) -> None:
        from cluster.settings import BaseModelSettings

        self._ours = ours
        self._folder = folder
        self._settings = BaseModelSettings(
            id="smol",
            path=str(MODEL),
            lora={"slots": 16, "host_entries": 32, "max_rank": rank},
            engine_args={
                "dtype": "bfloat16",
                "max_model_len": 1024,
                "max_num_seqs": BATCH,
                "max_num_batched_tokens": 1024,
                "enforce_eager": True,
                "enable_prefix_caching": False,
            },
        )
        self._requests = {}
        # The times of the tokens of every request, as they come.
        self.live: list[list[float]] = []

    async def start(self) -> dict[str, tuple[int, int]]:
        from deployments.vllm_engine import VllmEngine, base_model_facts, engine_args

        if not self._ours:
            from vllm.v1.engine.async_llm import AsyncLLM

            args = engine_args(self._settings)
            args.worker_extension_cls = ""
            self.llm = AsyncLLM.from_engine_args(args)
            return base_model_facts(self._settings, args.model).linear_shapes
        from adapter_store.blobs import BlobStore
        from adapter_store.node_cache import NodeCache
        from deployments.adapter_cache import AdapterCache
        from deployments.adapter_files import AdapterFiles

        self._engine = engine = VllmEngine(self._settings)
        facts = await engine.start()
        self.llm = engine.llm
        self._blobs = BlobStore(self._folder / "store")
        files = AdapterFiles(self._blobs, NodeCache(self._folder / "node", 2**32), engine)
        self._cache = AdapterCache(engine, files, 32)
        return facts.linear_shapes

    def put(self, source: Path) -> str:
        """What registration does, long before a load."""
        if not self._ours:
            return ""
        with self._blobs.staged(source) as staged:
            return self._blobs.commit(staged)[0]

    async def load(self, number: int, source: Path, digest: str) -> None:
        """From here on, requests may name the adapter."""
        from vllm.lora.request import LoRARequest

        from cluster.state import AdapterRef

        if self._ours:
            ref = AdapterRef(name=f"a{number}", version=1, digest=digest)
            await self._cache.ensure(ref)
            self._requests[number] = self._engine.request(ref)
        else:
            self._requests[number] = LoRARequest(f"a{number}@1", number, str(source))
            await self.llm.add_lora(self._requests[number])

    async def token_times(self, prompt: list[int], tokens: int, adapter: int | None) -> list[float]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=0,
            max_tokens=tokens,
            ignore_eos=True,
            output_kind=RequestOutputKind.DELTA,
        )
        times: list[float] = []
        self.live.append(times)
        stream = self.llm.generate(
            {"prompt_token_ids": prompt},
            params,
            request_id=str(random.random()),
            lora_request=self._requests.get(adapter),
        )
        async for output in stream:
            now = time.perf_counter()
            times += [now] * len(output.outputs[0].token_ids)
        return times

    async def decode(self, prompts: list[list[int]], adapters: list[int | None]) -> float:
        """Tokens a second while every request of the batch decodes."""
        work = zip(prompts, adapters, strict=True)
        runs = await asyncio.gather(*(self.token_times(p, DECODE_TOKENS, a) for p, a in work))
        begin, end = max(r[0] for r in runs), min(r[-1] for r in runs)
        return sum(begin < t <= end for r in runs for t in r) / (end - begin)

    async def prefill(self, prompts: list[list[int]], adapters: list[int | None]) -> float:
        """Seconds until the last prompt has its first token."""
        began = time.perf_counter()
        work = zip(prompts, adapters, strict=True)
        await asyncio.gather(*(self.token_times(p, 1, a) for p, a in work))
        return time.perf_counter() - began

    async def stalls(self, sources: list[Path]) -> list[tuple[float, float]]:
        """The longest gap (ms) between tokens of 8 running requests: in a window without a load,
        and in one of the same length around a load and the first request for what was loaded,
        once for each source. There is a slot for each."""
        digests = [self.put(source) for source in sources]
        prompts = _prompts(8, PROMPT_TOKENS)
        running = [asyncio.create_task(self.token_times(p, 990, None)) for p in prompts]
        windows = []
        await asyncio.sleep(3)
        watched = self.live[-len(prompts) :]
        for number, (source, digest) in enumerate(zip(sources, digests, strict=True), 1):
            await asyncio.sleep(0.5)
            began = time.perf_counter()
            await self.load(number, source, digest)
            # A prompt of one token, so that its prefill is no gap of its own.
            await self.token_times(_prompts(1, 1)[0], 1, number)
            end = time.perf_counter() + 0.1
            await asyncio.sleep(0.5)
            quiet = time.perf_counter()
            windows.append(((quiet, quiet + end - began), (began, end)))
            await asyncio.sleep(end - began)
        for task in running:
            task.cancel()
        runs = await asyncio.gather(*running, return_exceptions=True)
        assert all(isinstance(r, asyncio.CancelledError) for r in runs), "ended before the loads"
        return [
            (_longest_gap(watched, quiet) * 1e3, _longest_gap(watched, busy) * 1e3)
            for quiet, busy in windows
        ]

    def stop(self) -> None:
        self.llm.shutdown()


class PeftSubject:
    """transformers with peft's `adapter_names`, padded batches."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    async def start(self) -> dict[str, tuple[int, int]]:
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self._model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16).eval()
        head = self._model.get_output_embeddings()
        return {
            name: (m.out_features, m.in_features)
            for name, m in self._model.named_modules()
            if isinstance(m, torch.nn.Linear) and m is not head
        }

    def put(self, source: Path) -> str:
        return ""

    async def load(self, number: int, source: Path, digest: str) -> None:
        from peft import PeftModel

        if isinstance(self._model, PeftModel):
            self._model.load_adapter(source, adapter_name=f"a{number}")
        else:
            self._model = PeftModel.from_pretrained(self._model, source, adapter_name=f"a{number}")
        self._model.eval()

    def _names(self, adapters: list[int | None]) -> list[str]:
        return ["__base__" if a is None else f"a{a}" for a in adapters]

    def _generate(self, prompts, adapters, tokens: int) -> float:
        ids = self._torch.tensor(prompts)
        began = time.perf_counter()
        with self._torch.no_grad():
            self._model.generate(
                input_ids=ids,
                attention_mask=self._torch.ones_like(ids),
                adapter_names=self._names(adapters),
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return time.perf_counter() - began

    async def decode(self, prompts: list[list[int]], adapters: list[int | None]) -> float:
        first = self._generate(prompts, adapters, 1)
        whole = self._generate(prompts, adapters, DECODE_TOKENS)
        return len(prompts) * (DECODE_TOKENS - 1) / (whole - first)

    async def prefill(self, prompts: list[list[int]], adapters: list[int | None]) -> float:
        return self._generate(prompts, adapters, 1)

    def stop(self) -> None:
        pass


# --- one subject, in its own process ----------------------------------------------------------


async def measure(subject: str, rank: int, rounds: int) -> dict:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = subject.startswith("ours")
        one = PeftSubject(rank) if subject == "peft" else VllmSubject(ours, rank, folder)
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
        await one.load(number, source, one.put(source))
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
    prompts = _prompts(rows, PROMPT_TOKENS if kind == "decode" else PREFILL_TOKENS // count)
    run = getattr(one, kind)
    without, with_them = [None] * rows, [1 + i % count for i in range(rows)]
    if turn % 2:
        return await run(prompts, without), await run(prompts, with_them)
    later = await run(prompts, with_them)
    return await run(prompts, without), later


def _longest_gap(requests: list[list[float]], window: tuple[float, float]) -> float:
    """The longest time between two tokens of a request, of which a part lies in the window."""
    begin, end = window
    gaps = (
        after - before
        for times in requests
        for before, after in pairwise(times)
        if before < end and after > begin
    )
    return max(gaps)


def _prompts(count: int, length: int) -> list[list[int]]:
    return [[random.randrange(1000, 40000) for _ in range(length)] for _ in range(count)]


# --- all of them ------------------------------------------------------------------------------


def environment(subject: str, threads: int) -> dict[str, str]:
    given = dict(os.environ)
    given |= {
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }
    if subject == "stock vLLM":
        given["VLLM_PLUGINS"] = ""
    if subject == "ours without a compiler":
        given["CXX"] = "no-compiler"
    return given


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
                counts = sorted(int(c) for c in by_count)
                values = [by_count[c] for c in counts]
                axis.plot(counts, values, "o-", color=styles[subject], label=subject)
            axis.axhline(BARS[kind], color="black", linewidth=0.8, linestyle=":")
            axis.set_xscale("log", base=2)
            axis.set_xticks(COUNTS, [str(c) for c in COUNTS])
            axis.set_ylim(0, 1.15)
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
        "command": "python -m benchmarks.engine " + " ".join(sys.argv[1:]),
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
