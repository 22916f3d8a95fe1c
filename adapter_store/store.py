"""Everything that the store keeps, on one connection."""

from typing import Self

from adapter_store.blob_refs import BlobRefs
from adapter_store.encoders.kept import EncoderStore
from adapter_store.members import Members
from adapter_store.plans import Plans
from adapter_store.registry import Registry
from adapter_store.rules import RuleStore
from adapter_store.server import Server
from adapter_store.telemetry import TelemetryStore
from cluster.settings import StoreSettings


class Store:
    """One per process; connects with the first command."""

    def __init__(self, settings: StoreSettings) -> None:
        self.server = Server(settings)
        self.registry = Registry(self.server)
        self.blob_refs = BlobRefs(self.server)
        self.members = Members(self.server, settings.lease_s)
        self.plans = Plans(self.server)
        self.rules = RuleStore(self.server)
        self.encoders = EncoderStore(self.server)
        self.telemetry = TelemetryStore(self.server)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self.server.close()
