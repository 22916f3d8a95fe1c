"""A request as an endpoint elsewhere takes it."""

import json
from dataclasses import dataclass
from typing import Any

from cluster.settings import BaseModelSettings

# What only our own engines know: it keeps tenants apart in their caches.
_OURS = ("cache_salt",)
_BYTES_PER_TOKEN = 4
# Of an answer whose length the client leaves open, and of one that it wants without end.
_USUAL_TOKENS, _MOST_TOKENS = 256, 1_000_000


@dataclass(frozen=True)
class Asked:
    """One request.

    Attributes:
        usage_is_ours: `usage` was asked for on our behalf: the client does not expect it.
        prompt_tokens: about.
        tokens: of prompt and answer, at most; about.
    """

    body: bytes
    usage_is_ours: bool
    prompt_tokens: float
    tokens: float

    @classmethod
    def of(cls, body: bytes, model: BaseModelSettings) -> "Asked":
        """What the ingress sends, with the endpoint's name of the model."""
        fields: dict[str, Any] = json.loads(body)
        fields = {k: v for k, v in fields.items() if k not in _OURS} | {"model": model.path}
        if isinstance(fields.get("messages"), list):
            fields["messages"] = [_without_names(message) for message in fields["messages"]]
        adds = model.endpoint is not None and model.endpoint.stream_usage
        usage_is_ours = adds and _may_add_usage(fields)
        if usage_is_ours:
            options = fields.get("stream_options") or {}
            fields["stream_options"] = {**options, "include_usage": True}
        prompt_tokens = len(body) / _BYTES_PER_TOKEN
        longest = fields.get("max_completion_tokens") or fields.get("max_tokens")
        if not isinstance(longest, int) or longest <= 0:
            longest = _USUAL_TOKENS
        # One request must not take what all others have for minutes.
        a_minute = (model.endpoint and model.endpoint.tokens_per_minute) or _MOST_TOKENS
        longest = min(longest, _MOST_TOKENS, a_minute)
        content = json.dumps(fields).encode()
        return cls(content, usage_is_ours, prompt_tokens, prompt_tokens + longest)


def _without_names(message: Any) -> Any:
    """Without the names that our own engines know pictures and sounds by, which tell the tenant."""
    parts = message.get("content") if isinstance(message, dict) else None
    if not isinstance(parts, list):
        return message
    return message | {"content": [_without_name(part) for part in parts]}


def _without_name(part: Any) -> Any:
    return {k: v for k, v in part.items() if k != "uuid"} if isinstance(part, dict) else part


def _may_add_usage(fields: dict[str, Any]) -> bool:
    """Whether a request asks for a stream, and not for its usage; what is malformed is for the
    endpoint to refuse."""
    options = fields.get("stream_options")
    if fields.get("stream") is not True or not isinstance(options, dict | None):
        return False
    return not (options or {}).get("include_usage")
