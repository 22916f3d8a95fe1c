"""Which replicas hold an adapter that wants a number of them. Pure."""

import hashlib
from collections.abc import Iterable


def holders(name: str, count: int, replica_ids: Iterable[str]) -> list[str]:
    """The replicas that are to hold an adapter, the first one first.

    Rendezvous hashing (Thaler and Ravishankar 1998): every replica works out the same answer by
    itself, and when one comes or goes, only the adapters on it move.
    """

    def weight(replica_id: str) -> bytes:
        return hashlib.sha256(f"{name}\0{replica_id}".encode()).digest()

    return sorted(replica_ids, key=weight)[:count]
