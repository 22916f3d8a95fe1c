"""The JSON schemas of vLLM's own requests and answers, for the endpoint's OpenAPI document."""

from typing import Any

from pydantic.json_schema import models_json_schema
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionRequest,
    ChatCompletionResponse,
)
from vllm.entrypoints.openai.completion.protocol import CompletionRequest, CompletionResponse

_MODELS = (ChatCompletionRequest, ChatCompletionResponse, CompletionRequest, CompletionResponse)


def schemas() -> dict[str, Any]:
    """Name -> schema, of them and of what they refer to."""
    _, made = models_json_schema(
        [(model, "validation") for model in _MODELS],
        ref_template="#/components/schemas/{model}",
    )
    return dict(sorted(made["$defs"].items()))
