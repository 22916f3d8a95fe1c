"""Decisions that are kept, and what users say of the answers."""

from typing import Any

from pydantic import Field

from adapter_store.routing_log import RoutingLog
from cluster.adapters import Share, Viewer
from cluster.decisions import Outcome, RoutedRequest
from cluster.errors import Conflict, parse
from cluster.values import Value


class _Feedback(Value):
    request_id: str = Field(min_length=1, max_length=128)
    score: Share


class Feedback:
    """What the endpoint tells and takes of past requests."""

    def __init__(self, log: RoutingLog) -> None:
        self._log = log

    async def take(self, body: dict[str, Any], viewer: Viewer) -> dict[str, Any]:
        """Keep how good an answer was, for the router to learn from.

        Raises:
            InvalidRequest: names the field.
            NotFound: the request is not known, or no longer.
            Conflict: its prompt was not kept, or it has its feedback already.
        """
        sent = parse(_Feedback, body)
        request = await self._log.get(sent.request_id, viewer)
        if request.input is None:
            raise Conflict(
                "prompts are not kept here (router.keep_prompts), so nothing can be learnt of one",
                param="request_id",
            )
        outcome = Outcome(input=request.input, candidate=request.answered_by, score=sent.score)
        if not await self._log.add_outcome(sent.request_id, outcome):
            raise Conflict("this request has its feedback already", param="request_id")
        return {"request_id": sent.request_id, **outcome.model_dump(include={"candidate", "score"})}

    async def show(self, request_id: str, viewer: Viewer) -> RoutedRequest:
        """Raises NotFound."""
        return await self._log.get(request_id, viewer)

    async def newest(self, limit: int) -> list[RoutedRequest]:
        return await self._log.newest(limit)
