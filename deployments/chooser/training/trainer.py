"""Trains in the background when the cards have changed, one prompt router at a time."""

import asyncio
import logging

from cluster.errors import RoundhouseError
from cluster.settings import Settings
from cluster.tasks import Background
from deployments.chooser.training.running import Task, train
from deployments.process.process import Process

logger = logging.getLogger(__name__)


class Trainer:
    """A part of the prompt router's process; whoever comes second finds the lease taken, or the
    lessons learnt."""

    def __init__(self, settings: Settings, process: Process) -> None:
        self._settings = settings
        self._process = process
        self._tried = ""
        self._background = Background()

    async def start(self) -> None:
        self._background.start("encoder training", self._train_again())

    def check(self) -> None:
        self._background.check()

    async def stop(self) -> None:
        await self._background.stop()

    async def _train_again(self) -> None:
        while True:
            await asyncio.sleep(self._settings.router.training.every_s)
            position = self._process.catalogue.position
            if position != self._tried:
                await self._train()
                self._tried = position

    async def _train(self) -> None:
        try:
            done = await train(Task(self._settings, only_new=True), lambda *_: None)
        except RoundhouseError as e:
            logger.warning("the encoder is not trained: %s", e.message)
        else:
            logger.info("a training has ended: %s", done)
