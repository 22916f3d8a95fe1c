"""What an endpoint elsewhere answers, read within bounds and told under our own names."""

import email.utils
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import ConfigError, EndpointUnavailable, Overloaded
from cluster.settings import BaseModelSettings
from deployments.engines.endpoint.breaker import Failed
from deployments.engines.endpoint.key import read_key
from deployments.engines.refusals.told import error_of

logger = logging.getLogger(__name__)

JSON = {"content-type": "application/json"}
EVENTS = {"content-type": "text/event-stream; charset=utf-8"}
DONE = b"[DONE]"
LONGEST_ANSWER = 64 * 2**20
LONGEST_EVENT = 8 * 2**20
LONGEST_ERROR = 64 * 2**10
_LONGEST_MESSAGE = 1000

# Of what the client has sent; any other 4xx is for the operator to mend. Only what is about our key
# or account is so for every request: a path that is not there is not.
_OF_THE_CLIENT = (400, 413, 422)
_OF_THE_KEY = (401, 402)
_BUSY = 429
_TOLD = ("message", "param", "code")


@dataclass(frozen=True)
class Teller:
    """Says for a model what its endpoint has said, without the endpoint's name of it or its key.

    Attributes:
        name_there: what the endpoint calls it.
    """

    model: str
    name_there: str
    key: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, model: BaseModelSettings) -> "Teller":
        """With the key as it is now; raises :class:`Failed` where it is gone."""
        if model.endpoint is None:
            return cls(model.id, model.path)
        try:
            key = read_key(model.endpoint, model.id)
        except ConfigError as e:
            logger.error("%s", e)
            raise cls(model.id, model.path).failed("its key is not there") from None
        return cls(model.id, model.path, key)

    def text(self, said: object) -> str:
        """A message of the endpoint's."""
        text = str(said)
        if self.key:
            # First of all: it may have the name in it.
            text = text.replace(self.key, "***")
        return text.replace(self.name_there, self.model)[:_LONGEST_MESSAGE]

    def failed(
        self, why: str, *, again: bool = False, told_s: float | None = None, counts: bool = True
    ) -> Failed:
        """A try that brought no answer."""
        error = EndpointUnavailable(f"{self.model}: {why}")
        return Failed(error, again=again, told_s=told_s, counts=counts)

    def refused(self, status: int, headers: Mapping[str, str], body: bytes) -> bytes | Failed:
        """Of an answer that is none: the client's mistake as the body of an answer, or a failure.

        What an endpoint says about its key, its limits or its ways is for the log alone.
        """
        if status in _OF_THE_CLIENT:
            return self._mistake(body)
        told_s = retry_after_s(headers.get("retry-after"))
        if status == _BUSY:
            why = f"{self.model}: the endpoint is at its limit; try again after the time in "
            error = Overloaded(f"{why}Retry-After", retry_after_s=told_s or 1.0)
            return Failed(error, again=True, told_s=told_s)
        if status >= 500:
            return self.failed(f"the endpoint failed ({status})", again=True, told_s=told_s)
        if 300 <= status < 400:
            return self.failed("the endpoint leads elsewhere, which is not followed")
        why = f"the endpoint refuses us ({status}); the log says more"
        return self.failed(why, counts=status in _OF_THE_KEY)

    def _mistake(self, body: bytes) -> bytes:
        error = _object(body).get("error")
        said = error if isinstance(error, dict) else {"message": error or "the request is refused"}
        words = {name: self.text(said[name]) for name in _TOLD if said.get(name)}
        error = error_of(400, {"message": "the request is refused", **words})
        error.message = f"{self.model}: {error.message}"
        return json.dumps(error.body()).encode()

    def object(self, data: bytes) -> dict[str, Any]:
        """An answer, or a chunk of one, under our own name of the model.

        Raises:
            Failed: it is none.
        """
        found = _object(data)
        if "choices" not in found:
            raise self.failed("the endpoint has sent what is no answer")
        return found | {"model": self.model}


def _object(data: bytes) -> dict[str, Any]:
    """A JSON object; an empty one where it is none."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def retry_after_s(said: str | None) -> float | None:
    """Seconds, or a date (RFC 9110, 10.2.3); None where nothing can be read of it."""
    if not said:
        return None
    if said.strip().isascii() and said.strip().isdecimal():
        return float(said.strip()[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:
        return None


async def beginning(chunks: AsyncIterator[bytes], most: int) -> bytes:
    """As much of it as an error may have."""
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) >= most:
            break
    return bytes(body[:most])


async def bounded(chunks: AsyncIterator[bytes], most: int, teller: Teller) -> bytes:
    """All of it; raises :class:`Failed` for more."""
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > most:
            raise teller.failed(f"the endpoint sends more than {most} bytes")
    return bytes(body)


async def events(chunks: AsyncIterator[bytes], teller: Teller) -> AsyncGenerator[bytes, None]:
    """The data of each server-sent event; comments and names of events are left out.

    Raises:
        Failed: an event, or all of them, are too long.
    """
    data: list[bytes] = []
    size = 0
    async for line in _lines(chunks, teller):
        if not line:
            if data:
                yield b"\n".join(data)
            data, size = [], 0
        elif line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
            size += len(line)
            if size > LONGEST_EVENT:
                raise teller.failed("the endpoint sends an event without end")
    if data:
        yield b"\n".join(data)


async def _lines(chunks: AsyncIterator[bytes], teller: Teller) -> AsyncIterator[bytes]:
    rest, total = b"", 0
    async for chunk in chunks:
        total += len(chunk)
        *lines, rest = (rest + chunk).split(b"\n")
        if total > LONGEST_ANSWER or len(rest) > LONGEST_EVENT:
            raise teller.failed("the endpoint sends an answer without end")
        for line in lines:
            yield line.removesuffix(b"\r")
    if rest:
        yield rest
