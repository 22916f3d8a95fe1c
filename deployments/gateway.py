"""One request, end to end: choose the adapter, choose the replica, stream.

Knows neither HTTP nor Ray: `http.py` authorises and calls this, `ingress.py` passes in what runs
on Ray.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import ValidationError

from adapter_store.blobs import BlobStore
from adapter_store.catalogue import Catalogue
from adapter_store.registration import Registration, register
from adapter_store.store import AdapterStore
from cluster.errors import (
    InvalidRequest,
    ModelNotFound,
    ReplicaLost,
    StoreUnavailable,
    Unavailable,
)
from cluster.settings import Settings
from cluster.state import (
    Adapter,
    AdapterRef,
    ClusterSnapshot,
    Decision,
    DeploymentState,
    Member,
    Route,
)
from deployments.call import Call
from deployments.engine import ResponseStart
from router.prompt_router import Constraints
from router.prompts import text_of

logger = logging.getLogger(__name__)

AUTO = "auto"
CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"
WAIT_S = 60.0


class ReplicaPool(Protocol):
    """The replicas of one base model."""

    def answer(self, call: Call) -> AsyncIterator[ResponseStart | bytes]:
        """Send the call to a replica; raises :class:`Overloaded` when all are full."""


class Chooser(Protocol):
    """The prompt router, wherever it runs."""

    async def choose(self, texts: list[str], constraints: Constraints) -> list[Decision]:
        """One decision per text; raises :class:`Unavailable` when it does not answer in time."""


@dataclass(frozen=True)
class Chosen:
    """What answers a request, and who said so."""

    base_model: str
    adapter: AdapterRef | None
    route: Route


@dataclass
class Answer:
    """A started answer: send the start, then the chunks; close the body when the client leaves."""

    start: ResponseStart
    body: AsyncIterator[bytes]
    headers: dict[str, str] = field(default_factory=dict)


class Gateway:
    """The public operations of the cluster."""

    def __init__(
        self,
        settings: Settings,
        store: AdapterStore,
        catalogue: Catalogue,
        chooser: Chooser,
        pools: Mapping[str, ReplicaPool],
        deployments: Callable[[], Awaitable[tuple[DeploymentState, ...]]],
    ) -> None:
        self._settings = settings
        self._deployments = deployments
        self._store = store
        self._blobs = BlobStore(settings.store.root)
        self._catalogue = catalogue
        self._chooser = chooser
        self._pools = pools

    # -- one request ------------------------------------------------------------------------

    async def complete(self, path: str, body: dict[str, Any], request_id: str) -> Answer:
        """Serve a chat or text completion."""
        constraints = take_request_fields(path, body)
        chosen = await self._choose(path, body, constraints)
        model = chosen.adapter.key if chosen.adapter else chosen.base_model
        content = encode_json({**body, "model": model})
        call = Call(path, request_id, content, chosen.adapter, self._catalogue.position)
        return await self._dispatch(chosen, call)

    async def _choose(self, path: str, body: dict[str, Any], constraints: Constraints) -> Chosen:
        model = body["model"]
        if model != AUTO:
            return self.resolve(model)
        prompt = text_of(body["messages"] if path == CHAT_PATH else body["prompt"])
        (decision,) = await self._decide([prompt], constraints)
        if decision.adapter is None:
            base_model = constraints.base_model or self._settings.fallback_model
            return Chosen(base_model, None, decision.route)
        try:
            found = self.resolve(decision.adapter)
        except ModelNotFound:
            # Deleted since the router looked: as good as never chosen.
            base_model = constraints.base_model or self._settings.fallback_model
            return Chosen(base_model, None, Route.FALLBACK)
        return Chosen(found.base_model, found.adapter, Route.AUTO)

    def resolve(self, model: str) -> Chosen:
        """What a client means by a model name; raises :class:`ModelNotFound`."""
        if model in self._pools:
            return Chosen(model, None, Route.EXPLICIT)
        try:
            adapter, version = self._catalogue.find(model)
        except ModelNotFound:
            known = [AUTO, *self._pools, *self._catalogue.adapters]
            raise ModelNotFound(model, known) from None
        if adapter.card.base_model not in self._pools:
            raise Unavailable(f"no replicas serve {adapter.card.base_model}, the base of {model}")
        return Chosen(adapter.card.base_model, AdapterRef.of(adapter, version), Route.EXPLICIT)

    async def _decide(self, texts: list[str], constraints: Constraints) -> list[Decision]:
        if constraints.base_model is not None and constraints.base_model not in self._pools:
            raise ModelNotFound(constraints.base_model, self._pools, param="constraints.base_model")
        try:
            return await self._chooser.choose(texts, constraints)
        except Unavailable as e:
            logger.warning("the prompt router does not answer, the base model does: %s", e)
            reason = f"fallback to the base model: {e.message}"
            fallback = Decision(adapter=None, confidence=0, route=Route.FALLBACK, reason=reason)
            return [fallback for _ in texts]

    async def _dispatch(self, chosen: Chosen, call: Call) -> Answer:
        pool = self._pools[chosen.base_model]
        try:
            answer = pool.answer(call)
            start = await anext(answer)
        except ReplicaLost:
            # Nothing was sent to the client yet, so another replica may start afresh.
            answer = pool.answer(call)
            start = await anext(answer)
        headers = {
            "x-roundhouse-adapter": chosen.adapter.name if chosen.adapter else "base",
            "x-roundhouse-version": str(chosen.adapter.version) if chosen.adapter else "",
            "x-roundhouse-route": chosen.route,
        }
        return Answer(start, answer, headers)

    # -- what there is ----------------------------------------------------------------------

    async def route(self, texts: list[str], constraints: Constraints) -> list[Decision]:
        """The decisions alone."""
        return await self._decide(texts, constraints)

    def models(self) -> list[dict[str, Any]]:
        """OpenAI model cards: ``auto``, base models, adapters."""
        adapters = (self._catalogue.adapters[n] for n in sorted(self._catalogue.adapters))
        return [
            _model_card(AUTO),
            *(_model_card(m) for m in self._pools),
            *(_model_card(a.name, a) for a in adapters),
        ]

    def model(self, model: str) -> dict[str, Any]:
        if model == AUTO:
            return _model_card(AUTO)
        chosen = self.resolve(model)
        if chosen.adapter is None:
            return _model_card(model)
        return _model_card(model, self._catalogue.adapters[chosen.adapter.name])

    async def snapshot(self) -> ClusterSnapshot:
        try:
            members, store = await self._store.members(), "ok"
        except StoreUnavailable:
            members, store = [], "stale"
        return ClusterSnapshot(
            models=tuple(self._pools),
            adapters=len(self._catalogue.adapters),
            members=tuple(members),
            deployments=await self._deployments(),
            store="stale" if self._catalogue.is_stale else store,
            position=self._catalogue.position,
        )

    async def not_ready(self) -> list[str]:
        """What is still missing before every request can be served; empty when ready."""
        try:
            members = await self._store.members()
        except StoreUnavailable:
            return []  # degraded, and said so by /v1/cluster; what is loaded is served
        counts = {m.id: 0 for m in self._settings.models}
        routers = 0
        for member in members:
            if member.kind == "replica" and member.model in counts:
                counts[member.model] += 1
            routers += member.kind == "router"
        missing = [
            f"{m.replicas - counts[m.id]} of {m.replicas} replicas of {m.id}"
            for m in self._settings.models
            if counts[m.id] < m.replicas
        ]
        return missing if routers else [*missing, "the prompt router"]

    # -- managing adapters ------------------------------------------------------------------

    async def register(
        self, registration: Registration, *, mode: str, wait: bool
    ) -> tuple[dict[str, Any], bool]:
        """Store an adapter; with `wait`, return when every live process has taken it in.

        Returns:
            The adapter's description, and whether a new version was made.
        """
        stored = await register(self._store, self._blobs, registration, mode=mode)
        await self._settle(stored.position)
        if wait:
            members = await self._store.converged(stored.position, timeout_s=WAIT_S)
            _raise_on_problem(f"{stored.adapter.name}@{stored.version.number}", members)
        return describe(stored.adapter), stored.is_new_version

    def list_adapters(self, *, after: str, limit: int) -> tuple[list[dict[str, Any]], str | None]:
        """A page of adapters, ordered by name, and the cursor of the next."""
        names = [n for n in sorted(self._catalogue.adapters) if n > after]
        page = [describe(self._catalogue.adapters[n]) for n in names[:limit]]
        return page, names[limit - 1] if len(names) > limit else None

    def show_adapter(self, name: str) -> dict[str, Any]:
        return describe(self._adapter(name))

    async def delete_adapter(self, name: str) -> None:
        await self._settle(await self._store.delete(name))

    def _adapter(self, name: str) -> Adapter:
        adapter = self._catalogue.adapters.get(name)
        if adapter is None:
            raise ModelNotFound(name, self._catalogue.adapters, param="name")
        return adapter

    async def _settle(self, position: str) -> None:
        """Wait until this process answers by the change: read your own writes."""
        try:
            async with asyncio.timeout(WAIT_S):
                await self._catalogue.wait_for(position)
        except TimeoutError as e:
            raise StoreUnavailable("stored, but this endpoint has not seen it yet") from e

    def report(self, member_id: str) -> Member:
        return Member(id=member_id, kind="ingress", position=self._catalogue.position)


def take_request_fields(path: str, body: dict[str, Any]) -> Constraints:
    """Check the fields that routing needs, and take out those that the engine does not know.

    The engine checks all the others.
    """
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise InvalidRequest(
            "model must be a string: 'auto', a base model, an adapter or name@version",
            param="model",
        )
    if path == CHAT_PATH:
        _check_messages(body.get("messages"))
    elif not isinstance(body.get("prompt"), str | list) or not body["prompt"]:
        raise InvalidRequest("prompt must be a string, or a list of them", param="prompt")
    return parse_constraints(body.pop("constraints", None))


def encode_json(value: Any) -> bytes:
    try:
        return json.dumps(value).encode()
    except RecursionError as e:
        raise InvalidRequest("the body is nested too deeply") from e


def parse_constraints(value: Any) -> Constraints:
    try:
        return Constraints.model_validate(value or {})
    except ValidationError as e:
        raise InvalidRequest.of(e, "constraints") from e


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a list with at least one message", param="messages")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidRequest(
                f"messages[{i}] must be an object with a role and a content",
                param=f"messages[{i}]",
            )


def _raise_on_problem(key: str, members: list[Member]) -> None:
    for member in members:
        if key in member.problems:
            why = member.problems[key]
            raise Unavailable(f"{key} is registered, but replica {member.id} cannot load it: {why}")


def describe(adapter: Adapter) -> dict[str, Any]:
    """The adapter as the API shows it."""
    return {
        **adapter.card.model_dump(mode="json"),
        "versions": [v.model_dump(mode="json") for v in adapter.versions.values()],
        "aliases": dict(adapter.aliases),
        "revision": adapter.revision,
    }


def _model_card(model: str, adapter: Adapter | None = None) -> dict[str, Any]:
    created = int(adapter.latest.created_at) if adapter else 0
    card = {"id": model, "object": "model", "created": created, "owned_by": "roundhouse"}
    if adapter is not None:
        card |= {"root": adapter.latest.digest, "parent": adapter.card.base_model}
    return card
