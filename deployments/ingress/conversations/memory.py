"""What answered earlier turns: looked up before a choice, kept after it.

The store shares it between ingresses. What this one has chosen itself it remembers, too: that is
there at once, and while the store is away.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable

from adapter_store.routing_log import RoutingLog
from cluster.decisions import Decision, Held, Prompt, RoutedRequest
from cluster.errors import StoreUnavailable
from cluster.tasks import soon
from deployments.ingress.rules.choice import Chooser
from router.adapters.constraints import Constraints
from router.adapters.prompts import in_conversation

logger = logging.getLogger(__name__)

# Some 300 bytes each.
_MOST_REMEMBERED = 20_000
# No request waits longer for the store: not to know it costs a switch at worst.
_PATIENCE_S = 0.5


class Conversations:
    """Stands before a chooser, and is one.

    Args:
        is_away: whether the store is known not to answer.
        record: is handed every request on.
    """

    def __init__(
        self,
        chooser: Chooser,
        log: RoutingLog,
        is_away: Callable[[], bool],
        record: Callable[[RoutedRequest], None],
    ) -> None:
        self._chooser = chooser
        self._log = log
        self._is_away = is_away
        self._record = record
        self._remembered: OrderedDict[tuple[str, str], Held] = OrderedDict()

    async def choose(self, prompts: list[Prompt], constraints: Constraints) -> list[Decision]:
        turns = [in_conversation(prompt, constraints.conversation) for prompt in prompts]
        owner = constraints.viewer.owner
        known = await self._known(owner, dict.fromkeys(m for turn in turns for m in turn.marks))
        told = [turn.model_copy(update={"held": _newest(turn, known)}) for turn in turns]
        # It has had its say: the rest of the constraints is shared by many requests.
        constraints = constraints.model_copy(update={"conversation": None})
        return await self._chooser.choose(told, constraints)

    def record(self, request: RoutedRequest) -> None:
        """Remember what answered a turn; the record itself goes to the store."""
        if request.conversation:
            self._remembered[request.owner, request.conversation] = request.held
            self._remembered.move_to_end((request.owner, request.conversation))
            if len(self._remembered) > _MOST_REMEMBERED:
                self._remembered.popitem(last=False)
        self._record(request)

    async def _known(self, owner: str, marks: Iterable[str]) -> dict[str, Held]:
        """What answered turns of a tenant's, as this process or another one has it, which may
        be newer."""
        wanted = list(marks)
        if not wanted:
            return {}
        known = await self._kept(owner, wanted)
        for mark in wanted:
            own, kept = self._remembered.get((owner, mark)), known.get(mark)
            if own is not None and (kept is None or own.at >= kept.at):
                known[mark] = own
        return known

    async def _kept(self, owner: str, marks: list[str]) -> dict[str, Held]:
        if self._is_away():
            return {}
        try:
            return await soon(self._log.held(owner, marks), within_s=_PATIENCE_S)
        except StoreUnavailable as e:
            logger.warning("a conversation is known by this process alone: %s", e)
            return {}


def _newest(turn: Prompt, known: dict[str, Held]) -> Held | None:
    """What answered the newest turn of which that is known."""
    return next((known[mark] for mark in turn.marks if mark in known), None)
