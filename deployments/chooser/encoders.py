"""Follows which trained encoder shall read prompts: loads it, has it learn, puts it in place."""

import asyncio
import logging
from collections.abc import Callable
from math import sqrt

from adapter_store.files.blob_stores import open_blobs
from adapter_store.files.blobs import WEIGHTS, BlobStore
from cluster.encoders.kept import Encoders, TrainedEncoder
from cluster.members import RouterReport
from cluster.settings import Settings
from cluster.tasks import Background
from deployments.chooser.learner import Learner
from deployments.chooser.standing import Standing
from deployments.process import metrics
from deployments.process.process import Process
from router.adapters.encoder import SentenceEncoder
from router.adapters.prompt_router import PromptRouter
from router.adapters.training.trained import HeldOut, Trained, read

logger = logging.getLogger(__name__)

_RETRY_S = 30.0

# A prompt router that reads by an encoder, knowing no adapters.
Make = Callable[[SentenceEncoder, HeldOut | None], PromptRouter]


class Refused(Exception):
    """The encoder does not fit, or is no better here; trying again would not help."""


class EncoderFollower:
    """A part of the prompt router's process.

    Args:
        parent: the encoder that the settings name.
        reader: version of what reads beside it; empty where nothing does.
    """

    def __init__(
        self,
        settings: Settings,
        process: Process,
        standing: Standing,
        learner: Learner,
        make: Make,
        parent: SentenceEncoder,
        reader: str,
    ) -> None:
        self._store = process.store.encoders
        self._blobs: BlobStore = open_blobs(settings.store)
        self._standing = standing
        self._learner = learner
        self._make = make
        self._parent = parent
        self._reader = reader
        self._background = Background()

    async def start(self) -> None:
        self._background.repeat(
            "router encoders", self._follow, otherwise="the encoder stays as it was"
        )

    def check(self) -> None:
        self._background.check()

    async def stop(self) -> None:
        await self._background.stop()

    async def _follow(self) -> None:
        async for encoders in self._store.follow():
            while not await self._take(encoders):
                await asyncio.sleep(_RETRY_S)
                encoders = await self._store.newest()

    async def _take(self, encoders: Encoders) -> bool:
        """Have the one that is held read; False when it is worth trying again."""
        if encoders.held == self._standing.encoder:
            self._tell("")
            return True
        try:
            router = await self._loaded(encoders.current)
        except Exception as e:  # noqa: BLE001  (file systems and tensors have errors of their own)
            metrics.encoder_failures.inc()
            self._tell(f"the trained encoder {encoders.held} is not used: {e}")
            return isinstance(e, Refused)
        async with self._standing.changing:
            # What came meanwhile.
            await self._learner.teach(router)
            self._standing.router, self._standing.encoder = router, encoders.held
        self._tell("")
        logger.info("prompts are read with %s", encoders.held or "the settings' encoder")
        return True

    def _tell(self, problem: str) -> None:
        if problem and problem != self._standing.problem:
            logger.error("%s", problem)
        self._standing.problem = problem
        self._learner.announce()

    async def _loaded(self, which: TrainedEncoder | None) -> PromptRouter:
        """A router that has learnt all that there is."""
        if which is None:
            router = await asyncio.to_thread(self._make, self._parent, None)
            await self._learner.teach(router)
            return router
        trained = await asyncio.to_thread(self._read, which)
        router = await asyncio.to_thread(self._make, trained.encoder, trained.held_out)
        await self._learner.teach(router)
        if worse := is_worse(self._standing.router.report(), router.report()):
            raise Refused(worse)
        return router

    def _read(self, which: TrainedEncoder) -> Trained:
        for what, mine, own in (
            ("encoder, prefix or window", which.parent, self._parent.version),
            ("reader", which.reader, self._reader),
        ):
            if mine != own:
                raise Refused(
                    f"it was trained with another {what} ({mine or 'none'}) than the settings name "
                    f"now ({own or 'none'}); `roundhouse router train` makes one that fits"
                )
        with self._blobs.opened(which.digest) as folder:
            try:
                return read(folder / WEIGHTS, self._parent)
            except ValueError as e:
                raise Refused(str(e)) from e


def is_worse(now: RouterReport, then: RouterReport) -> str:
    """Why an encoder must not take another's place, by the cards as they are; empty when it may.

    It is right about fewer of their held-out examples, by more than the standard error.
    """
    if now.left_out_top1 is None or then.left_out_top1 is None:
        return ""
    error = sqrt(now.left_out_top1 * (1 - now.left_out_top1) / max(then.examples, 1))
    if then.left_out_top1 >= now.left_out_top1 - error:
        return ""
    return (
        f"of the cards' held-out examples {then.left_out_top1:.1%} go to their own adapter, "
        f"{now.left_out_top1:.1%} with the one in use"
    )
