"""One request, end to end: choose the adapter, choose the replica, stream.

Knows neither HTTP nor Ray: `http.py` authorises and calls this, `ingress.py` passes in what runs
on Ray.
"""

import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Protocol

from adapter_store.catalogue import Catalogue
from adapter_store.search import Search
from adapter_store.store import Store
from cluster import rollouts
from cluster.adapters import Adapter, AdapterRef, Version, Viewer
from cluster.decisions import Decision, Prompt, Route, RoutedRequest
from cluster.errors import (
    AdapterLoadFailed,
    InvalidRequest,
    ModelNotFound,
    OutOfScope,
    ReplicaLost,
    RoundhouseError,
    StoreUnavailable,
    Unavailable,
    parse,
)
from cluster.members import ClusterSnapshot, DeploymentState, Member, RouterReport
from cluster.plans import PlacementPlan
from cluster.settings import Settings
from cluster.tasks import soon
from deployments.ingress.terms import Terms, terms_of
from deployments.ingress.traffic import Observed
from deployments.process import metrics
from deployments.process.call import Call, ResponseStart
from router.adapters.constraints import Constraints, constraints_in_headers, merged, take_flags
from router.adapters.prompts import prompt_of

logger = logging.getLogger(__name__)

AUTO = "auto"
CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"
# Long enough for what evaluation prompts expect, short enough for a version that babbles.
EVALUATION_TOKENS = 256
_LOGGED_PROMPT = 4000


class ReplicaPool(Protocol):
    """The replicas of one base model."""

    def answer(self, call: Call, terms: Terms) -> AsyncIterator[ResponseStart | bytes]:
        """Send the call to a replica when its turn comes.

        Raises:
            Overloaded: its turn would come too late.
            ReplicaLost: the replica died while it had the call.
        """


class Chooser(Protocol):
    """The prompt router, wherever it runs."""

    async def choose(self, prompts: list[Prompt], constraints: Constraints) -> list[Decision]:
        """One decision per prompt; raises :class:`Unavailable` when it does not answer in time."""


@dataclass(frozen=True)
class Chosen:
    """What answers a request, and who said so."""

    base_model: str
    adapter: AdapterRef | None
    route: Route
    decision: Decision | None = None
    prompt: Prompt | None = None


@dataclass(frozen=True)
class Sight:
    """The cluster as it was at one moment."""

    members: tuple[Member, ...]
    plan: PlacementPlan | None
    deployments: tuple[DeploymentState, ...]


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
        store: Store,
        catalogue: Catalogue,
        chooser: Chooser,
        pools: Mapping[str, ReplicaPool],
        deployments: Callable[[], Awaitable[tuple[DeploymentState, ...]]],
        plan: Callable[[], Awaitable[PlacementPlan]],
        record: Callable[[RoutedRequest], None],
        want: Callable[[str | None, str], None],
    ) -> None:
        self._settings = settings
        self._deployments = deployments
        self._plan = plan
        self._store = store
        self._catalogue = catalogue
        self._chooser = chooser
        self._pools = pools
        self._record = record
        self._want = want

    # -- one request ------------------------------------------------------------------------

    async def complete(
        self,
        path: str,
        body: dict[str, Any],
        request_id: str,
        viewer: Viewer,
        headers: Mapping[str, str],
    ) -> Answer:
        """Serve a chat or text completion; `headers` may carry constraints."""
        observed = Observed(request_id, self._settings.logging)
        try:
            answer = await self._complete(path, body, viewer, headers, observed)
        except RoundhouseError as e:
            observed.refused(e)
            raise
        except Exception:
            observed.refused(RoundhouseError("internal error"))
            raise
        return replace(answer, body=observed.passed(answer.start, answer.body))

    async def _complete(
        self,
        path: str,
        body: dict[str, Any],
        viewer: Viewer,
        headers: Mapping[str, str],
        observed: Observed,
    ) -> Answer:
        request_id = observed.request_id
        constraints = take_request_fields(path, body, viewer, headers)
        if body["model"] == AUTO and self._settings.router.prompt_flags:
            constraints = obey_flags(path, body, constraints)
        prompt = encode_json(body["messages"] if path == CHAT_PATH else body["prompt"])
        terms = terms_of(body, prompt, viewer, headers, self._settings.dispatch)
        chosen = await self._choose(path, body, constraints, sticky_key(body) or request_id)
        observed.model, observed.route = chosen.base_model, chosen.route.value
        observed.adapter = chosen.adapter.name if chosen.adapter else ""
        observed.version = chosen.adapter.version if chosen.adapter else None
        if self._settings.logging.prompts:
            observed.prompt = prompt[:_LOGGED_PROMPT].decode(errors="replace")
        self._keep(chosen, request_id, viewer)
        self._refuse_when_out_of_scope(chosen)
        # It counts from here on, not when its turn comes: time to have the adapter in place.
        self._want(chosen.adapter.name if chosen.adapter else None, viewer.owner)
        model = chosen.adapter.key if chosen.adapter else chosen.base_model
        content = encode_json({**body, "model": model})
        call = Call(path, request_id, content, chosen.adapter, self._catalogue.position)
        return await self._dispatch(chosen, call, terms)

    async def _choose(
        self, path: str, body: dict[str, Any], constraints: Constraints, key: str
    ) -> Chosen:
        model, viewer = body["model"], constraints.viewer
        if model != AUTO:
            return self.resolve(model, viewer, key)
        prompt = prompt_of(body["messages"] if path == CHAT_PATH else body["prompt"])
        began = time.monotonic()
        (decision,) = await self._decide([prompt], constraints)
        metrics.routing_time.observe(time.monotonic() - began)
        metrics.decisions.labels(_outcome(decision)).inc()
        if decision.adapter is not None:
            metrics.confidence.observe(decision.confidence)
        chosen = self._follow(decision, constraints, key)
        return replace(chosen, decision=decision, prompt=prompt)

    def _follow(self, decision: Decision, constraints: Constraints, key: str) -> Chosen:
        """What a decision means now."""
        base_model = decision.model or constraints.base_model or self._settings.fallback_model
        if decision.adapter is None:
            if base_model in decision.excluded:
                raise InvalidRequest(
                    f"constraints: they leave nothing, not even {base_model}: "
                    f"{decision.excluded[base_model]}",
                    param="constraints",
                )
            return Chosen(base_model, None, decision.route)
        try:
            found = self.resolve(decision.adapter, constraints.viewer, key)
        except ModelNotFound:
            # Deleted since the router looked: as good as never chosen.
            return Chosen(base_model, None, Route.FALLBACK)
        return replace(found, route=Route.AUTO)

    def _refuse_when_out_of_scope(self, chosen: Chosen) -> None:
        decision = chosen.decision
        if decision is None or chosen.adapter is not None or chosen.route is not Route.AUTO:
            return
        is_expert = decision.in_scope >= decision.threshold > 0
        if self._settings.router.out_of_scope == "refuse" and not is_expert:
            raise OutOfScope(
                f"no adapter fits this prompt ({decision.reason}); name an adapter or a base model",
                param="model",
            )

    def _keep(self, chosen: Chosen, request_id: str, viewer: Viewer) -> None:
        """Remember where an `auto` request went."""
        if chosen.decision is None:
            return
        kept = self._settings.router.keep_prompts
        self._record(
            RoutedRequest(
                request_id=request_id,
                at=time.time(),
                owner=viewer.owner,
                input=chosen.prompt.text if kept else None,
                answered_by=chosen.adapter.name if chosen.adapter else chosen.base_model,
                decision=chosen.decision,
            )
        )

    def resolve(self, model: str, viewer: Viewer, key: str) -> Chosen:
        """What a client means by a model name; raises :class:`ModelNotFound`.

        Args:
            key: of the request: while a version is rolled out, the same key gets the same one.
        """
        if model in self._pools:
            return Chosen(model, None, Route.EXPLICIT)
        found = self._catalogue.find(model)
        if found is None or not viewer.may_see(found[0].card):
            raise ModelNotFound(model, self._names_like(model, viewer))
        adapter, version = found
        if adapter.card.base_model not in self._pools:
            raise Unavailable(f"no replicas serve {adapter.card.base_model}, the base of {model}")
        if model == adapter.name:
            version = rollouts.pick(adapter, key)
        return Chosen(adapter.card.base_model, AdapterRef.of(adapter, version), Route.EXPLICIT)

    async def _decide(self, prompts: list[Prompt], constraints: Constraints) -> list[Decision]:
        if constraints.base_model is not None and constraints.base_model not in self._pools:
            raise ModelNotFound(constraints.base_model, self._pools, param="constraints.base_model")
        for name in constraints.adapters or ():
            if self._seen(name, constraints.viewer) is None:
                known = self._names_like(name, constraints.viewer)
                raise ModelNotFound(name, known, param="constraints.adapters")
        try:
            return await self._chooser.choose(prompts, constraints)
        except Unavailable as e:
            logger.warning("the prompt router does not answer, the base model does: %s", e)
            reason = f"fallback to the base model: {e.message}"
            fallback = Decision(adapter=None, confidence=0, route=Route.FALLBACK, reason=reason)
            return [fallback for _ in prompts]

    async def _dispatch(self, chosen: Chosen, call: Call, terms: Terms) -> Answer:
        pool = self._pools[chosen.base_model]
        try:
            answer = pool.answer(call, terms)
            start = await anext(answer)
        except ReplicaLost:
            # Nothing was sent to the client yet, so another replica may start afresh.
            answer = pool.answer(call, terms)
            start = await anext(answer)
        headers = {
            "x-roundhouse-adapter": chosen.adapter.name if chosen.adapter else "base",
            "x-roundhouse-version": str(chosen.adapter.version) if chosen.adapter else "",
            "x-roundhouse-route": chosen.route,
        }
        return Answer(start, answer, headers)

    # -- what there is ----------------------------------------------------------------------

    async def route(self, prompts: list[Prompt], constraints: Constraints) -> list[Decision]:
        """The decisions alone."""
        return await self._decide(prompts, constraints)

    def models(self, viewer: Viewer) -> list[dict[str, Any]]:
        """OpenAI model cards: ``auto``, base models, adapters."""
        adapters = (a for a in self._catalogue.ordered() if viewer.may_see(a.card))
        return [
            _model_card(AUTO),
            *(_model_card(m) for m in self._pools),
            *(_model_card(a.name, a) for a in adapters),
        ]

    def model(self, model: str, viewer: Viewer) -> dict[str, Any]:
        if model == AUTO:
            return _model_card(AUTO)
        chosen = self.resolve(model, viewer, key="")
        if chosen.adapter is None:
            return _model_card(model)
        return _model_card(model, self._catalogue.adapters[chosen.adapter.name])

    async def look(self) -> Sight:
        """Who is there and what is planned, for nobody's eyes in particular.

        Raises:
            StoreUnavailable: the store does not answer, or not soon.
        """
        members, plan = await soon(self._members_and_plan())
        return Sight(tuple(members), plan, await self._deployments())

    async def _members_and_plan(self) -> tuple[list[Member], PlacementPlan]:
        return await self._store.members.all(), await self._plan()

    async def snapshot(self, viewer: Viewer) -> ClusterSnapshot:
        """What runs, without other tenants' private adapters."""
        try:
            return self.seen_by(viewer, await self.look())
        except StoreUnavailable:
            sight = Sight((), None, await self._deployments())
            return self.seen_by(viewer, sight, is_stale=True)

    def seen_by(self, viewer: Viewer, sight: Sight, *, is_stale: bool = False) -> ClusterSnapshot:
        """What was seen, as far as a caller may know of it."""
        return ClusterSnapshot(
            models=tuple(self._pools),
            adapters=len(self._visible(viewer)),
            members=tuple(self._seen_by(viewer, member) for member in sight.members),
            deployments=sight.deployments,
            store="stale" if is_stale or self._catalogue.is_stale else "ok",
            position=self._catalogue.position,
            plan=sight.plan if viewer.sees_all else None,
        )

    async def not_ready(self) -> list[str]:
        """What is still missing before every request can be served; empty when ready."""
        try:
            return self.missing(await self._store.members.all())
        except StoreUnavailable:
            return []  # degraded, and said so by /v1/cluster; what is loaded is served

    def missing(self, members: Iterable[Member]) -> list[str]:
        """What the settings want and does not report."""
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

    def list_adapters(
        self, search: Search, viewer: Viewer, *, after: str, limit: int
    ) -> tuple[list[dict[str, Any]], str | None]:
        """A page of adapters that match, ordered by name, and the cursor of the next."""
        found = (a for a in self._catalogue.ordered(after) if viewer.may_see(a.card))
        page = list(islice((a for a in found if search.matches(a)), limit + 1))
        following = page[limit - 1].name if len(page) > limit else None
        return [summarise(a) for a in page[:limit]], following

    def rows(self, viewer: Viewer) -> list[dict[str, Any]]:
        """Every adapter, as briefly as a table has it."""
        return [row(a) for a in self._catalogue.ordered() if viewer.may_see(a.card)]

    def shows(self, name: str, viewer: Viewer) -> bool:
        """Whether a caller may know of an adapter."""
        return self._seen(name, viewer) is not None

    def show_adapter(self, name: str, viewer: Viewer) -> Adapter:
        adapter = self._seen(name, viewer)
        if adapter is None:
            raise ModelNotFound(name, self._visible(viewer), param="name")
        return adapter

    def _seen(self, name: str, viewer: Viewer) -> Adapter | None:
        """An adapter, for those who may know of it."""
        adapter = self._catalogue.adapters.get(name)
        return adapter if adapter is not None and viewer.may_see(adapter.card) else None

    def _names_like(self, model: str, viewer: Viewer) -> list[str]:
        """Names that the client may have meant; versions, when the adapter is there."""
        name = model.partition("@")[0]
        if adapter := self._seen(name, viewer):
            return [f"{name}@{number}" for number in adapter.versions]
        return [AUTO, *self._pools, *self._visible(viewer)]

    def _seen_by(self, viewer: Viewer, member: Member) -> Member:
        if viewer.sees_all:
            return member

        def may_see(key: str) -> bool:
            return self._seen(key.partition("@")[0], viewer) is not None

        held = member.residency
        seen = {
            "slots": tuple(filter(may_see, held.slots)),
            "host": tuple(filter(may_see, held.host)),
        }
        return member.model_copy(
            update={
                "residency": held.model_copy(update=seen),
                "loading": tuple(filter(may_see, member.loading)),
                "problems": {k: v for k, v in member.problems.items() if may_see(k)},
                "router": member.router and self._report_for(viewer, member.router),
                "running": tuple(filter(may_see, member.running)),
                "leaving": tuple(filter(may_see, member.leaving)),
                "demand": {k: v for k, v in member.demand.items() if may_see(k)},
                "times": {k: v for k, v in member.times.items() if may_see(k)},
                "waiting": {k: v for k, v in member.waiting.items() if may_see(k)},
                "tenants": {k: v for k, v in member.tenants.items() if k == viewer.owner},
            }
        )

    def _report_for(self, viewer: Viewer, report: RouterReport) -> RouterReport:
        hidden = self._catalogue.adapters.keys() - set(self._visible(viewer))
        twins = tuple(t for t in report.twins if t.a not in hidden and t.b not in hidden)
        experts = tuple(name for name in report.experts if name not in hidden)
        return report.model_copy(update={"twins": twins, "experts": experts})

    def _visible(self, viewer: Viewer) -> list[str]:
        return [a.name for a in self._catalogue.adapters.values() if viewer.may_see(a.card)]

    async def ask(self, adapter: Adapter, version: Version, prompt: str) -> tuple[str, str]:
        """What a version answers to a prompt, and the replica that gave it.

        Raises:
            AdapterLoadFailed: a replica cannot load it.
            InvalidRequest: the engine refuses the prompt.
            Unavailable, Overloaded: it cannot be asked now.
        """
        ref = AdapterRef.of(adapter, version)
        body = {
            "model": ref.key,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": EVALUATION_TOKENS,
        }
        call = Call(CHAT_PATH, uuid.uuid4().hex, encode_json(body), ref, self._catalogue.position)
        chosen = Chosen(adapter.card.base_model, ref, Route.EXPLICIT)
        answer = await self._dispatch(chosen, call, Terms(tokens=EVALUATION_TOKENS))
        content = b"".join([chunk async for chunk in answer.body])
        if answer.start.status != 200:
            error = json.loads(content)["error"]
            if error["code"] == AdapterLoadFailed.code:
                raise AdapterLoadFailed(error["message"])
            is_refused = 400 <= answer.start.status < 500 and answer.start.status != 429
            raise (InvalidRequest if is_refused else Unavailable)(error["message"])
        text = json.loads(content)["choices"][0]["message"]["content"] or ""
        return text, answer.start.headers.get("x-roundhouse-replica", "")


def _outcome(decision: Decision) -> str:
    if decision.route is Route.FALLBACK:
        return "fallback"
    return "base" if decision.adapter is None else "adapter"


def take_request_fields(
    path: str, body: dict[str, Any], viewer: Viewer, headers: Mapping[str, str]
) -> Constraints:
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
    return parse_constraints(body.pop("constraints", None), viewer, headers)


def sticky_key(body: dict[str, Any]) -> str | None:
    """What OpenAI's protocol has to tell one end user or conversation from another."""
    for name in ("user", "safety_identifier", "prompt_cache_key"):
        if isinstance(body.get(name), str) and body[name]:
            return body[name]
    return None


def encode_json(value: Any) -> bytes:
    try:
        return json.dumps(value).encode()
    except RecursionError as e:
        raise InvalidRequest("the body is nested too deeply") from e


def parse_constraints(value: Any, viewer: Viewer, headers: Mapping[str, str]) -> Constraints:
    """Constraints of the body, and of headers where the body has none."""
    if isinstance(value, dict) and "viewer" in value:
        raise InvalidRequest("constraints.viewer: no such constraint", param="constraints.viewer")
    if value is None or isinstance(value, dict):
        value = merged(constraints_in_headers(headers), value or {})
    sent = parse(Constraints, value, "constraints")
    return sent.model_copy(update={"viewer": viewer})


def obey_flags(path: str, body: dict[str, Any], constraints: Constraints) -> Constraints:
    """Take the flags out of the prompt, and their weights into the constraints."""
    holder, field = body, "prompt"
    if path == CHAT_PATH:
        users = [m for m in body["messages"] if m.get("role") == "user"]
        holder, field = (users or body["messages"])[-1], "content"
    if not isinstance(holder.get(field), str):
        return constraints
    holder[field], weights = take_flags(holder[field])
    asked = constraints.weights.model_copy(update=weights)
    return constraints.model_copy(update={"weights": asked})


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a list with at least one message", param="messages")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidRequest(
                f"messages[{i}] must be an object with a role and a content",
                param=f"messages[{i}]",
            )


def describe(adapter: Adapter) -> dict[str, Any]:
    """The adapter as the API shows it."""
    shown = adapter.model_dump(mode="json")
    return {**shown.pop("card"), **shown, "versions": list(shown["versions"].values())}


def summarise(adapter: Adapter) -> dict[str, Any]:
    """The adapter in a listing: without its prompts, of which there may be thousands."""
    brief = adapter.card.model_copy(update={"examples": (), "evaluation": ()})
    shown = describe(adapter.model_copy(update={"card": brief}))
    counts = {"examples": len(adapter.card.examples), "evaluation": len(adapter.card.evaluation)}
    return {k: v for k, v in shown.items() if k not in counts} | {"prompts": counts}


def row(adapter: Adapter) -> dict[str, Any]:
    """The adapter in a table of thousands."""
    card, rollout = adapter.card, adapter.rollout
    return {
        "name": adapter.name,
        "base_model": card.base_model,
        "description": card.description[:200],
        "tags": card.tags,
        "owner": card.owner,
        "pinned": card.pinned,
        "replicas": card.replicas,
        "rank": adapter.stable.rank,
        "size_bytes": adapter.stable.size_bytes,
        "stable": adapter.stable.number,
        "versions": tuple(adapter.versions),
        "rollout": {"version": rollout.version, "percent": rollout.percent} if rollout else None,
    }


def _model_card(model: str, adapter: Adapter | None = None) -> dict[str, Any]:
    created = int(adapter.stable.created_at) if adapter else 0
    card = {"id": model, "object": "model", "created": created, "owned_by": "roundhouse"}
    if adapter is not None:
        card |= {"root": adapter.stable.digest, "parent": adapter.card.base_model}
    return card
