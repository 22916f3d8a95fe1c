"""Where a request is sent: the replicas of a base model, wherever they run."""

from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from deployments.ingress.terms import Terms
from deployments.process.call import Call, Reply


class ReplicaPool(Protocol):
    """The replicas of one base model."""

    def answer(self, call: Call, terms: Terms) -> AbstractAsyncContextManager[Reply]:
        """Send the call to a replica when its turn comes.

        Raises:
            Overloaded: its turn would come too late.
            ReplicaLost: the replica died while it had the call; from the body, too.
        """

    def tasks(self) -> Collection[str]:
        """What they can do; nothing where there are none."""

    def running(self) -> list[str]:
        """The replicas that live, those that are least busy first."""

    def sent(self, call: Call) -> AbstractAsyncContextManager[Reply]:
        """Send the call to the replica that it names, past the queue."""
