"""Names that are not registered, and lie where the settings say: fetched when they are asked for.

One ingress fetches an adapter at a time; a request waits within its patience, and the work goes on
without it. What was brought in so leaves again when nobody has asked for it for a while.
"""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

from adapter_store.catalogue import Catalogue
from adapter_store.collector import remove_unneeded
from adapter_store.files.blobs import BlobStore
from adapter_store.resolutions import Resolutions
from adapter_store.store import Store
from cluster.adapters import Adapter
from cluster.errors import (
    AdapterRefused,
    BeingFetched,
    Conflict,
    InvalidRequest,
    ModelNotFound,
    RoundhouseError,
    SourceMissing,
    StoreUnavailable,
)
from cluster.names import is_name
from cluster.settings import StoreSettings
from cluster.tasks import Background, cancel

logger = logging.getLogger(__name__)

# Longer than a fetch is silent for; another ingress goes on when this one dies.
_LEASE_S = 20.0
_LOOK_S = 0.5
# Fetches under way in one ingress: names are cheap to make up.
_MOST = 8

# Registers the adapter of a source under a name.
Register = Callable[[str, str], Awaitable[None]]


class Resolver:
    """Of one ingress.

    Args:
        register: through the same door as everything; raises as `AdapterAdmin.register`.
    """

    def __init__(
        self,
        settings: StoreSettings,
        store: Store,
        catalogue: Catalogue,
        blobs: BlobStore,
        register: Register,
    ) -> None:
        self._settings = settings
        self._store = store
        self._log = Resolutions(store.server)
        self._catalogue = catalogue
        self._blobs = blobs
        self._id = uuid.uuid4().hex
        self._register = register
        self._flights: dict[str, asyncio.Task[None]] = {}
        self._used: set[str] = set()
        self._background = Background()

    async def start(self) -> None:
        if self._settings.resolve:
            period_s = max(min(60.0, self._settings.resolve_idle_s / 4), 0.1)
            self._background.repeat(
                "resolver",
                self._tidy,
                otherwise="what nobody asks for stays",
                pause_s=period_s,
                retry_s=period_s,
            )

    def check(self) -> None:
        self._background.check()

    async def stop(self) -> None:
        await self._background.stop()

    def used(self, name: str) -> None:
        """A request is for an adapter, wherever it came from."""
        adapter = self._catalogue.adapters.get(name)
        if adapter is not None and adapter.card.resolved_from:
            self._used.add(name)

    async def name_of(self, model: str, patience_s: float) -> str | None:
        """The name that a model has by now, which was not registered: None when no setting says
        where it may lie, or it is not there.

        Raises:
            InvalidRequest: it is there, and cannot be served; says why.
            BeingFetched: it is on its way, for longer than the patience.
        """
        name, sources = _places(self._settings.resolve, model)
        if not sources:
            return None
        if adapter := self._catalogue.adapters.get(name):
            # A URI means that place, not another adapter of the same name.
            return name if adapter.card.resolved_from in sources else None
        patience_s = min(patience_s, self._settings.resolve_patience_s)
        try:
            async with asyncio.timeout(patience_s):
                await asyncio.shield(self._flight(name, sources))
        except TimeoutError as e:
            raise BeingFetched(
                f"{model} is being fetched, which takes longer than {patience_s:g} s; try again"
            ) from e
        except SourceMissing:
            return None
        except AdapterRefused as e:
            raise InvalidRequest(f"{model} cannot be served: {e.message}", param="model") from e
        return name

    def _flight(self, name: str, sources: list[str]) -> asyncio.Task[None]:
        """Concurrent first requests share one."""
        flight = self._flights.get(name)
        if flight is None:
            if len(self._flights) >= _MOST:
                raise BeingFetched(f"{_MOST} other adapters are being fetched; try again")
            flight = self._background.spawn(f"fetch {name}", self._fetch(name, sources))
            self._flights[name] = flight
            flight.add_done_callback(lambda _: self._flights.pop(name, None))
        return flight

    async def _fetch(self, name: str, sources: list[str]) -> None:
        """Until the adapter is here: by this process, or by the one that was faster."""
        while name not in self._catalogue.adapters:
            if (why := await self._log.failure(name)) is not None:
                raise _failed(name, why)
            if not await self._log.begin(name, self._id, for_s=_LEASE_S):
                await asyncio.sleep(_LOOK_S)
                continue
            async with self._leading(name):
                await self._register_from(name, sources)
                await self._log.used([name])

    @contextlib.asynccontextmanager
    async def _leading(self, name: str) -> AsyncIterator[None]:
        async def renew() -> None:
            while True:
                await asyncio.sleep(_LEASE_S / 3)
                with contextlib.suppress(StoreUnavailable):
                    await self._log.begin(name, self._id, for_s=_LEASE_S)

        renewing = asyncio.create_task(renew(), name=f"lead the fetch of {name}")
        try:
            yield
        finally:
            await cancel(renewing)
            await self._log.end(name)

    async def _register_from(self, name: str, sources: list[str]) -> None:
        """From the first place that has it."""
        for source in sources:
            try:
                await self._register(source, name)
            except SourceMissing:
                continue
            except Conflict:  # somebody has registered it meanwhile
                return
            except InvalidRequest as e:
                await self._log.fail(name, e.message, for_s=self._settings.resolve_again_s)
                raise
            logger.info("%s was asked for, and fetched from %s", name, source)
            return
        await self._log.fail(name, "", for_s=self._settings.resolve_again_s)
        raise _failed(name, "")

    async def _tidy(self) -> None:
        used, self._used = self._used, set()
        await self._log.used(used)
        for name in await self._log.idle(self._settings.resolve_idle_s):
            adapter = self._catalogue.adapters.get(name)
            if adapter is not None and adapter.card.resolved_from and name not in self._used:
                await self._remove(adapter)
            await self._log.forget(name)

    async def _remove(self, adapter: Adapter) -> None:
        try:
            await self._store.registry.delete(adapter.name, revision=adapter.revision)
        except (ModelNotFound, Conflict):  # another ingress was faster, or somebody keeps it
            return
        logger.info("%s left: nobody has asked for it in a while", adapter.name)
        for version in adapter.versions.values():
            await remove_unneeded(self._store, self._blobs, version.digest)


def _failed(name: str, why: str) -> RoundhouseError:
    return AdapterRefused(why, param="source") if why else SourceMissing(f"there is no {name}")


def _places(patterns: tuple[str, ...], model: str) -> tuple[str, list[str]]:
    """The name of an adapter, and where it may lie; no place for what fits no pattern.

    A name is what stands for the `*`; of the model hub, as its users call it, the whole id.
    """
    name, sources = "", []
    for pattern in patterns:
        before = pattern.removesuffix("*")
        hub = before.removeprefix("hf://") if before.startswith("hf://") else None
        is_place = "://" in model or model.startswith("/")
        lead = before if is_place else hub or ""
        if not model.startswith(lead):
            continue
        rest = model.removeprefix(lead)
        found = (hub or "") + rest
        is_one = is_name(found) and (hub is None or found.count("/") == 1)
        if is_one and name in ("", found):
            name = found
            sources.append(before + rest)
    return name, sources
