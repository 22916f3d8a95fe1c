"""What an answer from elsewhere has used, and what that costs."""

from typing import Any

from cluster.settings import BaseModelSettings
from deployments.process import metrics

_MILLION = 1e6
# Of a chunk's delta, or a choice itself, what is generated.
_GENERATED = ("content", "text", "reasoning", "reasoning_content", "refusal", "tool_calls")


class Bill:
    """Of one request.

    Attributes:
        is_due: whether the endpoint has begun to answer.
        is_finished: whether the answer has said that it is whole.
        tokens: that were used, once it was paid.
    """

    def __init__(self, model: BaseModelSettings) -> None:
        self._model = model
        self._usage: dict[str, Any] = {}
        self._chunks = 0
        self.is_due = False
        self.is_finished = False
        self.tokens = 0.0

    def read(self, part: dict[str, Any]) -> None:
        """An answer, or a chunk of one."""
        if isinstance(part.get("usage"), dict):
            self._usage = part["usage"]
        for choice in part["choices"] or ():
            if not isinstance(choice, dict):
                continue
            self.is_finished = self.is_finished or bool(choice.get("finish_reason"))
            said = choice.get("delta") or choice
            self._chunks += any(isinstance(said, dict) and said.get(kind) for kind in _GENERATED)

    def pay(self, prompt_tokens: float) -> None:
        """Count it. Where the endpoint has not said what was used, as when the client left, it is
        taken for the prompt (`prompt_tokens`) and a token for each event."""
        if not self.is_due:
            return
        used_in = self._used("prompt_tokens", prompt_tokens)
        used_out = self._used("completion_tokens", self._chunks)
        self.tokens = used_in + used_out
        model, prices = self._model.id, self._model.endpoint
        metrics.endpoint_tokens.labels(model, "prompt").inc(used_in)
        metrics.endpoint_tokens.labels(model, "completion").inc(used_out)
        if prices is not None:
            cost = used_in * prices.price_in + used_out * prices.price_out
            metrics.cost.labels(model).inc(cost / _MILLION)

    def _used(self, kind: str, otherwise: float) -> float:
        said = self._usage.get(kind)
        return max(0.0, said) if isinstance(said, int | float) else otherwise
