"""What clients see of an answer, measured while it passes: status, first token, tokens."""

import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from deployments import metrics

_EVENT, _LAST = b"data: ", b"data: [DONE]"
# Of an answer in one piece; its parsed form is nobody's need here.
_USAGE = re.compile(rb'"completion_tokens":\s*(\d+)')


@dataclass
class Observed:
    """One request, counted when it has ended."""

    model: str = ""
    adapter: str = ""
    route: str = ""
    began: float = field(default_factory=time.monotonic)

    def refused(self, status: int) -> None:
        """It ended before there was an answer."""
        self._count(status)

    async def passed(
        self, status: int, is_stream: bool, body: AsyncIterator[bytes]
    ) -> AsyncIterator[bytes]:
        """The body as it comes."""
        first = last = None
        tokens = 0
        try:
            async for chunk in body:
                last = time.monotonic()
                if is_stream:
                    tokens += chunk.count(_EVENT) - chunk.count(_LAST)
                    if first is None:
                        first = last
                        metrics.ttft.labels(self.model, self._name).observe(first - self.began)
                elif found := _USAGE.search(chunk):
                    tokens = int(found[1])
                yield chunk
        finally:
            await body.aclose()
            self._count(status)
            if tokens:
                metrics.tokens.labels(self.model, self._name).inc(tokens)
            if first is not None and tokens > 1:
                mean_s = (last - first) / (tokens - 1)
                metrics.tpot.labels(self.model, self._name).observe(mean_s)

    @property
    def _name(self) -> str:
        return metrics.named.use(self.adapter) if self.adapter else ""

    def _count(self, status: int) -> None:
        metrics.requests.labels(self.model, self._name, self.route, str(status)).inc()
