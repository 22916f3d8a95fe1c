"""A real engine on a tiny model, a real store, and peft in float32 beside them."""

import asyncio
import json
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from adapter_store.embedded import embedded_server
from adapter_store.registration import Registrar
from adapter_store.store import Store
from cluster.adapters import AdapterRef
from cluster.requests import Registration
from cluster.settings import BaseModelSettings, StoreSettings
from tests.adapter_kinds import ATTENTION, Kind
from tests.tiny_model import VOCABULARY

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
}
PROMPT = [(7 * i + 3) % VOCABULARY for i in range(24)]


class Bench:
    """Registers adapters, each loaded by the engine and asked once before it is recorded.

    Attributes:
        answers: log-probabilities of the prompt's tokens, by the adapter that was loaded last.
    """

    def __init__(
        self, folder: Path, url: str, runner: asyncio.Runner, engine_args: dict[str, Any]
    ) -> None:
        import transformers

        from deployments.engines.vllm_engine import VllmEngine

        self.folder, self.runner = folder, runner
        model = folder / "tiny"
        named = transformers.AutoConfig.from_pretrained(model).architectures[0]
        self.base = getattr(transformers, named).from_pretrained(model)
        self.path = str(model)
        self.engine = VllmEngine(
            BaseModelSettings(
                id="tiny",
                path=self.path,
                lora={"slots": 2, "host_entries": 4, "max_rank": 8},
                engine_args={
                    "dtype": "float32",
                    "max_model_len": 128,
                    "max_num_seqs": 4,
                    "enforce_eager": True,
                    **engine_args,
                },
            )
        )
        self.settings = StoreSettings(url=url, data_dir=folder / "data", namespace=uuid.uuid4().hex)
        self.answers: list[float] = []
        runner.run(self._start())

    async def _start(self) -> None:
        self.facts = await self.engine.start()
        self.store = Store(self.settings)
        await self.store.registry.put_base_model(self.facts)
        self.registrar = Registrar(self.store, self.settings, self._prove)

    async def stop(self) -> None:
        await self.store.close()
        await self.engine.stop()

    def make(self, kind: Kind, name: str) -> Path:
        """What peft saves; the kind's change is not made yet."""
        import torch
        from peft import LoraConfig, get_peft_model

        fields = {"r": 4, "lora_alpha": 8, "target_modules": list(ATTENTION)} | kind.lora
        torch.manual_seed(len(name))
        model = get_peft_model(self.base, LoraConfig(**fields, task_type="CAUSAL_LM"))
        for key, value in model.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(value, std=0.2)
        copies = not {"lm_head", "embed_tokens"}.isdisjoint(fields["target_modules"])
        model.save_pretrained(self.folder / name, save_embedding_layers=copies)
        self.base = model.unload()
        return self.folder / name

    def register(self, folder: Path, name: str) -> tuple[str, ...]:
        """Registers it, and keeps what it answers; returns the notices."""
        sent = Registration(source=str(folder), name=name, base_model="tiny")
        stored = self.runner.run(self.registrar.register(sent, mode="create"))
        return stored.version.notices

    async def _prove(self, _: str, digest: str) -> bool:
        """What a replica does."""
        with self.registrar.blobs.opened(digest) as source:
            await self.load(digest, source)
        return True

    async def load(self, digest: str, source: Path) -> None:
        """Loads an adapter, keeps what it answers, and lets it go."""
        ref = await self._loaded(digest, source)
        self.answers = await self._log_probabilities(str(ref.key))
        await self.engine.unload(ref)

    async def _loaded(self, digest: str, source: Path) -> AdapterRef:
        ref = AdapterRef.on_trial(digest)
        with tempfile.TemporaryDirectory() as target:
            self.engine.prepare(source, Path(target))
            await self.engine.load(ref, Path(target))
        return ref

    @contextmanager
    def loaded(self, source: Path) -> Iterator[str]:
        """Holds an adapter loaded; yields the engine's name of it."""
        ref = self.runner.run(self._loaded(uuid.uuid4().hex, source))
        yield str(ref.key)
        self.runner.run(self.engine.unload(ref))

    def moved(self) -> float:
        """How far the last adapter's answers are from the base model's."""
        plain = self.runner.run(self._log_probabilities("tiny"))
        return max(abs(a - b) for a, b in zip(self.answers, plain, strict=True))

    async def _log_probabilities(self, model: str) -> list[float]:
        body = {"model": model, "prompt": PROMPT, "max_tokens": 1, "echo": True, "logprobs": 0}
        answer = await self.ask("/v1/completions", body)
        found: list[float] = answer["choices"][0]["logprobs"]["token_logprobs"]
        return found[1 : len(PROMPT)]

    async def ask(self, path: str, body: dict[str, Any]) -> Any:
        sent = json.dumps(body).encode()
        async with self.engine.answer(path, sent, {"x-request-id": "r"}) as reply:
            answer = await reply.read()
            assert reply.start.status == 200, answer
        return json.loads(answer)

    def of_peft(self, folder: Path) -> list[float]:
        import torch
        from peft import PeftModel

        model = PeftModel.from_pretrained(self.base, folder)
        model.eval()
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([PROMPT])).logits[0]
        self.base = model.unload()
        found = logits.log_softmax(-1)[range(len(PROMPT) - 1), PROMPT[1:]]
        return [float(value) for value in found]

    def is_empty(self) -> bool:
        """Whether nothing is stored, and no file left."""
        blobs = self.settings.root / "blobs"
        left = [p for p in blobs.rglob("*") if p.is_file()] if blobs.exists() else []
        staged = list((self.settings.root / "staging").iterdir())
        return self.runner.run(self.store.registry.is_empty()) and not left and not staged


@contextmanager
def engine_bench(
    folder: Path, write_model: Callable[[Path], object], **engine_args: Any
) -> Iterator[Bench]:
    write_model(folder / "tiny")
    with (
        pytest.MonkeyPatch.context() as patch,
        embedded_server(folder / "store") as server,
        asyncio.Runner() as runner,
    ):
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        bench = Bench(folder, server.url, runner, engine_args)
        try:
            yield bench
        finally:
            runner.run(bench.stop())
