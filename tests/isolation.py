"""A process for `test_isolation`: answers its rows with an engine, ours or stock vLLM.

Engines leave things to the end of their process that a test run would take for faults of its own.
"""

import asyncio
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

from cluster.adapters import AdapterRef
from cluster.settings import BaseModelSettings, LoraSettings
from tests.tiny_model import VOCABULARY

TOKENS = 12
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
# Rank and target modules of each adapter; more adapters than slots.
ADAPTERS = [
    (8, ("q_proj", "v_proj")),
    (16, ATTENTION + MLP),
    (3, MLP),
    (4, ("down_proj",)),
    (16, ("k_proj", "gate_proj")),
    (1, ATTENTION),
]
SLOTS, HOST = 4, 6


@dataclass(frozen=True)
class Row:
    prompt: tuple[int, ...]
    adapter: int | None


def settings(folder: Path, **lora) -> BaseModelSettings:
    tp = lora.pop("tensor_parallel_size", 1)
    return BaseModelSettings(
        id="tiny",
        path=str(folder / "model"),
        tensor_parallel_size=tp,
        lora={"slots": SLOTS, "host_entries": HOST, "max_rank": 16, **lora},
        engine_args={
            "dtype": "float32",
            "skip_tokenizer_init": True,
            "max_model_len": 256,
            "max_num_seqs": 16,
            "max_num_batched_tokens": 64,
            "enable_chunked_prefill": True,
            "enable_prefix_caching": True,
            "enforce_eager": True,
        },
    )


def rows() -> list[Row]:
    """Base and adapter rows in turn; every third prompt begins like the one before."""
    chance = random.Random(1)
    made: list[Row] = []
    for i in range(32):
        prompt = [chance.randrange(VOCABULARY) for _ in range(chance.choice([3, 20, 90, 150]))]
        if i % 3 == 2:
            prompt = [*made[-1].prompt[:48], *prompt[:20]]
        made.append(Row(tuple(prompt), None if i % 4 == 0 else i % len(ADAPTERS)))
    return made


async def generate(llm, row: Row, request) -> list[tuple[int, float]]:
    """The generated tokens with their log-probabilities."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, logprobs=0)
    params.detokenize = False
    prompt = {"prompt_token_ids": list(row.prompt)}
    name = f"{id(row)}-{random.random()}"
    async for output in llm.generate(prompt, params, name, lora_request=request):
        last = output.outputs[0]
    return [
        (token, found[token].logprob)
        for token, found in zip(last.token_ids, last.logprobs, strict=True)
    ]


async def ours(folder: Path, model: BaseModelSettings) -> list[list[tuple[int, float]]]:
    """The rows' answers from our engine, each adapter held by leases as on a replica."""
    from adapter_store.files.blobs import LocalBlobs
    from adapter_store.files.node_cache import NodeCache
    from deployments.engines.vllm_engine import VllmEngine
    from deployments.replica.adapter_cache import AdapterCache
    from deployments.replica.adapter_files import AdapterFiles

    engine = VllmEngine(model)
    await engine.start_engine()
    try:
        blobs = LocalBlobs(folder / "store")
        refs = [
            AdapterRef(name=f"a{i}", version=1, digest=blobs.commit(folder / f"a{i}")[0])
            for i in range(len(ADAPTERS))
        ]
        files = AdapterFiles(blobs, NodeCache(folder / "node", 2**30), engine)
        cache = AdapterCache(engine, files, LoraSettings(slots=SLOTS, host_entries=HOST))

        async def answer(row: Row):
            if row.adapter is None:
                return await generate(engine.llm, row, None)
            ref = refs[row.adapter]
            async with cache.lease(ref):
                return await generate(engine.llm, row, engine.request(ref))

        found = []
        for _ in range(2):
            found += await asyncio.gather(*(answer(row) for row in rows()))
        await cache.refresh()
        assert len(cache.residency.slots) == SLOTS, "the slots were to be full"
        return found
    finally:
        await engine.stop()


async def stock(folder: Path, model: BaseModelSettings) -> list[list[tuple[int, float]]]:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

    from deployments.engines.vllm_engine import engine_args

    args = engine_args(model)
    args.worker_extension_cls = ""
    llm = AsyncLLM.from_engine_args(args)
    try:
        requests = [
            LoRARequest(f"a{i}@1", i + 1, str(folder / f"a{i}")) for i in range(len(ADAPTERS))
        ]
        work = (
            generate(llm, row, None if row.adapter is None else requests[row.adapter])
            for row in rows()
        )
        return await asyncio.gather(*work)
    finally:
        llm.shutdown()


async def main(subject: str, folder: Path, lora: dict, out: Path) -> None:
    run = stock if subject == "stock vLLM" else ours
    answers = await run(folder, settings(folder, **lora))
    out.write_text(json.dumps(answers))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), Path(sys.argv[4])))
