"""The engine that passes requests on to an OpenAI-compatible endpoint elsewhere."""

import asyncio
import json
import logging
import random
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from cluster.adapters import AdapterKey, AdapterRef, BaseModelFacts
from cluster.addresses import is_loopback
from cluster.calls import Task
from cluster.errors import ConfigError, EngineRefused, Overloaded
from cluster.members import Residency
from cluster.settings import BaseModelSettings, EndpointSettings
from deployments.engines.endpoint.answers import (
    DONE,
    EVENTS,
    JSON,
    LONGEST_ANSWER,
    LONGEST_ERROR,
    Teller,
    beginning,
    bounded,
    events,
)
from deployments.engines.endpoint.asked import Asked
from deployments.engines.endpoint.bill import Bill
from deployments.engines.endpoint.breaker import Breaker, Failed
from deployments.engines.endpoint.key import read_key
from deployments.engines.endpoint.limits import Limits
from deployments.process import metrics
from deployments.process.call import Reply, ResponseStart

logger = logging.getLogger(__name__)

_NO_ADAPTERS = "is a model elsewhere, which takes no adapters"
_FIRST_PAUSE_S = 0.25
_NOT_CONNECTED = (httpx.ConnectError, httpx.ConnectTimeout)
# A connection that the endpoint had left meanwhile ends so, and at once. What ends so later may
# have been worked on, and paid for.
_HUNG_UP, _AT_ONCE_S = (httpx.ReadError, httpx.RemoteProtocolError, httpx.WriteError), 1.0


@dataclass(frozen=True)
class _Begun:
    """An answer of which the first is there.

    Attributes:
        rest: of a stream, the events behind it.
    """

    start: ResponseStart
    first: bytes
    rest: AsyncGenerator[bytes, None] | None = None


class EndpointEngine:
    """Implements :class:`deployments.engines.engine.Engine`."""

    def __init__(self, settings: BaseModelSettings) -> None:
        if settings.endpoint is None:
            raise ConfigError(f"models.{settings.id}.endpoint: engine: openai needs one")
        self._settings = settings
        self._endpoint = endpoint = settings.endpoint
        self._breaker = Breaker(endpoint.breaker_failures)
        self._limits = Limits.of(endpoint, settings.replicas)
        self._unfinished = 0

    async def start(self) -> BaseModelFacts:
        # A key that is not there is found out before the first request.
        read_key(self._endpoint, self._settings.id)
        self._http = _client(self._endpoint, self._settings.id)
        return BaseModelFacts(
            id=self._settings.id,
            architecture="",
            fingerprint="",
            max_rank=0,
            linear_shapes={},
            name=self._settings.path,
        )

    async def stop(self) -> None:
        await self._http.aclose()

    async def check_health(self) -> None:
        """An endpoint that does not answer is nothing that another replica would mend."""

    @property
    def layout(self) -> str:
        return "none"

    @property
    def tasks(self) -> tuple[str, ...]:
        return (Task.CHAT,)

    def prepare(self, source: Path, target: Path) -> None:  # noqa: ARG002  (the protocol's)
        raise ValueError(f"{self._settings.id} {_NO_ADAPTERS}")

    async def load(self, ref: AdapterRef, folder: Path) -> None:  # noqa: ARG002
        raise EngineRefused(f"{self._settings.id} {_NO_ADAPTERS}")

    async def unload(self, ref: AdapterRef) -> None:
        """There are none."""

    async def residency(self, worth: Mapping[AdapterKey, float]) -> Residency:  # noqa: ARG002
        return Residency()

    def kv_use(self) -> float | None:
        return None

    def unfinished(self) -> int:
        return self._unfinished

    def trouble(self) -> str:
        return self._breaker.trouble

    @asynccontextmanager
    async def answer(self, path: str, body: bytes, headers: dict[str, str]) -> AsyncIterator[Reply]:
        asked = Asked.of(body, self._settings)
        self._unfinished += 1
        try:
            async with self._billed(asked) as bill, AsyncExitStack() as held:
                begun = await self._begin(path, asked, headers, held)
                bill.is_due = begun.start.status == 200
                if begun.rest is not None:
                    stream = self._stream(begun.first, begun.rest, asked, bill)
                    yield Reply(begun.start, await held.enter_async_context(aclosing(stream)))
                    return
                if bill.is_due:
                    bill.read(json.loads(begun.first))
                yield Reply.whole(begun.start, begun.first)
        finally:
            self._unfinished -= 1

    @asynccontextmanager
    async def _billed(self, asked: Asked) -> AsyncIterator[Bill]:
        """Within the limits; what was used is counted at the end."""
        bill = Bill(self._settings)
        await self._limits.take(asked.tokens, self._endpoint.patience_s)
        try:
            yield bill
        finally:
            bill.pay(asked.prompt_tokens)
            self._limits.settle(asked.tokens, bill.tokens)

    async def _begin(
        self, path: str, asked: Asked, headers: dict[str, str], held: AsyncExitStack
    ) -> _Begun:
        """Ask until the first byte of an answer is there, as often as the settings say.

        Raises:
            Overloaded, EndpointUnavailable: there will be none now.
        """
        endpoint, left, pause_s = self._endpoint, self._endpoint.retries, _FIRST_PAUSE_S
        while True:
            if not self._breaker.is_open and self._breaker.wait_s <= endpoint.patience_s:
                await asyncio.sleep(self._breaker.wait_s)
            self._breaker.check()
            try:
                with self._breaker.trying():
                    begun = await self._try(path, asked, headers, held)
            except Failed as e:
                self._count("limited" if isinstance(e.error, Overloaded) else "failed")
                wait_s = e.told_s or pause_s * random.uniform(0.5, 1)
                if not (e.again and left) or wait_s > endpoint.patience_s:
                    raise e.error from None
            else:
                self._count("ok" if begun.start.status == 200 else "refused")
                return begun
            await asyncio.sleep(wait_s)
            await self._limits.take(0, endpoint.patience_s)
            left, pause_s = left - 1, 2 * pause_s

    def _count(self, outcome: str) -> None:
        metrics.endpoint_requests.labels(self._settings.id, outcome).inc()

    async def _try(
        self, path: str, asked: Asked, headers: dict[str, str], held: AsyncExitStack
    ) -> _Begun:
        """Ask once; what the answer holds goes to `held`. Raises :class:`Failed`."""
        teller = Teller.of(self._settings)
        async with AsyncExitStack() as attempt:
            response = await self._sent(path, asked, headers, teller)
            attempt.push_async_callback(response.aclose)
            try:
                begun = await _first_of(response, teller, attempt)
            except httpx.RequestError as e:
                logger.warning("%s: %r", teller.model, e)
                # It had begun, and may be paid for: so it is not asked for again.
                raise teller.failed(_why(e)) from None
            held.push_async_callback(attempt.pop_all().aclose)
            return begun

    async def _sent(
        self, path: str, asked: Asked, headers: dict[str, str], teller: Teller
    ) -> httpx.Response:
        url = self._endpoint.url.rstrip("/") + path.removeprefix("/v1")
        told = {**headers, **_key_in(teller.key), **JSON}
        request = self._http.build_request("POST", url, content=asked.body, headers=told)
        began = time.monotonic()
        try:
            return await self._http.send(request, stream=True)
        except httpx.RequestError as e:
            logger.warning("%s: %r", teller.model, e)
            is_stale = isinstance(e, _HUNG_UP) and time.monotonic() - began < _AT_ONCE_S
            is_begun = not isinstance(e, _NOT_CONNECTED) and not is_stale
            raise teller.failed(_why(e), again=not is_begun) from None

    async def _stream(
        self, first: bytes, rest: AsyncGenerator[bytes, None], asked: Asked, bill: Bill
    ) -> AsyncGenerator[bytes, None]:
        """The events under our own name of the model, to their end or to the first fault."""
        teller = Teller(self._settings.id, self._settings.path)
        data = first
        try:
            while data != DONE:
                chunk = teller.object(data)
                bill.read(chunk)
                if chunk["choices"] or not asked.usage_is_ours:
                    yield b"data: " + json.dumps(chunk).encode() + b"\n\n"
                found = await anext(rest, None)
                if found is None and not bill.is_finished:
                    raise teller.failed("the endpoint has ended in the middle of its answer")
                data = found or DONE
        except Failed as e:
            raise e.error from None
        except httpx.RequestError as e:
            raise teller.failed(_why(e)).error from None
        yield b"data: " + DONE + b"\n\n"


async def _first_of(response: httpx.Response, teller: Teller, attempt: AsyncExitStack) -> _Begun:
    """An answer as far as it must be there before a client is told of it."""
    status, chunks = response.status_code, response.aiter_bytes()
    if status != 200:
        body = await beginning(chunks, LONGEST_ERROR)
        told = teller.refused(status, response.headers, body)
        if isinstance(told, Failed):
            said = teller.text(body.decode(errors="replace"))
            logger.warning("%s: %d: %s", teller.model, status, said)
            raise told
        return _Begun(ResponseStart(status, JSON), told)
    if not response.headers.get("content-type", "").startswith("text/event-stream"):
        whole = teller.object(await bounded(chunks, LONGEST_ANSWER, teller))
        return _Begun(ResponseStart(200, JSON), json.dumps(whole).encode())
    rest = await attempt.enter_async_context(aclosing(events(chunks, teller)))
    first = await anext(rest, None)
    if first is None:
        raise teller.failed("the endpoint has ended its answer before it began", again=True)
    teller.object(first)
    return _Begun(ResponseStart(200, EVENTS), first, rest)


def _client(endpoint: EndpointSettings, model: str) -> httpx.AsyncClient:
    """Connections to the endpoint alone."""
    verify: ssl.SSLContext | bool = True
    if endpoint.ca_file is not None:
        try:
            verify = ssl.create_default_context(cafile=endpoint.ca_file.expanduser())
        except (OSError, ssl.SSLError) as e:
            raise ConfigError(f"models.{model}.endpoint.ca_file: {endpoint.ca_file}: {e}") from e
    return httpx.AsyncClient(
        verify=verify,
        follow_redirects=False,
        # What goes to this machine goes by no proxy, whatever the environment says.
        trust_env=not is_loopback(httpx.URL(endpoint.url).host),
        # As many as there are requests: those wait for their turn in the ingress.
        limits=httpx.Limits(max_connections=None),
        timeout=httpx.Timeout(endpoint.timeout_s, connect=endpoint.connect_timeout_s),
        headers={"user-agent": "roundhouse", "accept-encoding": "identity"},
    )


def _key_in(key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


def _why(error: httpx.RequestError) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "the endpoint does not answer in time"
    what = "cannot be reached" if isinstance(error, httpx.ConnectError) else "has hung up"
    return f"the endpoint {what} ({type(error).__name__})"
