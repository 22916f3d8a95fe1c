"""The echo engine as Ray Serve LLM wants its engines, so that both gateways have the same one.

Ray Serve LLM imports it in its replicas (`RAYLLM_VLLM_ENGINE_CLS`).
"""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from ray.llm._internal.serve.core.configs.llm_config import DiskMultiplexConfig, LLMConfig
from ray.llm._internal.serve.core.configs.openai_api_models import (
    ChatCompletionRequest,
    ChatCompletionResponse,
)
from ray.llm._internal.serve.core.engine.protocol import LLMEngine

from cluster.adapters import AdapterRef
from cluster.settings import BaseModelSettings
from deployments.engines.echo import EchoEngine


class EchoInRay(LLMEngine):
    """Chats, streamed or not. The rest is there because Ray's class wants it; nobody calls it."""

    def __init__(self, llm_config: LLMConfig) -> None:
        lora = llm_config.engine_kwargs
        self._engine = EchoEngine(
            BaseModelSettings(
                id=llm_config.model_id,
                path="none",
                engine="echo",
                lora={"slots": lora["max_loras"], "host_entries": lora["max_cpu_loras"]},
            )
        )
        self._loaded: set[str] = set()

    async def start(self) -> None:
        await self._engine.start()

    def routing_stats(self) -> dict[str, Any]:
        return {}

    async def resolve_lora(self, lora_model: DiskMultiplexConfig) -> None:
        if lora_model.model_id not in self._loaded:
            ref = AdapterRef(name=_name(lora_model.model_id), version=1, digest="")
            await self._engine.load(ref, Path(lora_model.local_path))
            self._loaded.add(lora_model.model_id)

    async def chat(
        self,
        request: ChatCompletionRequest,
        raw_request_info: Any = None,  # noqa: ARG002  (Ray names it)
    ) -> AsyncIterator[str | ChatCompletionResponse]:
        is_adapter = request.model in self._loaded
        body = {
            "model": f"{_name(request.model)}@1" if is_adapter else request.model,
            "messages": request.messages,
            "max_tokens": request.max_tokens,
            "stream": request.stream,
        }
        sent = json.dumps(body).encode()
        async with self._engine.answer("/v1/chat/completions", sent, {}) as reply:
            async for chunk in reply.body:
                if request.stream:
                    yield chunk.decode()
                else:
                    # As vLLM makes one of what it has generated.
                    yield ChatCompletionResponse(**json.loads(chunk))

    async def completions(self, request: Any, raw_request_info: Any = None) -> Any:
        raise NotImplementedError

    async def embeddings(self, request: Any, raw_request_info: Any = None) -> Any:
        raise NotImplementedError

    async def transcriptions(self, request: Any, raw_request_info: Any = None) -> Any:
        raise NotImplementedError

    async def reset_prefix_cache(self) -> None:
        """There is none."""


def _name(model: str) -> str:
    """Of an adapter that Ray Serve LLM calls `base:name`."""
    return model.rpartition(":")[2]
