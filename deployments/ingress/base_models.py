"""What the engines have told of their base models, as the listings of models need it."""

import contextlib
import time
from collections.abc import Mapping

from adapter_store.registry import Registry
from cluster.adapters import BaseModelFacts
from cluster.errors import StoreUnavailable
from cluster.tasks import soon

_FRESH_S = 5.0


class BaseModels:
    """A copy of the store's, a few seconds old at most while the store answers."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._known: dict[str, BaseModelFacts] = {}
        self._read_at = -_FRESH_S

    async def facts(self) -> Mapping[str, BaseModelFacts]:
        """By id. One of which no replica has told yet is not there."""
        if time.monotonic() - self._read_at >= _FRESH_S:
            with contextlib.suppress(StoreUnavailable):
                self._known = await soon(self._registry.base_models())
                self._read_at = time.monotonic()
        return self._known
