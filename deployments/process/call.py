"""A request as it goes from the ingress to a replica, and how its answer begins."""

from dataclasses import dataclass

from cluster.adapters import AdapterRef

REPLICA_HEADER = "x-roundhouse-replica"
RESIDENCY_HEADER = "x-roundhouse-residency"


@dataclass(frozen=True)
class ResponseStart:
    """Status line and headers of an answer; the body's chunks follow."""

    status: int
    headers: dict[str, str]

    @property
    def is_stream(self) -> bool:
        """Whether the body comes token by token."""
        return self.headers.get("content-type", "").startswith("text/event-stream")


@dataclass(frozen=True)
class Call:
    """One request as the ingress hands it over: already authorised and routed.

    `body` is the JSON for the engine, with the engine's name of the model in it. `position` is how
    far the ingress had followed the store when it resolved the adapter. `replica` is the one that
    it should go to; empty leaves that to Ray Serve. `waiting` are the adapter versions that
    requests behind it wait for; `missing` is the one of them that this replica should load next.
    """

    path: str
    request_id: str
    body: bytes
    adapter: AdapterRef | None
    position: str
    replica: str = ""
    waiting: tuple[str, ...] = ()
    missing: str = ""

    @property
    def key(self) -> str | None:
        """Of the adapter's version; None for the base model."""
        return self.adapter.key if self.adapter else None
