"""Who answers when a model cannot: the `fallback` of its settings, before the first byte."""

import json
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import NamedTuple

from cluster.decisions import Route
from cluster.errors import LocalOnly, Overloaded, Unavailable
from cluster.settings import BaseModelSettings
from deployments.ingress.directory import Chosen
from deployments.process import metrics
from deployments.process.call import Reply
from router.adapters.constraints import Constraints

_BUSY = 429

# Sends a request to what was chosen; the reply lives as long as the block.
Dispatch = Callable[[Chosen, AsyncExitStack], Awaitable[Reply]]


class Answered(NamedTuple):
    """Who answers.

    Attributes:
        failed: who could not, in order, and why.
    """

    chosen: Chosen
    reply: Reply
    failed: dict[str, str]


class Fallbacks:
    """The chains of all base models, and which of them prompts leave the cluster for."""

    def __init__(self, models: Iterable[BaseModelSettings]) -> None:
        self._models = {model.id: model for model in models}

    def refuse_elsewhere(self, chosen: Chosen, constraints: Constraints) -> None:
        """Raises :class:`LocalOnly` for what may not leave, and would."""
        if constraints.local_only and self._models[chosen.base_model].is_elsewhere:
            raise LocalOnly(
                f"{chosen.base_model} is elsewhere, and this request (constraints.local_only, "
                "x-roundhouse-local-only) or its key says that nothing may leave; name a model "
                "that is here, or auto",
                param="model",
            )

    def chain(self, chosen: Chosen, constraints: Constraints) -> list[Chosen]:
        """Who may answer, in order. An adapter that a client has named is answered by no other."""
        if chosen.adapter is not None and chosen.route is Route.EXPLICIT:
            return [chosen]
        first = self._models[chosen.base_model]
        wanted = [self._models[name] for name in first.fallback]
        if chosen.decision is not None and chosen.decision.rule and not first.is_elsewhere:
            # Whoever wrote the rule may have meant just that: what is here stays here.
            wanted = [model for model in wanted if not model.is_elsewhere]
        return [
            chosen,
            *(
                replace(chosen, base_model=model.id, adapter=None, route=Route.FALLBACK)
                for model in wanted
                if _may_answer(model, constraints)
            ),
        ]


def _may_answer(model: BaseModelSettings, constraints: Constraints) -> bool:
    """Whether hard limits leave a model."""
    most = constraints.max_price
    return (
        not (constraints.local_only and model.is_elsewhere)
        and constraints.base_model in (None, model.id)
        and model.id not in constraints.exclude
        and model.id not in constraints.unable
        and (most is None or model.weighed_price <= most)
    )


async def first_to_answer(
    chain: list[Chosen], dispatch: Dispatch, held: AsyncExitStack
) -> Answered:
    """The first whose answer begins; of the last one, whatever comes of it.

    Once a byte has come nobody else takes over: the client may have it.
    """
    *others, last = chain
    failed: dict[str, str] = {}
    for chosen in others:
        async with AsyncExitStack() as attempt:
            try:
                reply = await dispatch(chosen, attempt)
            except (Overloaded, Unavailable) as e:
                failed[chosen.name] = e.message
                continue
            status = reply.start.status
            if status == _BUSY or status >= 500:
                failed[chosen.name] = await _why(reply)
                continue
            held.push_async_callback(attempt.pop_all().aclose)
            return _answered(chosen, reply, failed)
    return _answered(last, await dispatch(last, held), failed)


async def _why(reply: Reply) -> str:
    try:
        return str(json.loads(await reply.read())["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return f"status {reply.start.status}"


def _answered(chosen: Chosen, reply: Reply, failed: dict[str, str]) -> Answered:
    if not failed:
        return Answered(chosen, reply, failed)
    metrics.fallbacks.labels(next(iter(failed)), chosen.base_model).inc()
    if chosen.decision is not None:
        told = chosen.decision.model_copy(update={"fallback": failed})
        chosen = replace(chosen, decision=told)
    return Answered(chosen, reply, failed)
