"""Registered adapters made ready on this node, before anybody asks for them."""

import asyncio

from adapter_store.catalogue import Catalogue, Changes
from cluster.adapters import AdapterRef
from cluster.tasks import Background
from deployments.replica.adapter_files import AdapterFiles


class PrepareAhead:
    """One by one, as long as the node's cache has room."""

    def __init__(
        self, catalogue: Catalogue, files: AdapterFiles, model_id: str, *, is_wanted: bool
    ) -> None:
        self._catalogue = catalogue
        self._files = files
        self._model_id = model_id
        self._waiting: asyncio.Queue[tuple[AdapterRef, int]] = asyncio.Queue()
        self._background = Background()
        self._is_wanted = is_wanted
        if is_wanted:
            catalogue.on_change(self._want)

    async def _want(self, changes: Changes) -> None:
        """The versions that serve, of the adapters of this base model."""
        for adapter in changes.values():
            if adapter is None or adapter.card.base_model != self._model_id:
                continue
            for version in adapter.serving:
                self._waiting.put_nowait((AdapterRef.of(adapter, version), version.size_bytes))

    async def start(self) -> None:
        if self._is_wanted:
            self._background.start("prepare ahead", self._prepare_for_ever())

    def check(self) -> None:
        self._background.check()

    async def stop(self) -> None:
        await self._background.stop()

    async def _prepare_for_ever(self) -> None:
        while True:
            ref, size_bytes = await self._waiting.get()
            adapter = self._catalogue.adapters.get(ref.name)
            if adapter is not None and ref.version in adapter.versions:
                await self._files.prepare_ahead(ref, size_bytes)
