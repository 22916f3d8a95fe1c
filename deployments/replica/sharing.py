"""Which replicas hold the adapters whose cards want a number of them."""

from collections.abc import Iterable

from adapter_store.catalogue import Changes
from adapter_store.members import Members
from cluster.adapters import Adapter
from cluster.errors import StoreUnavailable
from cluster.members import Replica
from cluster.placement import holders


class Sharing:
    """One replica's view: every replica of a base model works out the same from who is there."""

    def __init__(self, members: Members, model_id: str, replica_id: str) -> None:
        self._members = members
        self._model_id = model_id
        self._id = replica_id
        self._peers: frozenset[str] = frozenset()
        # The peers among whom they were last shared out.
        self._shared_among: frozenset[str] = frozenset()
        # The adapters that want a number of replicas, by name.
        self.counted: set[str] = set()

    async def heed(self, changes: Changes, mine: Iterable[Adapter]) -> None:
        """Hear of changed adapters, `mine` of them of this base model."""
        self.counted -= changes.keys()
        self.counted |= {adapter.name for adapter in mine if adapter.card.replicas != "auto"}
        if self.counted & changes.keys():
            await self._meet_peers()

    async def has_changed(self) -> bool:
        """Whether replicas came or went since this was last asked: they share anew."""
        if self.counted:
            await self._meet_peers()
        before, self._shared_among = self._shared_among, self._peers
        return before != self._peers

    def is_assigned(self, adapter: Adapter) -> bool:
        """Whether this replica is one of those that an adapter wants."""
        wanted = adapter.card.replicas
        return wanted != "auto" and self._id in holders(adapter.name, wanted, self._peers)

    async def _meet_peers(self) -> None:
        """Look who is there; without the store, it stays at who was."""
        try:
            members = await self._members.all()
        except StoreUnavailable:
            return
        alive = {m.id for m in members if isinstance(m, Replica) and m.model == self._model_id}
        self._peers = frozenset(alive | {self._id})
