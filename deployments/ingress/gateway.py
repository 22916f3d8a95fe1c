"""One request, end to end: choose the adapter, choose the replica, stream.

Knows neither HTTP nor Ray: `http.py` authorises and calls this, `deployment.py` passes in what runs
on Ray.
"""

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from cluster.adapters import Adapter, AdapterRef, Version, Viewer
from cluster.calls import CALLS, CHAT_PATH
from cluster.decisions import Decision, Route, RoutedRequest
from cluster.errors import (
    AdapterLoadFailed,
    EngineRefused,
    InvalidRequest,
    ModelNotFound,
    OutOfScope,
    ReplicaLost,
    RoundhouseError,
    Unavailable,
)
from cluster.settings import Settings
from deployments.ingress.answering.fallback import Answered, Fallbacks, first_to_answer
from deployments.ingress.answering.pools import ReplicaPool
from deployments.ingress.answering.start import start_of
from deployments.ingress.calls.abilities import Abilities
from deployments.ingress.completion import Completion, encode_json
from deployments.ingress.directory import AUTO, Chosen, Directory
from deployments.ingress.resolver import Resolver
from deployments.ingress.rules.choice import Choice, count
from deployments.ingress.terms import Terms
from deployments.ingress.traffic import Observed
from deployments.process import metrics
from deployments.process.call import (
    REPLICA_HEADER,
    Call,
    Reply,
)
from router.adapters.constraints import Constraints
from router.adapters.policy import NOT_SERVED
from router.adapters.prompts import in_conversation
from router.rules.matching import Asked
from router.rules.rulebook import Rulebook

# Long enough for what evaluation prompts expect, short enough for a version that babbles.
EVALUATION_TOKENS = 256
_LOGGED_PROMPT = 4000
_OK = 200


class Gateway:
    """From a request to its answer."""

    def __init__(
        self,
        settings: Settings,
        directory: Directory,
        choice: Choice,
        pools: Mapping[str, ReplicaPool],
        record: Callable[[RoutedRequest], None],
        want: Callable[[str | None, str], None],
        resolver: Resolver,
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._choice = choice
        self._pools = pools
        self._record = record
        self._want = want
        self._resolver = resolver
        self._fallbacks = Fallbacks(settings.models)
        self._abilities = Abilities(settings, lambda model: pools[model].tasks())

    async def complete(
        self,
        path: str,
        body: dict[str, Any],
        request_id: str,
        viewer: Viewer,
        headers: Mapping[str, str],
        held: AsyncExitStack,
    ) -> Reply:
        """Serve a call that a model answers; `headers` may say how it wants to be served.

        The reply lives as long as the block `held`.
        """
        observed = Observed(request_id, CALLS[path], self._settings.logging)
        try:
            asked = Completion.read(path, body, viewer, headers, self._settings)
            reply = await self._answer(asked, observed, held)
        except RoundhouseError as e:
            observed.refused(e)
            raise
        except Exception:
            observed.refused(RoundhouseError("internal error"))
            raise
        return observed.passing(reply, held)

    async def _answer(self, asked: Completion, observed: Observed, held: AsyncExitStack) -> Reply:
        constraints = self._abilities.narrowed(asked.constraints, asked.kind)
        asked = replace(asked, constraints=constraints)
        chosen = await self._choose(asked, asked.sticky_key or observed.request_id)
        self._observe(observed, asked, chosen)
        has_answered = False
        try:
            self._fallbacks.refuse_elsewhere(chosen, asked.constraints)
            self._refuse_when_out_of_scope(chosen)
            # It counts from here on, not when its turn comes: time to have the adapter in place.
            self._want(chosen.adapter.name if chosen.adapter else None, asked.viewer.owner)
            if chosen.adapter is not None:
                self._resolver.used(chosen.adapter.name)
            answered = await self._first_to_answer(asked, chosen, observed.request_id, held)
            chosen = answered.chosen
            has_answered = answered.reply.start.status == _OK
        finally:
            self._keep(chosen, observed.request_id, asked.constraints, has_answered=has_answered)
        self._observe(observed, asked, chosen)
        return Reply(start_of(answered), answered.reply.body)

    async def _first_to_answer(
        self, asked: Completion, chosen: Chosen, request_id: str, held: AsyncExitStack
    ) -> Answered:
        async def dispatch(chosen: Chosen, held: AsyncExitStack) -> Reply:
            model = chosen.adapter.key if chosen.adapter else chosen.base_model
            sent = asked.for_engine(model, request_id)
            call = Call(
                asked.kind.path,
                request_id,
                sent.body,
                chosen.adapter,
                self._directory.position,
                content_type=sent.content_type,
            )
            return await self._dispatch(chosen, call, asked.terms, held)

        chain = [chosen]
        if asked.kind.by_prompt:  # no other model's vectors can stand for these
            chain = self._fallbacks.chain(chosen, asked.constraints)
        return await first_to_answer(chain, dispatch, held)

    async def _choose(self, asked: Completion, key: str) -> Chosen:
        if asked.model != AUTO:
            chosen = await self._named(asked, key)
        elif asked.kind.by_prompt:
            chosen = await self._by_prompt(asked, key)
        else:
            base_model = self._abilities.default(asked.kind, asked.constraints)
            chosen = Chosen(base_model, None, Route.AUTO)
        self._abilities.check(chosen.base_model, asked.kind)
        if asked.kind.adapters:
            return chosen
        # Nothing is chosen for good: it is only told what the one that would answer reads.
        return replace(chosen, adapter=None, decision=None, prompt=None)

    async def _by_prompt(self, asked: Completion, key: str) -> Chosen:
        began = time.monotonic()
        (decision,) = await self.route([asked.asked], asked.constraints)
        metrics.routing_time.observe(time.monotonic() - began)
        count(decision)
        if decision.adapter is not None:
            metrics.confidence.observe(decision.confidence)
        chosen = self._follow(decision, asked, key)
        return replace(chosen, decision=decision, prompt=asked.asked.prompt)

    async def _named(self, asked: Completion, key: str) -> Chosen:
        """What the client's own name means; an adapter may have to be fetched for it."""
        try:
            return self._directory.resolve(asked.model, asked.viewer, key)
        except ModelNotFound:
            patience_s = asked.terms.first_token_s
            name = await self._resolver.name_of(asked.model, patience_s, asked.viewer.owner)
            if name is None:
                raise
            return self._directory.resolve(name, asked.viewer, key)

    def _follow(self, decision: Decision, asked: Completion, key: str) -> Chosen:
        """What a decision means now."""
        constraints = asked.constraints
        base_model = decision.model or self._abilities.default(asked.kind, constraints)
        if decision.adapter is None:
            # One that does not answer now says so itself, or its fallback answers.
            if decision.excluded.get(base_model, NOT_SERVED) != NOT_SERVED:
                raise InvalidRequest(
                    f"constraints: they leave nothing, not even {base_model}: "
                    f"{decision.excluded[base_model]}",
                    param="constraints",
                )
            return Chosen(base_model, None, decision.route)
        try:
            found = self._directory.resolve(decision.adapter, constraints.viewer, key)
        except ModelNotFound:
            # Deleted since the router looked: as good as never chosen.
            return Chosen(base_model, None, Route.FALLBACK)
        return replace(found, route=Route.AUTO)

    def _observe(self, observed: Observed, asked: Completion, chosen: Chosen) -> None:
        observed.model, observed.route = chosen.base_model, chosen.route.value
        observed.adapter = chosen.adapter.name if chosen.adapter else ""
        observed.version = chosen.adapter.version if chosen.adapter else None
        if self._settings.logging.prompts:
            observed.prompt = asked.prompt_json[:_LOGGED_PROMPT].decode(errors="replace")

    def _keep(
        self, chosen: Chosen, request_id: str, constraints: Constraints, *, has_answered: bool
    ) -> None:
        """Remember where an `auto` request went."""
        if chosen.decision is None or chosen.prompt is None:
            return
        kept = self._settings.router.keep_prompts
        # What has not answered is nothing to stay with, nor is a fallback.
        turn = in_conversation(chosen.prompt, constraints.conversation)
        mark = turn.mark if has_answered and chosen.route is Route.AUTO else ""
        self._record(
            RoutedRequest(
                request_id=request_id,
                at=time.time(),
                owner=constraints.viewer.owner,
                input=chosen.prompt.text if kept else None,
                answered_by=chosen.name,
                decision=chosen.decision,
                conversation=mark,
            )
        )

    def _refuse_when_out_of_scope(self, chosen: Chosen) -> None:
        decision = chosen.decision
        if decision is None or chosen.adapter is not None or chosen.route is not Route.AUTO:
            return
        is_meant = decision.rule or decision.in_scope >= decision.threshold > 0
        if self._settings.router.out_of_scope == "refuse" and not is_meant:
            raise OutOfScope(
                f"no adapter fits this prompt ({decision.reason}); name an adapter or a base model",
                param="model",
            )

    async def route(
        self, asked: Sequence[Asked], constraints: Constraints, tried: Rulebook | None = None
    ) -> list[Decision]:
        """The decisions alone; `tried` are rules in place of those that hold."""
        viewer, base_models = constraints.viewer, self._directory.base_models
        if not constraints.unable:
            constraints = self._abilities.narrowed(constraints, CALLS[CHAT_PATH])
        constraints = constraints.renamed(lambda name: self._directory.meant(name, viewer))
        if constraints.base_model is not None and constraints.base_model not in base_models:
            raise ModelNotFound(constraints.base_model, base_models, param="constraints.base_model")
        for name in constraints.adapters or ():
            if not self._directory.shows(name, viewer):
                known = self._directory.names_like(name, viewer)
                raise ModelNotFound(name, known, param="constraints.adapters")
        return await self._choice.decide(asked, constraints, tried)

    async def _dispatch(
        self, chosen: Chosen, call: Call, terms: Terms, held: AsyncExitStack
    ) -> Reply:
        pool = self._pools[chosen.base_model]
        try:
            reply = await held.enter_async_context(pool.answer(call, terms))
        except ReplicaLost:
            # Nothing was sent to the client yet, so another replica may start afresh.
            reply = await held.enter_async_context(pool.answer(call, terms))
        return reply

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
        call = Call(CHAT_PATH, uuid.uuid4().hex, encode_json(body), ref, self._directory.position)
        chosen = Chosen(adapter.card.base_model, ref, Route.EXPLICIT)
        async with AsyncExitStack() as held:
            terms = Terms(tokens=EVALUATION_TOKENS)
            reply = await self._dispatch(chosen, call, terms, held)
            content = json.loads(await reply.read())
        status = reply.start.status
        if status != _OK:
            error = content["error"]
            if error["code"] in (AdapterLoadFailed.code, EngineRefused.code):
                raise AdapterLoadFailed(error["message"])
            is_refused = 400 <= status < 500 and status != 429
            raise (InvalidRequest if is_refused else Unavailable)(error["message"])
        text = content["choices"][0]["message"]["content"] or ""
        return text, reply.start.headers.get(REPLICA_HEADER, "")
