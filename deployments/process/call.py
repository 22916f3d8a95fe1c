"""What crosses between the ingress and a replica: a request, and the reply to it."""

import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from cluster.adapters import AdapterKey, AdapterRef
from cluster.errors import RoundhouseError

REPLICA_HEADER = "x-roundhouse-replica"
RESIDENCY_HEADER = "x-roundhouse-residency"
# A call that loads an adapter and asks nothing of it, before it is registered.
TRIAL_PATH = "trial"


@dataclass(frozen=True)
class ResponseStart:
    """Status line and headers of an answer; the body's chunks follow."""

    status: int
    headers: dict[str, str]

    @property
    def is_stream(self) -> bool:
        """Whether the body comes token by token."""
        return self.headers.get("content-type", "").startswith("text/event-stream")

    def with_headers(self, headers: Mapping[str, str]) -> "ResponseStart":
        """With more headers; of two with one name, the one that is given here."""
        return replace(self, headers={**self.headers, **headers})


class Reply(NamedTuple):
    """An answer that has begun: its start, then its body as it comes.

    It is yielded by an `async with`, whose end frees what the answer holds, whether or not the body
    has been read to its end.
    """

    start: ResponseStart
    body: AsyncGenerator[bytes, None]

    @classmethod
    def whole(cls, start: ResponseStart, body: bytes) -> "Reply":
        """One whose body is there already."""
        return cls(start, _once(body))

    @classmethod
    def refusal(cls, error: RoundhouseError) -> "Reply":
        """An error of ours, as an answer."""
        headers = {"content-type": "application/json", **error.headers()}
        return cls.whole(ResponseStart(error.status, headers), json.dumps(error.body()).encode())

    async def read(self) -> bytes:
        """The whole body."""
        return b"".join([chunk async for chunk in self.body])


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


@dataclass(frozen=True)
class Call:
    """One request as the ingress hands it over: already authorised and routed.

    `body` is what the engine gets, with its own name of the model in it: JSON, unless
    `content_type` says something else. `position` is how far the ingress had followed the store
    when it resolved the adapter. `replica` is the one that it should go to; empty leaves that to
    Ray Serve. `waiting` are the adapter versions that requests behind it wait for; `missing` is the
    one of them that this replica should load next.
    `trace` are the headers by which spans of a replica join the request's.
    """

    path: str
    request_id: str
    body: bytes
    adapter: AdapterRef | None
    position: str
    replica: str = ""
    waiting: tuple[AdapterKey, ...] = ()
    missing: AdapterKey | None = None
    content_type: str = "application/json"
    trace: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> AdapterKey | None:
        """Of the adapter's version; None for the base model."""
        return self.adapter.key if self.adapter else None
