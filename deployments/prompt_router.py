"""The prompt router as a deployment: batches prompts of concurrent requests, follows the store."""

import asyncio
import logging
from typing import Any

from ray import serve

from adapter_store.catalogue import Changes
from cluster.settings import Settings
from cluster.state import Decision, Member
from deployments.membership import Participant
from router.encoder import SentenceEncoder
from router.prompt_router import Constraints, PromptRouter

logger = logging.getLogger(__name__)


class PromptRouterDeployment:
    """One process that chooses."""

    async def __init__(self, settings: Settings) -> None:
        encoder = await asyncio.to_thread(SentenceEncoder, settings.router.encoder)
        self._router = PromptRouter(encoder, settings.router)
        self._base_models = {model.id for model in settings.models}
        self._id = serve.get_replica_context().replica_id.unique_id
        self._participant = Participant(settings.store, self._report, self._learn)
        self.choose.set_max_batch_size(settings.router.max_batch)
        await self._participant.start()

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.0)
    async def choose(self, asked: list[tuple[list[str], Constraints]]) -> list[list[Decision]]:
        """Decisions for each caller's texts; callers with equal constraints share a pass."""
        return await asyncio.to_thread(self._choose_all, asked)

    async def check_health(self) -> None:
        self._participant.check()

    async def __del__(self) -> None:
        await self._participant.stop()

    def _choose_all(self, asked: list[tuple[list[str], Constraints]]) -> list[list[Decision]]:
        answers: list[list[Decision]] = [[] for _ in asked]
        groups: dict[str, list[int]] = {}
        for i, (_, constraints) in enumerate(asked):
            groups.setdefault(constraints.model_dump_json(), []).append(i)
        for members in groups.values():
            texts = [text for i in members for text in asked[i][0]]
            decisions = iter(self._router.choose(texts, asked[members[0]][1]))
            for i in members:
                answers[i] = [next(decisions) for _ in asked[i][0]]
        return answers

    async def _learn(self, changes: Changes) -> None:
        served = {
            name: adapter
            for name, adapter in self._participant.catalogue.adapters.items()
            if adapter.card.base_model in self._base_models
        }
        await asyncio.to_thread(self._router.update, served)

    def _report(self) -> Member:
        return Member(id=self._id, kind="router", position=self._participant.catalogue.position)


def prompt_router_app(settings: Settings) -> Any:
    """The deployment, bound."""
    return (
        serve.deployment(PromptRouterDeployment)
        .options(
            name="PromptRouter",
            num_replicas=settings.router.replicas,
            max_ongoing_requests=settings.router.max_batch * 4,
            ray_actor_options={"num_cpus": settings.router.cpus_per_replica},
        )
        .bind(settings)
    )
