"""What `benchmarks.engine` measures: our engine, stock vLLM, and peft, driven below HTTP."""

import asyncio
import os
import random
import time
from itertools import pairwise
from pathlib import Path
from typing import Protocol

MODEL = (
    Path(os.environ.get("ROUNDHOUSE_CACHE", "~/.cache/roundhouse")).expanduser()
    / "smollm2-135m-instruct"
)
BATCH, PROMPT_TOKENS, DECODE_TOKENS = 16, 24, 33

Prompts = list[list[int]]
Adapters = list[int | None]


class Subject(Protocol):
    """An engine that runs batches in which every request names an adapter by number, or none."""

    async def start(self) -> dict[str, tuple[int, int]]:
        """Shapes of the model's linear layers."""

    async def load(self, number: int, source: Path) -> None:
        """From here on, requests may name the adapter."""

    async def decode(self, prompts: Prompts, adapters: Adapters) -> float:
        """Tokens a second while every request of the batch decodes."""

    async def prefill(self, prompts: Prompts, adapters: Adapters) -> float:
        """Seconds until the last prompt has its first token."""

    def stop(self) -> None:
        """Free everything."""


def environment(subject: str, threads: int = 1) -> dict[str, str]:
    """Of a process that runs an engine on CPU, with what makes it the subject that it is."""
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


def random_prompts(count: int, length: int) -> Prompts:
    return [[random.randrange(1000, 40000) for _ in range(length)] for _ in range(count)]


def model_settings(rank: int):
    """The same engine for ours and stock: 16 slots of the rank that is measured."""
    from cluster.settings import BaseModelSettings

    return BaseModelSettings(
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


class VllmSubject:
    """What ours and stock vLLM have in common."""

    def __init__(self, rank: int, folder: Path) -> None:
        self._settings = model_settings(rank)
        self._folder = folder
        self._requests: dict[int | None, object] = {None: None}
        # The times of the tokens of every request, as they come.
        self._live: list[list[float]] = []

    def register(self, source: Path) -> None:
        """What happens long before a load."""

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
        self._live.append(times)
        stream = self.llm.generate(
            {"prompt_token_ids": prompt},
            params,
            request_id=str(random.random()),
            lora_request=self._requests[adapter],
        )
        async for output in stream:
            now = time.perf_counter()
            times += [now] * len(output.outputs[0].token_ids)
        return times

    async def decode(self, prompts: Prompts, adapters: Adapters) -> float:
        """Tokens a second while every request of the batch decodes."""
        work = zip(prompts, adapters, strict=True)
        runs = await asyncio.gather(*(self.token_times(p, DECODE_TOKENS, a) for p, a in work))
        begin, end = max(r[0] for r in runs), min(r[-1] for r in runs)
        return sum(begin < t <= end for r in runs for t in r) / (end - begin)

    async def prefill(self, prompts: Prompts, adapters: Adapters) -> float:
        """Seconds until the last prompt has its first token."""
        began = time.perf_counter()
        work = zip(prompts, adapters, strict=True)
        await asyncio.gather(*(self.token_times(p, 1, a) for p, a in work))
        return time.perf_counter() - began

    async def stalls(self, sources: list[Path]) -> list[tuple[float, float]]:
        """The longest gap (ms) between tokens of 8 running requests: in a window without a load,
        and in one of the same length around a load and the first request for what was loaded,
        once for each source. There is a slot for each."""
        for source in sources:
            self.register(source)
        prompts = random_prompts(8, PROMPT_TOKENS)
        running = [asyncio.create_task(self.token_times(p, 990, None)) for p in prompts]
        windows = []
        await asyncio.sleep(3)
        watched = self._live[-len(prompts) :]
        for number, source in enumerate(sources, 1):
            await asyncio.sleep(0.5)
            began = time.perf_counter()
            await self.load(number, source)
            # A prompt of one token, so that its prefill is no gap of its own.
            await self.token_times(random_prompts(1, 1)[0], 1, number)
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


class OurEngine(VllmSubject):
    """Loads go the whole way: blob store, node cache, the replica's cache, engine."""

    async def start(self) -> dict[str, tuple[int, int]]:
        from adapter_store.files.blobs import LocalBlobs
        from adapter_store.files.node_cache import NodeCache
        from deployments.engines.vllm_engine import VllmEngine
        from deployments.replica.adapter_cache import AdapterCache
        from deployments.replica.adapter_files import AdapterFiles

        self._engine = VllmEngine(self._settings)
        facts = await self._engine.start()
        self.llm = self._engine.llm
        self._digests: dict[Path, str] = {}
        self._blobs = LocalBlobs(self._folder / "store")
        files = AdapterFiles(self._blobs, NodeCache(self._folder / "node", 2**32), self._engine)
        self._cache = AdapterCache(self._engine, files, self._settings.lora)
        return facts.linear_shapes

    def register(self, source: Path) -> None:
        self._digests[source], _ = self._blobs.commit(source)

    async def load(self, number: int, source: Path) -> None:
        from cluster.adapters import AdapterRef

        if source not in self._digests:
            self.register(source)
        ref = AdapterRef(name=f"a{number}", version=1, digest=self._digests[source])
        await self._cache.ensure(ref)
        self._requests[number] = self._engine.request(ref)


class StockVllm(VllmSubject):
    """vLLM with the same arguments and without our plugin (VLLM_PLUGINS is empty)."""

    async def start(self) -> dict[str, tuple[int, int]]:
        from vllm.v1.engine.async_llm import AsyncLLM

        from deployments.engines.vllm_engine import base_model_facts, engine_args

        args = engine_args(self._settings)
        args.worker_extension_cls = ""
        self.llm = AsyncLLM.from_engine_args(args)
        return base_model_facts(self._settings, args.model).linear_shapes

    async def load(self, number: int, source: Path) -> None:
        from vllm.lora.request import LoRARequest

        request = LoRARequest(f"a{number}@1", number, str(source))
        await self.llm.add_lora(request)
        self._requests[number] = request


class Peft:
    """transformers with peft's `adapter_names`, padded batches."""

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

    async def load(self, number: int, source: Path) -> None:
        from peft import PeftModel

        if isinstance(self._model, PeftModel):
            self._model.load_adapter(source, adapter_name=f"a{number}")
        else:
            self._model = PeftModel.from_pretrained(self._model, source, adapter_name=f"a{number}")
        self._model.eval()

    def _names(self, adapters: Adapters) -> list[str]:
        return ["__base__" if a is None else f"a{a}" for a in adapters]

    def _generate(self, prompts: Prompts, adapters: Adapters, tokens: int) -> float:
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

    async def decode(self, prompts: Prompts, adapters: Adapters) -> float:
        first = self._generate(prompts, adapters, 1)
        whole = self._generate(prompts, adapters, DECODE_TOKENS)
        return len(prompts) * (DECODE_TOKENS - 1) / (whole - first)

    async def prefill(self, prompts: Prompts, adapters: Adapters) -> float:
        return self._generate(prompts, adapters, 1)

    def stop(self) -> None:
        pass


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
