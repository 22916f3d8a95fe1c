"""The replicas of a base model, and how a request comes to one of them."""

from collections.abc import Collection
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Protocol

from cluster.errors import ReplicaLost
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


async def answered_by(pool: ReplicaPool, call: Call, terms: Terms, held: AsyncExitStack) -> Reply:
    """The reply of a replica; of a second one where the first one died before it answered."""
    try:
        return await held.enter_async_context(pool.answer(call, terms))
    except ReplicaLost:
        # Nothing was sent to the client yet, so another replica may start afresh.
        return await held.enter_async_context(pool.answer(call, terms))
