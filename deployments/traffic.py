"""What clients see of an answer, measured while it passes: status, first token, tokens."""

import logging
import re
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from cluster.errors import RoundhouseError
from cluster.settings import LoggingSettings
from deployments import metrics
from deployments.call import REPLICA_HEADER, RESIDENCY_HEADER
from deployments.engine import ResponseStart

logger = logging.getLogger(__name__)

EVENT_STREAM = "text/event-stream"
_LONGEST_PROMPT = 4000

_EVENT, _LAST = b"data: ", b"data: [DONE]"
# Of an answer in one piece; its parsed form is nobody's need here.
_USAGE = re.compile(rb'"completion_tokens":\s*(\d+)')


def tokens_in(chunk: bytes) -> int:
    """Generated tokens in a part of an answer, about: an event each, or as its usage says."""
    if chunk.startswith(_EVENT):
        return chunk.count(_EVENT) - chunk.count(_LAST)
    found = _USAGE.search(chunk)
    return int(found[1]) if found else 0


@dataclass
class Observed:
    """One request, counted when it has ended."""

    request_id: str
    logging: LoggingSettings
    model: str = ""
    adapter: str = ""
    version: int | None = None
    route: str = ""
    prompt: str = ""
    began: float = field(default_factory=time.monotonic)
    ttft_s: float | None = None
    tokens: int = 0

    def refused(self, error: RoundhouseError) -> None:
        """It ended before there was an answer."""
        self._count(error.status)
        self._log(error.status, {}, error=error.message)

    async def passed(
        self, start: ResponseStart, body: AsyncIterator[bytes]
    ) -> AsyncIterator[bytes]:
        """The body as it comes."""
        is_stream = start.headers.get("content-type", "").startswith(EVENT_STREAM)
        last = self.began
        try:
            async for chunk in body:
                last = time.monotonic()
                self.tokens += tokens_in(chunk)
                if is_stream and self.ttft_s is None:
                    self.ttft_s = last - self.began
                    metrics.ttft.labels(self.model, self._name).observe(self.ttft_s)
                yield chunk
        finally:
            await body.aclose()
            self._count(start.status)
            if self.tokens:
                metrics.tokens.labels(self.model, self._name).inc(self.tokens)
            if self.ttft_s is not None and self.tokens > 1:
                mean_s = (last - self.began - self.ttft_s) / (self.tokens - 1)
                metrics.tpot.labels(self.model, self._name).observe(mean_s)
            self._log(start.status, start.headers)

    @property
    def _name(self) -> str:
        return metrics.named.use(self.adapter) if self.adapter else ""

    def _count(self, status: int) -> None:
        metrics.requests.labels(self.model, self._name, self.route, str(status)).inc()

    def _log(self, status: int, headers: Mapping[str, str], error: str | None = None) -> None:
        if not self.logging.requests:
            return
        fields = {
            "request_id": self.request_id,
            "status": status,
            "model": self.model,
            "adapter": self.adapter,
            "version": self.version,
            "route": self.route,
            "replica": headers.get(REPLICA_HEADER),
            "residency": headers.get(RESIDENCY_HEADER),
            "ttft_s": self.ttft_s,
            "duration_s": time.monotonic() - self.began,
            "tokens": self.tokens,
            "error": error,
            "prompt": self.prompt[:_LONGEST_PROMPT] if self.logging.prompts else None,
        }
        logger.info("request", extra={k: v for k, v in fields.items() if v not in (None, "")})
