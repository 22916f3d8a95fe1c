"""The one fake engine: repeats the prompt, and moves adapters between tiers as a real one would.

An adapter can say something else: `echo_answers` in its config maps prompts to answers. Offered
tools, it calls the first, with the prompt as arguments.

For tests of the control plane and for benchmarks at a scale that real engines do not allow.
"""

import asyncio
import json
import shutil
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

from pydantic import ValidationError

from adapter_store.files.blobs import CONFIG, FILES
from cluster.adapters import AdapterKey, AdapterRef, BaseModelFacts
from cluster.calls import CALLS, GENERATES, Task
from cluster.errors import AdapterLoadFailed, ConfigError, EngineRefused, InvalidRequest, NotFound
from cluster.members import Residency
from cluster.settings import BaseModelSettings, Section, explain
from deployments.engines.echo_answers import WORDINGS, EchoRequest, Said
from deployments.process.call import Reply, ResponseStart

_JSON = {"content-type": "application/json"}
_EVENTS = {"content-type": "text/event-stream; charset=utf-8"}


class EchoArgs(Section):
    """`engine_args` of an echo model: the costs that it simulates.

    Attributes:
        prefill_s: until the first token; token_s: of each token, when nothing else runs.
        crowd: how much longer both take for each other request that runs.
        load_s: of a load into host memory; swap_s: from there into a slot.
        prefix_block: words of a block of its prefix cache, which it tells of in `usage`; 0: it has
            none.
        tasks: that it can do.
    """

    prefill_s: float = 0.0
    token_s: float = 0.0
    crowd: float = 0.0
    load_s: float = 0.0
    swap_s: float = 0.0
    prefix_block: int = 0
    tasks: tuple[Task, ...] = (*map(Task, GENERATES),)
    hidden_size: int = 8
    layers: int = 1


class EchoEngine:
    """Implements :class:`deployments.engines.engine.Engine`."""

    def __init__(self, settings: BaseModelSettings) -> None:
        self._settings = settings
        try:
            self._args = EchoArgs(**settings.engine_args)
        except ValidationError as e:
            raise ConfigError(f"models.{settings.id}.engine_args: {explain(e)}") from e
        # Slots: least recently used first. What is in a slot is in host memory too.
        self._slots: OrderedDict[AdapterKey, None] = OrderedDict()
        self._host: list[AdapterKey] = []
        self._answers: dict[AdapterKey, dict[str, str]] = {}
        self._worth: Mapping[AdapterKey, float] = {}
        self._unfinished = 0
        # Requests by the adapter that they run with; its slot cannot be taken.
        self._running: Counter[AdapterKey] = Counter()
        self._slot_is_free = asyncio.Event()
        # Beginnings of prompts, with the adapter and the salt that they were asked with.
        self._cached: set[tuple[str, str | None, tuple[str, ...]]] = set()

    async def start(self) -> BaseModelFacts:
        size = self._args.hidden_size
        return BaseModelFacts(
            id=self._settings.id,
            architecture="Echo",
            fingerprint=f"echo-{size}x{self._args.layers}",
            max_rank=self._settings.lora.max_rank,
            linear_shapes={
                f"model.layers.{i}.{name}": (size, size)
                for i in range(self._args.layers)
                for name in ("q_proj", "v_proj")
            },
        )

    async def stop(self) -> None:
        self._slots.clear()
        self._host.clear()

    async def check_health(self) -> None:
        return

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(map(str, self._args.tasks))

    @property
    def layout(self) -> str:
        return "echo"

    def prepare(self, source: Path, target: Path) -> None:
        for name in FILES:
            shutil.copyfile(source / name, target / name)

    async def load(self, ref: AdapterRef, folder: Path) -> None:
        if not all((folder / name).is_file() for name in FILES):
            raise AdapterLoadFailed(f"the engine could not load {ref.key}: no adapter in {folder}")
        config = json.loads((folder / CONFIG).read_bytes())
        if why := config.get("echo_refuses"):
            raise EngineRefused(f"the engine could not load {ref.key}: {why}")
        await asyncio.sleep(self._args.load_s)
        self._host.append(ref.key)
        self._answers[ref.key] = config.get("echo_answers", {})
        if len(self._slots) < self._settings.lora.slots:
            self._slots[ref.key] = None

    async def unload(self, ref: AdapterRef) -> None:
        self._slots.pop(ref.key, None)
        if ref.key in self._host:
            self._host.remove(ref.key)
            del self._answers[ref.key]

    async def residency(self, worth: Mapping[AdapterKey, float]) -> Residency:
        self._worth = worth
        return Residency(
            slots=tuple(self._slots),
            host=tuple(key for key in self._host if key not in self._slots),
            slot_capacity=self._settings.lora.slots,
            host_capacity=self._settings.lora.host_entries,
        )

    def kv_use(self) -> float | None:
        return None

    def unfinished(self) -> int:
        return self._unfinished

    def trouble(self) -> str:
        return ""

    @asynccontextmanager
    async def answer(self, path: str, body: bytes, headers: dict[str, str]) -> AsyncIterator[Reply]:
        try:
            request = EchoRequest.read(CALLS[path].shape, body, headers)
        except ValidationError as e:
            yield Reply.refusal(InvalidRequest.of(e))
            return
        if CALLS[path].task not in self._args.tasks:
            yield Reply.refusal(NotFound(f"no route {path}"))
            return
        key = AdapterKey(request.model)
        if key != self._settings.id and key not in self._host:
            yield Reply.refusal(NotFound(f"{key} is not loaded", param="model"))
            return
        self._unfinished += 1
        try:
            async with self._in_slot(key):
                said = self._said(request, headers)
                await self._work(self._args.prefill_s)
                if request.stream:
                    async with aclosing(self._stream(said)) as events:
                        yield Reply(ResponseStart(200, _EVENTS), events)
                else:
                    await self._work(self._args.token_s * len(said.words))
                    yield Reply.whole(ResponseStart(200, _JSON), said.whole())
        finally:
            self._unfinished -= 1

    def _said(self, request: EchoRequest, headers: Mapping[str, str]) -> Said:
        key = AdapterKey(request.model)
        answers = self._answers.get(key, {})
        texts = [answers.get(text, text) for text in request.texts]
        return WORDINGS[request.shape](
            id=request.request_id or headers.get("x-request-id", "echo"),
            model=key.partition("@")[0],
            answers=[
                words
                for text in texts
                for words in [text.split()[: request.longest]] * (request.n or 1)
            ],
            cached=self._take_prefix(key, request.cache_salt, " ".join(request.texts).split()),
            request=request,
        )

    def _take_prefix(self, key: AdapterKey, salt: str | None, words: list[str]) -> int | None:
        """How many words of a prompt were cached; all of its whole blocks are from now on."""
        size = self._args.prefix_block
        if not size:
            return None
        ends = range(size, len(words) + 1, size)
        blocks = {end: (key, salt, tuple(words[:end])) for end in ends}
        found = max((end for end, block in blocks.items() if block in self._cached), default=0)
        self._cached.update(blocks.values())
        return found

    @asynccontextmanager
    async def _in_slot(self, key: AdapterKey) -> AsyncIterator[None]:
        """Run with an adapter in a slot, which is waited for; the base model needs none."""
        if key not in self._host:
            yield
            return
        while key not in self._slots and len(self._slots) >= self._settings.lora.slots:
            idle = [k for k in self._slots if not self._running[k]]
            if idle:
                del self._slots[min(idle, key=lambda k: self._worth.get(k, 0.0))]
            else:
                self._slot_is_free.clear()
                await self._slot_is_free.wait()
        is_new = key not in self._slots
        self._slots[key] = None
        self._slots.move_to_end(key)
        self._running[key] += 1
        try:
            if is_new:
                await asyncio.sleep(self._args.swap_s)
            yield
        finally:
            self._running[key] -= 1
            self._slot_is_free.set()

    async def _work(self, alone_s: float) -> None:
        await asyncio.sleep(alone_s * (1 + self._args.crowd * max(0, self._unfinished - 1)))

    async def _stream(self, said: Said) -> AsyncGenerator[bytes, None]:
        for event in said.events():
            await self._work(self._args.token_s * event.is_token)
            yield event.data
