"""The prompt router as a deployment: batches prompts of concurrent requests, follows the store."""

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

from ray import serve

from adapter_store.catalogue import Changes
from adapter_store.files.blob_stores import open_blobs
from adapter_store.files.blobs import WEIGHTS
from adapter_store.routing_log import OutcomeReader, RoutingLog
from cluster.adapters import Adapter
from cluster.decisions import Decision, Prompt
from cluster.errors import StoreUnavailable
from cluster.members import Member
from cluster.settings import Settings
from cluster.tasks import cancel, check
from deployments.process.logs import configure
from deployments.process.membership import Participant
from deployments.process.ray_metrics import RayExport
from deployments.process.ray_options import on_nodes
from deployments.process.telemetry import Telemetry
from router.adapters.arrow import ArrowRouter
from router.adapters.constraints import Constraints
from router.adapters.encoder import SentenceEncoder
from router.adapters.prompt_router import PromptRouter, everyday_prompts

logger = logging.getLogger(__name__)


_COSTS_S = 1.0
# Learning anew takes seconds of a core that requests could use.
_LEARN_S = 5.0
# Times what the last learning took: prompts must have the core for most of the time.
_LEARN_SHARE = 10


class PromptRouterDeployment:
    """One process that chooses."""

    async def __init__(self, settings: Settings) -> None:
        chosen = settings.router
        encoder = await asyncio.to_thread(SentenceEncoder.of, chosen)
        models = sorted(settings.models, key=lambda m: m.id != settings.fallback_model)
        self._blobs = open_blobs(settings.store)
        self._weights = await asyncio.to_thread(_weight_routers, settings)
        self._router = await asyncio.to_thread(PromptRouter, encoder, chosen, models, self._weights)
        self._base_models = {model.id for model in settings.models}
        self._id = serve.get_replica_context().replica_id.unique_id
        configure(settings.logging, self._id)
        self._log = RoutingLog(settings.store, keep_s=chosen.keep_decisions_s)
        self._participant = Participant(settings.store, self._report, self._learn)
        self.choose.set_max_batch_size(chosen.max_batch)
        await self._participant.start()
        self._telemetry = Telemetry(settings.store, self._id, export=RayExport())
        self._telemetry.start()
        self._upkeep = [
            asyncio.create_task(self._watch_costs(), name="router costs"),
            asyncio.create_task(self._learn_anew(), name="router learning"),
        ]

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.0)
    async def choose(self, asked: list[tuple[list[Prompt], Constraints]]) -> list[list[Decision]]:
        """Decisions for each caller's prompts; callers with equal constraints share a pass."""
        # Not in a thread: handing over and waiting for the interpreter takes a millisecond of ten.
        return self._choose_all(asked)

    async def check_health(self) -> None:
        self._participant.check()
        self._telemetry.check()
        check(*self._upkeep)

    async def __del__(self) -> None:
        await cancel(*self._upkeep)
        await self._telemetry.stop()
        await self._participant.stop()
        await self._log.close()

    def _choose_all(self, asked: list[tuple[list[Prompt], Constraints]]) -> list[list[Decision]]:
        answers: list[list[Decision]] = [[] for _ in asked]
        groups: dict[Constraints, list[int]] = {}
        for i, (_, constraints) in enumerate(asked):
            groups.setdefault(constraints, []).append(i)
        for constraints, members in groups.items():
            prompts = [prompt for i in members for prompt in asked[i][0]]
            decisions = iter(self._router.choose(prompts, constraints))
            for i in members:
                answers[i] = [next(decisions) for _ in asked[i][0]]
        return answers

    async def _learn(self, changes: Changes) -> None:
        served = {
            name: adapter
            for name, adapter in self._participant.catalogue.adapters.items()
            if adapter.card.base_model in self._base_models
        }
        position = self._participant.catalogue.position
        await asyncio.to_thread(self._learn_weights, served)
        await asyncio.to_thread(self._router.update, served, position)

    def _learn_weights(self, served: dict[str, Adapter]) -> None:
        """Read the weights of adapters that have nothing else to be known by."""
        silent = [a for a in served.values() if not (a.card.description or a.card.examples)]
        for model, weights in self._weights.items():
            wanted = {a.stable.digest: a for a in silent if a.card.base_model == model}
            weights.forget_all_but(wanted)
            for digest in wanted.keys() - weights.known:
                try:
                    with self._blobs.opened(digest) as folder:
                        weights.learn(digest, folder / WEIGHTS)
                except Exception as e:  # noqa: BLE001  (each file system has errors of its own)
                    logger.warning("%s is not chosen by its weights: %s", wanted[digest].name, e)

    async def _watch_costs(self) -> None:
        while True:
            try:
                self._router.observe(await self._participant.store.members())
            except StoreUnavailable as e:
                logger.warning("the costs stay as they were: %s", e)
            await asyncio.sleep(_COSTS_S)

    async def _learn_anew(self) -> None:
        """Outcomes, and cards that were worked in, whenever there are new ones."""
        outcomes, took_s = OutcomeReader(self._log), 0.0
        while True:
            await asyncio.sleep(max(_LEARN_S, _LEARN_SHARE * took_s))
            began = time.monotonic()
            try:
                has_new = await outcomes.read()
            except StoreUnavailable as e:
                logger.warning("the outcomes stay as they were: %s", e)
                continue
            if has_new:
                await asyncio.to_thread(self._router.learn_outcomes, tuple(outcomes.known))
            if not self._router.is_whole:
                await asyncio.to_thread(self._router.refresh)
                self._participant.announce()
            took_s = time.monotonic() - began

    def _report(self) -> Member:
        return Member(
            id=self._id,
            kind="router",
            position=self._participant.catalogue.position,
            router=self._router.report(),
        )


def _weight_routers(settings: Settings) -> dict[str, ArrowRouter]:
    layers = settings.router.arrow_layers
    return {
        model.id: ArrowRouter(str(Path(model.path).expanduser()), layers, everyday_prompts())
        for model in settings.models
        if layers and model.engine != "echo"
    }


def prompt_router_app(settings: Settings) -> Any:
    """The deployment, bound."""
    return (
        serve.deployment(PromptRouterDeployment)
        .options(
            name="PromptRouter",
            num_replicas=settings.router.replicas,
            max_ongoing_requests=settings.router.max_batch * 4,
            ray_actor_options={"num_cpus": settings.router.cpus_per_replica}
            | on_nodes(settings.router.node_labels),
        )
        .bind(settings)
    )
