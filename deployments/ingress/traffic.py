"""What clients see of an answer, measured while it passes: status, first token, tokens."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from cluster.calls import CallKind
from cluster.errors import RoundhouseError
from cluster.settings import LoggingSettings
from deployments.ingress.calls.answers import Meter
from deployments.process import metrics
from deployments.process.call import REPLICA_HEADER, RESIDENCY_HEADER, Reply, ResponseStart

logger = logging.getLogger(__name__)

_LEFT = 499


@dataclass
class Observed:
    """One request, counted when it has ended."""

    request_id: str
    kind: CallKind
    logging: LoggingSettings
    model: str = ""
    adapter: str = metrics.UNKNOWN
    version: int | None = None
    route: str = ""
    prompt: str = ""
    began: float = field(default_factory=time.monotonic)
    ttft_s: float | None = None
    tokens: int = 0
    _is_counted: bool = False

    def refused(self, error: RoundhouseError) -> None:
        """It ended before there was an answer."""
        self._count(error.status)
        self._log(error.status, {}, error=error.message)

    def passing(self, reply: Reply, held: AsyncExitStack) -> Reply:
        """The reply; counted when `held` ends, whether its body was read, given up, or never
        begun."""
        body = self._passed(reply)
        held.callback(self._left_unread, reply.start)
        held.push_async_callback(body.aclose)
        return Reply(reply.start, body)

    def _left_unread(self, start: ResponseStart) -> None:
        if not self._is_counted:
            self._ended(self.began, _LEFT, start.headers, None)

    async def _passed(self, reply: Reply) -> AsyncGenerator[bytes, None]:
        start = reply.start
        last, status, problem = self.began, start.status, None
        meter = Meter(self.kind, start.is_stream)
        try:
            async for chunk in reply.body:
                last = time.monotonic()
                meter.take(chunk)
                self.tokens = meter.tokens
                if start.is_stream and self.tokens and self.ttft_s is None:
                    self.ttft_s = last - self.began
                    metrics.ttft.labels(self.model, self._name).observe(self.ttft_s)
                yield chunk
        except RoundhouseError as e:
            # The status line is out already; what the client got is an error all the same.
            status, problem = e.status, e.message
            raise
        except Exception as e:
            status, problem = RoundhouseError.status, repr(e)
            raise
        except (GeneratorExit, asyncio.CancelledError):
            status = start.status if meter.is_whole else _LEFT
            raise
        finally:
            self._ended(last, status, start.headers, problem)

    def _ended(
        self, last: float, status: int, headers: Mapping[str, str], problem: str | None
    ) -> None:
        self._count(status)
        if self.tokens:
            metrics.tokens.labels(self.model, self._name).inc(self.tokens)
        if self.ttft_s is not None and self.tokens > 1:
            mean_s = (last - self.began - self.ttft_s) / (self.tokens - 1)
            metrics.tpot.labels(self.model, self._name).observe(mean_s)
        self._log(status, headers, problem)

    @property
    def _name(self) -> str:
        if self.adapter in ("", metrics.UNKNOWN, metrics.SEVERAL):
            return self.adapter
        return metrics.named.use(self.adapter)

    def _count(self, status: int) -> None:
        self._is_counted = True
        metrics.requests.labels(self.model, self._name, self.route, str(status)).inc()

    def _log(self, status: int, headers: Mapping[str, str], error: str | None = None) -> None:
        if not self.logging.requests:
            return
        fields = {
            "request_id": self.request_id,
            "status": status,
            "model": self.model,
            "adapter": self.adapter if self.adapter != metrics.UNKNOWN else None,
            "version": self.version,
            "route": self.route,
            "replica": headers.get(REPLICA_HEADER),
            "residency": headers.get(RESIDENCY_HEADER),
            "ttft_s": self.ttft_s,
            "duration_s": time.monotonic() - self.began,
            "tokens": self.tokens,
            "error": error,
            "prompt": self.prompt,
        }
        logger.info("request", extra={k: v for k, v in fields.items() if v not in (None, "")})
