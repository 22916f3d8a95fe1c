"""The prompt router as a deployment: batches prompts of concurrent requests, follows the store."""

import asyncio
from pathlib import Path
from typing import Any

from ray import serve

from cluster.decisions import Decision, Prompt
from cluster.settings import Settings
from deployments.chooser.encoders import EncoderFollower
from deployments.chooser.learner import Learner
from deployments.chooser.standing import Standing
from deployments.chooser.training.trainer import Trainer
from deployments.process.logs import configure
from deployments.process.loopback import listen_where_ray_does
from deployments.process.process import Process
from deployments.process.ray_metrics import RayExport
from deployments.process.ray_options import on_nodes
from router.adapters.arrow import ArrowRouter
from router.adapters.constraints import Constraints
from router.adapters.encoder import SentenceEncoder
from router.adapters.prompt_router import PromptRouter, everyday_prompts
from router.adapters.reader import Reader
from router.adapters.training.trained import HeldOut


class PromptRouterDeployment:
    """One process that chooses."""

    # Ray Serve awaits it.
    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]
        process_id = serve.get_replica_context().replica_id.unique_id
        configure(settings.logging, process_id)
        listen_where_ray_does()
        chosen = settings.router
        encoder = await asyncio.to_thread(SentenceEncoder.of, chosen)
        models = sorted(settings.models, key=lambda m: m.id != settings.fallback_model)
        reader = await asyncio.to_thread(Reader.of, chosen, models)
        weights = await asyncio.to_thread(_weight_routers, settings)

        def make(by: SentenceEncoder, held_out: HeldOut | None) -> PromptRouter:
            return PromptRouter(by, chosen, models, weights, reader, held_out)

        self._standing = Standing(await asyncio.to_thread(make, encoder, None))
        self._process = Process(settings.store, process_id, RayExport())
        learner = self._process.add(Learner(settings, self._process, self._standing, weights))
        version = reader.version if reader else ""
        parts = (settings, self._process, self._standing, learner, make, encoder, version)
        self._process.add(EncoderFollower(*parts))
        if chosen.training.every_s:
            self._process.add(Trainer(settings, self._process))
        self.choose.set_max_batch_size(chosen.max_batch)
        await self._process.start()

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.0)  # type: ignore[untyped-decorator]
    async def choose(self, asked: list[tuple[list[Prompt], Constraints]]) -> list[list[Decision]]:
        """Decisions for each caller's prompts."""
        # Not in a thread: handing over and waiting for the interpreter takes a millisecond of ten.
        return self._standing.router.choose_all(asked)

    async def check_health(self) -> None:
        self._process.check()

    async def __del__(self) -> None:
        await self._process.stop()


def _weight_routers(settings: Settings) -> dict[str, ArrowRouter]:
    layers = settings.router.arrow_layers
    return {
        model.id: ArrowRouter(str(Path(model.path).expanduser()), layers, everyday_prompts())
        for model in settings.models
        if layers and model.engine == "vllm"
    }


def prompt_router_app(settings: Settings) -> Any:
    """The deployment, bound."""
    return (
        serve.deployment(PromptRouterDeployment)
        .options(
            name="PromptRouter",
            num_replicas=settings.router.replicas,
            max_ongoing_requests=settings.router.max_batch * 4,
            ray_actor_options={
                "num_cpus": settings.router.cpus_per_replica,
                "num_gpus": settings.router.gpus_per_replica,
            }
            | on_nodes(settings.router.node_labels),
        )
        .bind(settings)
    )
