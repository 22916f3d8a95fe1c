"""One request, end to end: choose the adapter, choose the replica, stream.

Knows neither HTTP nor Ray: `http.py` authorises and calls this, `deployment.py` passes in what runs
on Ray.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from cluster.adapters import Viewer
from cluster.calls import CALLS, CHAT_PATH
from cluster.decisions import Decision, Route, RoutedRequest
from cluster.errors import (
    InvalidRequest,
    ModelNotFound,
    OutOfScope,
    RoundhouseError,
)
from cluster.settings import Settings
from deployments.ingress.answering.fallback import Answered, Fallbacks, first_to_answer
from deployments.ingress.answering.pools import ReplicaPool, answered_by
from deployments.ingress.answering.start import start_of
from deployments.ingress.answering.together import Share, Told, all_answers, as_one, shares_of
from deployments.ingress.calls.abilities import Abilities
from deployments.ingress.completion import Completion
from deployments.ingress.directory import AUTO, Chosen, Directory
from deployments.ingress.resolver import Resolver
from deployments.ingress.rules.choice import Choice, count
from deployments.ingress.traffic import Observed
from deployments.process import metrics
from deployments.process.call import Call, Reply
from deployments.process.tracing import current
from router.adapters.constraints import Constraints
from router.adapters.policy import NOT_SERVED
from router.adapters.prompts import in_conversation
from router.adapters.question.wrappers import wrappers_of
from router.rules.matching import Asked
from router.rules.rulebook import Rulebook

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
        self.wrappers = wrappers_of(settings.router.wrappers)
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
        shares, request_id = shares_of(chosen), observed.request_id
        self._observe(observed, asked, [share.chosen for share in shares])
        told: list[Told] = []
        try:
            for one in chosen:
                self._admit(one, asked)

            async def send(number: int, share: Share, held: AsyncExitStack) -> Answered:
                if len(shares) == 1:
                    return await self._first_to_answer(asked, share.chosen, request_id, held)
                part = asked.only(share.prompts, self._settings.dispatch)
                name = f"{request_id}-{number}"
                return await self._first_to_answer(part, share.chosen, name, held)

            told = await all_answers(shares, send, held)
        finally:
            self._keep(chosen, told, request_id, asked.constraints)
        self._observe(observed, asked, [one.answered.chosen for one in told])
        if len(told) > 1:
            return as_one(told, request_id, asked.terms.sequences // len(chosen))
        return Reply(start_of(told[0].answered), told[0].answered.reply.body)

    def _admit(self, chosen: Chosen, asked: Completion) -> None:
        """Let what was chosen for a prompt be asked.

        Raises:
            LocalOnly, OutOfScope: it may not.
        """
        self._fallbacks.refuse_elsewhere(chosen, asked.constraints)
        self._refuse_when_out_of_scope(chosen)
        # It counts from here on, not when its turn comes: time to have the adapter in place.
        self._want(chosen.adapter.name if chosen.adapter else None, asked.viewer.owner)
        if chosen.adapter is not None:
            self._resolver.used(chosen.adapter.name)

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
                trace=current().carried,
            )
            return await answered_by(self._pools[chosen.base_model], call, asked.terms, held)

        chain = [chosen]
        if asked.kind.by_prompt:  # no other model's vectors can stand for these
            chain = self._fallbacks.chain(chosen, asked.constraints)
        return await first_to_answer(chain, dispatch, held)

    async def _choose(self, asked: Completion, key: str) -> list[Chosen]:
        """What answers each prompt; of a model that was named, all of them."""
        if asked.model != AUTO:
            chosen = [await self._named(asked, key)]
        elif asked.kind.by_prompt:
            chosen = await self._by_prompt(asked, key)
        else:
            base_model = self._abilities.default(asked.kind, asked.constraints)
            chosen = [Chosen(base_model, None, Route.AUTO)]
        for one in chosen:
            self._abilities.check(one.base_model, asked.kind)
        if asked.kind.adapters:
            return chosen
        # Nothing is chosen for good: it is only told what the one that would answer reads.
        return [replace(one, adapter=None, decision=None, prompt=None) for one in chosen]

    async def _by_prompt(self, asked: Completion, key: str) -> list[Chosen]:
        began = time.monotonic()
        prompts = asked.prompts
        with current().child("choose") as span:
            decisions = await self.route(prompts, asked.constraints)
            first = decisions[0]
            span.note(
                adapter=first.adapter or "base",
                decision=first.reason,
                confidence=first.confidence,
                rule=first.rule,
            )
        metrics.routing_time.observe(time.monotonic() - began)
        chosen = []
        for one, decision in zip(prompts, decisions, strict=True):
            count(decision)
            if decision.adapter is not None:
                metrics.confidence.observe(decision.confidence)
            found = self._follow(decision, asked, key)
            chosen.append(replace(found, decision=decision, prompt=one.prompt))
        return chosen

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

    def _observe(self, observed: Observed, asked: Completion, chosen: Sequence[Chosen]) -> None:
        first = chosen[0]
        observed.model, observed.route = first.base_model, first.route.value
        observed.adapter = first.adapter.name if first.adapter else ""
        observed.version = first.adapter.version if first.adapter else None
        if len(chosen) > 1:
            observed.adapter, observed.version = metrics.SEVERAL, None
        if self._settings.logging.prompts:
            observed.prompt = asked.prompt_json[:_LOGGED_PROMPT].decode(errors="replace")

    def _keep(
        self,
        chosen: Sequence[Chosen],
        told: Sequence[Told],
        request_id: str,
        constraints: Constraints,
    ) -> None:
        """Remember where the prompts of an `auto` request went: of several, the one in place i is
        known by `REQUEST_ID-i`."""
        by = {place: one.answered for one in told for place in one.share.prompts}
        has_answered = all(one.answered.reply.start.status == _OK for one in told)
        for place, one in enumerate(chosen):
            name = request_id if len(chosen) == 1 else f"{request_id}-{place}"
            self._keep_one(one, by.get(place), name, constraints, has_answered=has_answered)

    def _keep_one(
        self,
        chosen: Chosen,
        answered: Answered | None,
        request_id: str,
        constraints: Constraints,
        *,
        has_answered: bool,
    ) -> None:
        decision, prompt = chosen.decision, chosen.prompt
        if decision is None or prompt is None:
            return
        if answered is not None:
            chosen = answered.chosen
            if answered.failed:
                decision = decision.model_copy(update={"fallback": answered.failed})
        kept = self._settings.router.keep_prompts
        # What has not answered is nothing to stay with, nor is a fallback.
        turn = in_conversation(prompt, constraints.conversation)
        is_stayed_with = answered is not None and has_answered and chosen.route is Route.AUTO
        mark = turn.mark if is_stayed_with else ""
        self._record(
            RoutedRequest(
                request_id=request_id,
                at=time.time(),
                owner=constraints.viewer.owner,
                input=(decision.decided_by or prompt.text) if kept else None,
                answered_by=chosen.name,
                decision=decision,
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
