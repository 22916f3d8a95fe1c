"""What keeps the prompt router up to date: cards, weights, outcomes, and what replicas report."""

import asyncio
import logging
import time
from collections.abc import Mapping

from adapter_store.catalogue import Changes
from adapter_store.files.blob_stores import open_blobs
from adapter_store.files.blobs import WEIGHTS
from adapter_store.routing_log import OutcomeReader, RoutingLog
from cluster.adapters import Adapter
from cluster.errors import StoreUnavailable
from cluster.members import Router
from cluster.settings import Settings
from cluster.tasks import Background
from deployments.chooser.standing import Standing
from deployments.process.membership import Membership
from deployments.process.process import Process
from router.adapters.arrow import ArrowRouter
from router.adapters.prompt_router import PromptRouter

logger = logging.getLogger(__name__)

_COSTS_S = 1.0
# Learning anew takes seconds of a core that requests could use.
_LEARN_S = 5.0
# Times what the last learning took: prompts must have the core for most of the time.
_LEARN_SHARE = 10


class Learner:
    """A part of the prompt router's process, with its membership.

    Args:
        weights: base model -> what knows its adapters by their weights.
    """

    def __init__(
        self,
        settings: Settings,
        process: Process,
        standing: Standing,
        weights: Mapping[str, ArrowRouter],
    ) -> None:
        self._process = process
        self._standing = standing
        self._weights = weights
        self._blobs = open_blobs(settings.store)
        self._base_models = {model.id for model in settings.models}
        log = RoutingLog(process.store.server, keep_s=settings.router.keep_decisions_s)
        self._outcomes = OutcomeReader(log)
        self._background = Background()
        process.catalogue.on_change(self._learn)
        members = process.store.members
        self._membership = process.add(Membership(members, process.catalogue, self._report))

    async def start(self) -> None:
        self._background.repeat(
            "router costs",
            self._look_at_costs,
            otherwise="the costs stay as they were",
            pause_s=_COSTS_S,
            retry_s=_COSTS_S,
        )
        self._background.start("router learning", self._learn_anew())

    def check(self) -> None:
        self._background.check()

    async def stop(self) -> None:
        await self._background.stop()

    async def _learn(self, _: Changes) -> None:
        catalogue, served = self._process.catalogue, self._served()
        await asyncio.to_thread(self._learn_weights, served)
        async with self._standing.changing:
            await asyncio.to_thread(self._standing.router.update, served, catalogue.position)

    async def teach(self, router: PromptRouter) -> None:
        """All that the one that answers has been told, for another one."""
        catalogue, known = self._process.catalogue, tuple(self._outcomes.known)
        await asyncio.to_thread(router.update, self._served(), catalogue.position)
        await asyncio.to_thread(router.refresh)
        if known:
            await asyncio.to_thread(router.learn_outcomes, known)
        router.observe(await self._process.store.members.all())

    def announce(self) -> None:
        """Report at once."""
        self._membership.announce()

    def _served(self) -> dict[str, Adapter]:
        adapters = self._process.catalogue.adapters
        return {n: a for n, a in adapters.items() if a.card.base_model in self._base_models}

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

    async def _look_at_costs(self) -> None:
        self._standing.router.observe(await self._process.store.members.all())

    async def _learn_anew(self) -> None:
        """Outcomes, and cards that were worked in, whenever there are new ones."""
        took_s = 0.0
        while True:
            await asyncio.sleep(max(_LEARN_S, _LEARN_SHARE * took_s))
            began = time.monotonic()
            try:
                has_new = await self._outcomes.read()
            except StoreUnavailable as e:
                logger.warning("the outcomes stay as they were: %s", e)
                continue
            if has_new:
                known = tuple(self._outcomes.known)
                await asyncio.to_thread(self._standing.router.learn_outcomes, known)
            if not self._standing.router.is_whole:
                await asyncio.to_thread(self._standing.router.refresh)
                self._membership.announce()
            took_s = time.monotonic() - began

    def _report(self) -> Router:
        return Router(
            id=self._process.id,
            position=self._process.catalogue.position,
            router=self._standing.report(),
        )
