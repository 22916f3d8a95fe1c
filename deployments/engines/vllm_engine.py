"""vLLM behind the engine seam: its `AsyncLLM`, under its own OpenAI serving layer.

The only file that imports vLLM's engine.
"""

import argparse
import dataclasses
import itertools
import logging
import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import FrontendArgs
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM

from cluster.adapters import AdapterKey, AdapterRef, BaseModelFacts
from cluster.errors import ConfigError, EngineRefused
from cluster.members import Residency
from cluster.settings import BaseModelSettings
from deployments.engines import prepared, vllm_plugin
from deployments.engines.asgi import call_asgi
from deployments.engines.base_facts import base_model_facts, only_adaptable
from deployments.engines.first_token import with_first_token
from deployments.engines.refusals import in_frontend
from deployments.engines.refusals.in_bodies import handle_bodies
from deployments.engines.refusals.told import in_our_shape
from deployments.engines.vllm_calls import tasks_of
from deployments.engines.vllm_worker import RoundhouseWorker
from deployments.process.call import Reply

logger = logging.getLogger(__name__)

# No address has it (RFC 2606, section 2); clients read it in vLLM's refusal of a picture's URL.
_NO_DOMAIN = "engine_args.allowed_media_domains.invalid"

_KV_USE = "vllm:kv_cache_usage_perc"


class VllmEngine:
    """Implements :class:`deployments.engines.engine.Engine`."""

    def __init__(self, settings: BaseModelSettings) -> None:
        self._settings = settings
        self._args = engine_args(settings)
        self._loaded: dict[AdapterKey, LoRARequest] = {}
        # Never reused: vLLM treats an id that it has seen as the adapter it had then.
        self._ids = itertools.count(1)

    async def start(self) -> BaseModelFacts:
        await self.start_engine()
        tasks = await self.llm.get_supported_tasks()
        self._tasks = tasks_of(tasks, self.llm.model_config)
        # A key in the environment would be asked for inside, where the ingress has asked already.
        os.environ.pop("VLLM_API_KEY", None)
        frontend = FrontendArgs(**self._settings.server_args)
        args = argparse.Namespace(**(vars(frontend) | vars(self._args)))
        self._app = build_app(args, tasks, self.llm.model_config)
        handle_bodies(self._app)
        await init_app_state(self.llm, self._app.state, args, tasks)
        # vLLM's handler for a dead engine stops its own HTTP server; here the replica's health
        # check takes that part, but the handler still wants the attribute.
        self._app.state.server = argparse.Namespace()
        models = self._app.state.openai_serving_models
        models.lora_requests = self._loaded
        models.model_name = self._name_in_answers
        return self._facts

    async def start_engine(self) -> None:
        """The engine without its OpenAI layer: `self.llm`."""
        vllm_plugin.check_shapes(in_frontend.SHAPES)
        in_frontend.install()
        self.llm = AsyncLLM.from_vllm_config(self._checked_config())
        self._lora_config = self.llm.vllm_config.lora_config
        await self._check_plugin()
        config = self.llm.vllm_config.model_config.hf_config
        facts = base_model_facts(self._settings, self._args.model, config)
        longest = self.llm.vllm_config.model_config.max_model_len
        facts = facts.model_copy(update={"max_model_len": longest})
        modules = sorted(facts.modules)
        adaptable = (await self.llm.collective_rpc("roundhouse_adaptable", args=(modules,)))[0]
        self._facts = only_adaptable(facts, set(adaptable))

    async def stop(self) -> None:
        self.llm.shutdown()

    async def check_health(self) -> None:
        await self.llm.check_health()

    @property
    def layout(self) -> str:
        dtype = str(self._lora_config.lora_dtype).removeprefix("torch.")
        return f"vllm-2-{dtype}-{'rank-major' if current_platform.is_cpu() else 'out-major'}"

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._tasks

    def prepare(self, source: Path, target: Path) -> None:
        prepared.write(
            source,
            target,
            self._facts,
            self._lora_config.lora_dtype,
            transpose_b=current_platform.is_cpu(),
        )

    async def load(self, ref: AdapterRef, folder: Path) -> None:
        name = str(ref.key)  # vLLM sends it to its workers, and takes plain strings alone
        request = LoRARequest(lora_name=name, lora_int_id=next(self._ids), lora_path=str(folder))
        args = (request.lora_int_id, request.lora_name, request.lora_path)
        # Two calls, so that running requests get a step in between.
        refusals = await self.llm.collective_rpc("roundhouse_take", args=args)
        if not any(refusals):
            refusals = await self.llm.collective_rpc("roundhouse_fill_free_slot", args=args[:1])
        if why := next(filter(None, refusals), None):
            # Others of the workers may have taken it.
            await self.llm.remove_lora(request.lora_int_id)
            raise EngineRefused(f"the engine could not load {ref.key}: {why}")
        self._loaded[ref.key] = request

    def request(self, ref: AdapterRef) -> LoRARequest:
        """vLLM's name for a loaded version, for requests that do not come as HTTP."""
        return self._loaded[ref.key]

    async def unload(self, ref: AdapterRef) -> None:
        request = self._loaded.get(ref.key)
        if request is None:
            return
        # It counts as resident until every worker has let go of it.
        await self.llm.remove_lora(request.lora_int_id)
        if self._loaded.get(ref.key) is request:
            del self._loaded[ref.key]

    async def residency(self, worth: Mapping[AdapterKey, float]) -> Residency:
        keys = {request.lora_int_id: key for key, request in self._loaded.items()}
        by_id = {lora_id: worth[key] for lora_id, key in keys.items() if key in worth}
        slots, host = (await self.llm.collective_rpc("roundhouse_residency", args=(by_id,)))[0]
        return Residency(
            slots=tuple(keys[i] for i in slots if i in keys),
            host=tuple(keys[i] for i in host if i in keys and i not in slots),
            slot_capacity=self._args.max_loras,
            host_capacity=self._args.max_cpu_loras,
        )

    def kv_use(self) -> float | None:
        # As vLLM's own metrics have it, after each of its steps.
        for family in REGISTRY.restricted_registry([_KV_USE]).collect():
            for sample in family.samples:
                return sample.value
        return None

    def unfinished(self) -> int:
        return int(self.llm.get_num_unfinished_requests())

    def trouble(self) -> str:
        return ""

    def answer(
        self, path: str, body: bytes, headers: dict[str, str]
    ) -> AbstractAsyncContextManager[Reply]:
        answering = with_first_token(path, call_asgi(self._app, path, body, headers))
        return in_our_shape(answering, body)

    def _name_in_answers(self, lora_request: LoRARequest | None = None) -> str:
        """The public name: inside, adapters are known as ``name@version``."""
        if lora_request is None:
            return self._settings.id
        return AdapterKey(lora_request.lora_name).name

    def _checked_config(self) -> VllmConfig:
        if current_platform.is_cpu():
            _prepare_for_cpu(self._settings.tensor_parallel_size)
        try:
            return self._args.create_engine_config()
        except (ValueError, TypeError) as e:
            raise ConfigError(f"models.{self._settings.id}: vLLM refuses the settings: {e}") from e

    async def _check_plugin(self) -> None:
        for wrapper, manager, kernel in await self.llm.collective_rpc("roundhouse_classes"):
            on_cpu = current_platform.is_cpu()
            if manager != vllm_plugin.MANAGER or (on_cpu and wrapper != vllm_plugin.WRAPPER):
                raise ConfigError(
                    f"the engine runs adapters with {manager} and {wrapper}, not with Roundhouse's "
                    "plugin; vLLM's own mixes up the tenants of a batch on CPU. Is VLLM_PLUGINS "
                    "set, or the package not installed (pip install -e .)?"
                )
            if on_cpu:
                logger.info("LoRA kernel: %s", kernel)


def _prepare_for_cpu(workers: int) -> None:
    if workers > 1:
        # Left to itself, vLLM wants a NUMA node for each worker.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        # vLLM compiles a part of its sampler when log-probabilities are first asked for; without
        # a compiler, that request would end the engine.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


def engine_args(settings: BaseModelSettings) -> AsyncEngineArgs:
    """vLLM's arguments for a base model.

    Raises:
        ConfigError: an entry of ``engine_args`` that vLLM does not have, or that is ours to set.
    """
    lora = settings.lora
    # vLLM's name -> ours, and its value.
    ours = {
        "model": ("path", str(Path(settings.path).expanduser())),
        "served_model_name": ("id", [settings.id]),
        "tensor_parallel_size": ("tensor_parallel_size", settings.tensor_parallel_size),
        # See deployments.replica.deployment: child processes, or actors of the placement group.
        "distributed_executor_backend": (
            "gpus_per_worker",
            "ray" if settings.gpus_per_worker else "mp",
        ),
        "enable_lora": ("lora", True),
        "max_loras": ("lora.slots", lora.slots),
        "max_cpu_loras": ("lora.host_entries", lora.host_entries),
        "max_lora_rank": ("lora.max_rank", lora.max_rank),
        "fully_sharded_loras": ("lora.fully_sharded", lora.fully_sharded),
        "worker_extension_cls": (
            "lora",
            f"{RoundhouseWorker.__module__}.{RoundhouseWorker.__qualname__}",
        ),
    }
    where = f"models.{settings.id}"
    for key in ours.keys() & settings.engine_args.keys():
        raise ConfigError(
            f"{where}.engine_args.{key}: Roundhouse sets this; use {where}.{ours[key][0]} instead"
        )
    _check_names(f"{where}.engine_args", settings.engine_args, AsyncEngineArgs)
    _check_names(f"{where}.server_args", settings.server_args, FrontendArgs)
    values = {name: value for name, (_, value) in ours.items()}
    # Unless the settings say otherwise.
    defaults = {
        # Of models with experts: adapters with a pair for each, and with one for all of a layer.
        "enable_mixed_moe_lora_format": True,
        # Whoever may ask could have the engine fetch what this machine alone reaches.
        "allowed_media_domains": [_NO_DOMAIN],
    }
    try:
        return AsyncEngineArgs(**values, **(defaults | settings.engine_args))
    except (ValueError, TypeError) as e:
        raise ConfigError(f"{where}: vLLM refuses the settings: {e}") from e


def _check_names(where: str, given: dict[str, Any], arguments: type) -> None:
    known = {f.name for f in dataclasses.fields(arguments)}
    for key in given.keys() - known:
        near = get_close_matches(key, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{where}.{key}: vLLM has no such argument{hint}")
