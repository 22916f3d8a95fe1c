"""Who answers an `auto` prompt: the rules first, then the prompt router, else the base model."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

from adapter_store.members import Members
from cluster.decisions import Decision, Prompt, Route
from cluster.errors import StoreUnavailable, Unavailable
from cluster.rules import Rule
from cluster.settings import Settings
from cluster.tasks import soon
from deployments.ingress.directory import Directory
from deployments.ingress.rules.book import Book
from deployments.process import metrics
from router.adapters.constraints import Constraints
from router.adapters.costs import LiveCosts
from router.adapters.policy import Option, choose
from router.rules.matching import Asked
from router.rules.rulebook import Rulebook, Ruling, told

logger = logging.getLogger(__name__)


class Chooser(Protocol):
    """The prompt router, wherever it runs."""

    async def choose(self, prompts: list[Prompt], constraints: Constraints) -> list[Decision]:
        """One decision per prompt; raises :class:`Unavailable` when it does not answer in time."""


class Choice:
    """Decides; what a rule says holds without the prompt router, too."""

    def __init__(
        self,
        settings: Settings,
        directory: Directory,
        chooser: Chooser,
        book: Book,
        members: Members,
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._chooser = chooser
        self._book = book
        self._members = members

    async def decide(
        self, asked: Sequence[Asked], constraints: Constraints, tried: Rulebook | None = None
    ) -> list[Decision]:
        """One decision per prompt.

        Args:
            tried: rules to be held against the prompts in place of those that hold.
        """
        book = self._book.current if tried is None else tried
        found: dict[int, Decision] = {}
        left: dict[tuple[str, ...], tuple[Ruling, list[int]]] = {}
        for i, one in enumerate(asked):
            if i:
                await asyncio.sleep(0)  # a thousand prompts must not keep a single one waiting
            ruling = self._judge(book, one, constraints)
            if ruling.chosen is None:
                names = tuple(rule.name for rule in ruling.narrowing)
                left.setdefault(names, (ruling, []))[1].append(i)
            else:
                found[i] = await self._ruled(ruling, ruling.chosen, constraints)
        answers = [
            self._ask([asked[i].prompt for i in rows], ruling, constraints)
            for ruling, rows in left.values()
        ]
        for (_, rows), decisions in zip(left.values(), await asyncio.gather(*answers), strict=True):
            found |= zip(rows, decisions, strict=True)
        return [found[i] for i in range(len(asked))]

    def _judge(self, book: Rulebook, asked: Asked, constraints: Constraints) -> Ruling:
        viewer, base_models = constraints.viewer, self._directory.base_models

        def is_there(name: str) -> bool:
            adapter = self._directory.seen(name, viewer)
            return adapter is not None and adapter.card.base_model in base_models

        def concerns(rule: Rule) -> bool:
            # Of an adapter that is not there nothing can be had, and of another tenant's nothing
            # must be told. `only` holds all the same: it is about all the others.
            if isinstance(rule.base_model, str):
                return rule.base_model in base_models
            named = rule.never if rule.adapter is None else (rule.adapter,)
            return named is None or any(map(is_there, named))

        return book.judge(asked, viewer.owner, concerns)

    async def _ask(
        self, prompts: list[Prompt], ruling: Ruling, constraints: Constraints
    ) -> list[Decision]:
        try:
            decisions = await self._chooser.choose(prompts, ruling.narrowed(constraints))
        except Unavailable as e:
            logger.warning("the prompt router does not answer, the base model does: %s", e)
            reason = f"fallback to the base model: {e.message}"
            fallback = Decision(adapter=None, confidence=0, route=Route.FALLBACK, reason=reason)
            decisions = [fallback for _ in prompts]
        return [ruling.explained(decision) for decision in decisions]

    async def _ruled(self, ruling: Ruling, rule: Rule, constraints: Constraints) -> Decision:
        """As the rule says, or the base model where others leave nothing of that."""
        viewer = constraints.viewer
        adapter = self._directory.seen(rule.adapter, viewer) if rule.adapter else None
        costs = await self._costs(constraints)
        usual = self._settings.default_base(local_only=constraints.local_only)
        default = self._base(constraints.base_model or usual, costs)
        if adapter is None:
            said = default
            if isinstance(rule.base_model, str):
                said = self._base(rule.base_model, costs)
            why = None if constraints.base_model in (None, said.model) else "base_model"
        else:
            model, version = adapter.card.base_model, adapter.stable
            cost = costs.adapter(model, adapter.key(version), version)
            said = Option(adapter.name, model, 1.0, cost)
            why = ruling.objection(adapter.name) or constraints.objection(adapter.card)
        excluded = self._excluded(said, constraints)
        if why is not None:
            excluded = {said.name: why}
        if excluded:
            return Decision(
                adapter=None,
                model=said.model if adapter is None else default.model,
                confidence=0,
                route=Route.AUTO,
                reason=f"{told(rule)} names {said.name}, excluded by {excluded[said.name]}",
                narrowed_by=(rule.name,),
                excluded=self._excluded(default, constraints) | excluded,
            )
        return Decision(
            adapter=said.adapter,
            version=adapter.stable.number if adapter else None,
            model=said.model,
            confidence=1,
            in_scope=1 if adapter else 0,
            route=Route.AUTO,
            reason=f"by {told(rule)}",
            rule=rule.name,
        )

    def _base(self, model: str, costs: LiveCosts) -> Option:
        return Option(None, model, 1.0, costs.base_model(model))

    def _excluded(self, option: Option, constraints: Constraints) -> dict[str, str]:
        """For its cost, if it is."""
        return choose([option], constraints, self._settings.router.cost_weights, 0).excluded

    async def _costs(self, constraints: Constraints) -> LiveCosts:
        """Prices; how long each would take only where that counts, for the store is asked."""
        models = self._settings.models
        if constraints.max_latency_s is None:
            return LiveCosts.of(models, ())
        try:
            return LiveCosts.of(models, await soon(self._members.all()))
        except StoreUnavailable as e:
            logger.warning("what the replicas would take is not known: %s", e)
            return LiveCosts.of(models, ())


def count(decision: Decision) -> None:
    """In the metrics."""
    outcome = "base" if decision.adapter is None else "adapter"
    if decision.route is Route.FALLBACK:
        outcome = "fallback"
    metrics.decisions.labels(outcome).inc()
    if decision.conversation is not None:
        metrics.turns.labels(decision.conversation).inc()
    if decision.explored:
        metrics.explored.inc()
    for name in decision.narrowed_by:
        metrics.ruled.labels(name, "narrowed").inc()
    if decision.rule:
        metrics.ruled.labels(decision.rule, "chose").inc()
