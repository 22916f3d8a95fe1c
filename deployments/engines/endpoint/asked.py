"""A request as an endpoint elsewhere takes it."""

import json
from dataclasses import dataclass
from typing import Any

from cluster.settings import BaseModelSettings

# What only our own engines know: it keeps tenants apart in their caches.
_OURS = ("cache_salt",)
_BYTES_PER_TOKEN = 4
# Of an answer whose length the client leaves open.
_USUAL_TOKENS = 256


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
        adds = model.endpoint is not None and model.endpoint.stream_usage
        usage_is_ours = adds and _may_add_usage(fields)
        if usage_is_ours:
            options = fields.get("stream_options") or {}
            fields["stream_options"] = {**options, "include_usage": True}
        prompt_tokens = len(body) / _BYTES_PER_TOKEN
        longest = fields.get("max_completion_tokens") or fields.get("max_tokens")
        if not isinstance(longest, int) or longest <= 0:
            longest = _USUAL_TOKENS
        content = json.dumps(fields).encode()
        return cls(content, usage_is_ours, prompt_tokens, prompt_tokens + longest)


def _may_add_usage(fields: dict[str, Any]) -> bool:
    """Whether a request asks for a stream, and not for its usage; what is malformed is for the
    endpoint to refuse."""
    options = fields.get("stream_options")
    if fields.get("stream") is not True or not isinstance(options, dict | None):
        return False
    return not (options or {}).get("include_usage")
