"""Decisions that are kept, and what users say of the answers."""

from collections.abc import Iterable
from typing import Any

from pydantic import Field

from adapter_store.routing_log import RoutingLog
from cluster.adapters import Share, Viewer
from cluster.decisions import Outcome, RoutedRequest
from cluster.errors import Conflict, InvalidRequest, NotFound, parse
from cluster.settings import Settings
from cluster.values import Value
from deployments.ingress.directory import Directory
from deployments.ingress.edge import request_ids

# Candidates that one request's feedback may speak of.
_MOST_SCORES = 64


class Rated(Value):
    """What `POST /v1/feedback` takes."""

    request_id: str = Field(min_length=1, max_length=request_ids.LONGEST)
    score: Share | None = Field(None, description="of what answered")
    scores: dict[str, Share] = Field(
        default_factory=dict,
        max_length=_MOST_SCORES,
        description="of any candidates on the same prompt, by name",
    )
    owner: str | None = None


class Feedback:
    """What the endpoint tells and takes of past requests."""

    def __init__(self, log: RoutingLog, settings: Settings, directory: Directory) -> None:
        self._log = log
        self._directory = directory
        self._keep_s = settings.router.keep_decisions_s
        # Those that may have asked, nobody included: keys may not be needed.
        self._tenants = ("", *dict.fromkeys(key.tenant for key in settings.auth.keys))

    async def take(self, body: dict[str, Any], viewer: Viewer) -> dict[str, Any]:
        """Keep how good an answer was, or would have been of others, for the router to learn from.

        Raises:
            InvalidRequest: names the field.
            NotFound: the request is not known, or no longer, or another tenant's.
            Conflict: its prompt was not kept, or it has its feedback already.
        """
        sent = parse(Rated, body)
        if sent.score is None and not sent.scores:
            raise InvalidRequest("score: give how good the answer was, 0 to 1", param="score")
        request = await self.show(sent.request_id, viewer, sent.owner)
        text, answered_by = request.input, request.answered_by
        if text is None:
            raise Conflict(
                "prompts are not kept here (router.keep_prompts), so nothing can be learnt of one",
                param="request_id",
            )
        scores = self._by_name(sent, answered_by, viewer)
        outcomes = {
            name: Outcome(input=text, candidate=name, score=score, owner=request.owner)
            for name, score in scores.items()
        }
        answered = outcomes.pop(answered_by, None)
        if not await self._log.add_outcome(request.request_id, answered, [*outcomes.values()]):
            raise Conflict("this request has its feedback already", param="request_id")
        told: dict[str, Any] = {"request_id": sent.request_id}
        if answered is not None:
            told |= {"candidate": answered_by, "score": answered.score}
        return told | ({"scores": sent.scores} if sent.scores else {})

    def _by_name(self, sent: Rated, answered_by: str, viewer: Viewer) -> dict[str, float]:
        """The scores, each of a candidate that the caller may know of."""
        known = {answered_by, *self._directory.base_models}
        for name in sent.scores:
            if name not in known and not self._directory.shows(name, viewer):
                raise InvalidRequest(
                    f"scores: {name!r} is neither a base model nor an adapter here: give names as "
                    "GET /v1/models has them, without a version",
                    param="scores",
                )
        if sent.score is None:
            return dict(sent.scores)
        if answered_by in sent.scores:
            raise InvalidRequest(
                f"scores: {answered_by!r} answered, so it has its score in `score`: give one of "
                "them",
                param="scores",
            )
        return {answered_by: sent.score, **sent.scores}

    async def show(
        self, request_id: str, viewer: Viewer, owner: str | None = None, *, raw: str = ""
    ) -> RoutedRequest:
        """What was decided about a request: one's own, or, for those who see all, another tenant's.

        Args:
            request_id: as the client has sent it, or as the answer had it.
            owner: whose it was, where several have sent the same id.
            raw: the id as an address has it, before it was decoded.

        Raises:
            NotFound: it expired, never was, or is somebody else's.
            Conflict: several tenants have sent this id.
        """
        owners = [viewer.owner] if owner is None else [owner]
        if not (viewer.sees_all or owners == [viewer.owner]):
            owners = []
        found = await self._find(request_id, raw, owners)
        if not found and viewer.sees_all and owner is None:
            found = await self._find(request_id, raw, self._tenants)
        if len(found) > 1:
            named = ", ".join(repr(request.owner) for request in found)
            raise Conflict(
                f"{len(found)} tenants have sent request {request_id!r}: say whose it is, owner "
                f"is one of {named}",
                param="owner",
            )
        if not found:
            raise NotFound(
                f"no decision about request {request_id!r} is kept; give the x-request-id of an "
                f"answer to model 'auto' of the last {self._keep_s:g} s (router.keep_decisions_s)",
                param="request_id",
            )
        return found[0]

    async def _find(self, told: str, raw: str, owners: Iterable[str]) -> list[RoutedRequest]:
        for request_id in dict.fromkeys(request_ids.meant(told, raw)):
            if found := await self._log.find(request_id, owners):
                return found
        return []

    async def newest(self, limit: int) -> list[RoutedRequest]:
        return await self._log.newest(limit)
