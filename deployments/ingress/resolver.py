"""Names that are not registered, and lie where the settings say: fetched when they are asked for.

One ingress fetches an adapter at a time; a request waits within its patience, and the work goes on
without it. What was brought in so leaves again when nobody has asked for it for a while.
"""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import NamedTuple
from urllib.parse import quote

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
    Unavailable,
)
from cluster.names import is_name
from cluster.settings import StoreSettings
from cluster.tasks import Background, renewed

logger = logging.getLogger(__name__)

# Longer than a fetch is silent for; another ingress goes on when this one dies.
_LEASE_S = 20.0
_LOOK_S = 0.5
# Fetches under way in one ingress: of the same places for the same tenant, and altogether. Names
# are cheap to make up.
_MOST, _MOST_IN_ALL = 3, 24

# Registers the adapter of a source under a name, for a tenant.
Register = Callable[[str, str, str], Awaitable[None]]


class _Flight(NamedTuple):
    """A fetch under way, and whose."""

    task: asyncio.Task[None]
    lane: tuple[str, list[str]]


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
        self._flights: dict[tuple[str, ...], _Flight] = {}
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

    async def name_of(self, model: str, patience_s: float, tenant: str) -> str | None:
        """The name that a model has by now, which was not registered: None when no setting says
        where it may lie, or it is not there.

        Raises:
            InvalidRequest: it is there, and cannot be served; says why.
            BeingFetched: it is on its way, for longer than the patience.
        """
        name, sources = places_of(self._settings.resolve, model)
        if not sources:
            return None
        if adapter := self._catalogue.adapters.get(name):
            # A URI means that place, not another adapter of the same name.
            return name if adapter.card.resolved_from in sources else None
        patience_s = min(patience_s, self._settings.resolve_patience_s)
        try:
            await self._remembered(sources)
            async with asyncio.timeout(patience_s):
                await asyncio.shield(self._flight(name, sources, tenant))
        except TimeoutError as e:
            raise BeingFetched(
                f"{model} is being fetched, which takes longer than {patience_s:g} s; try again"
            ) from e
        except SourceMissing:
            return None
        except AdapterRefused as e:
            raise InvalidRequest(f"{model} cannot be served: {e.message}", param="model") from e
        # Somebody may have registered another one meanwhile.
        found = self._catalogue.adapters.get(name)
        return name if found is not None and found.card.resolved_from in sources else None

    def _flight(self, name: str, sources: tuple[str, ...], tenant: str) -> asyncio.Task[None]:
        """Concurrent first requests share one."""
        flight = self._flights.get(sources)
        if flight is None:
            # A place that is slow keeps nobody waiting but its own, and nobody another tenant.
            lane = (tenant, self._patterns(sources))
            alike = sum(lane == other.lane for other in self._flights.values())
            own = sum(tenant == other.lane[0] for other in self._flights.values())
            # No more than there are free places: whoever comes next finds half of them (dynamic
            # thresholds, Choudhury and Hahne 1998).
            if alike >= _MOST or own >= _MOST_IN_ALL - len(self._flights):
                raise BeingFetched(f"{len(self._flights)} adapters are being fetched; try again")
            task = self._background.spawn(f"fetch {name}", self._fetch(name, sources, tenant))
            flight = self._flights[sources] = _Flight(task, lane)
            task.add_done_callback(lambda _: self._flights.pop(sources, None))
        return flight.task

    def _patterns(self, sources: tuple[str, ...]) -> list[str]:
        """Those that places are of."""
        patterns = self._settings.resolve
        return [p for p in patterns if any(s.startswith(p.removesuffix("*")) for s in sources)]

    async def _fetch(self, name: str, sources: tuple[str, ...], tenant: str) -> None:
        """Until the adapter is here: by this process, or by the one that was faster."""
        while name not in self._catalogue.adapters:
            await self._remembered(sources)
            if await self._log.begin(name, self._id, for_s=_LEASE_S):
                async with self._leading(name):
                    await self._register_from(name, sources, tenant)
            # Another one is at it, or this process has still to hear of what was done.
            await asyncio.sleep(_LOOK_S)

    async def _remembered(self, sources: tuple[str, ...]) -> None:
        """Raises what came of these places a while ago, if that was nothing good."""
        why = await self._log.failure(" ".join(sources))
        if why is not None:
            raise AdapterRefused(why, param="source") if why else SourceMissing(sources[0])

    @contextlib.asynccontextmanager
    async def _leading(self, name: str) -> AsyncIterator[None]:
        renew = partial(self._log.begin, name, self._id, for_s=_LEASE_S)
        try:
            async with renewed(f"lead the fetch of {name}", renew, every_s=_LEASE_S / 3):
                yield
        finally:
            with contextlib.suppress(StoreUnavailable):  # then it ends by itself
                await self._log.end(name)

    async def _register_from(self, name: str, sources: tuple[str, ...], tenant: str) -> None:
        """From the first place that has it; what came of it is remembered, when it was not that."""
        unreachable: RoundhouseError | None = None
        for source in sources:
            try:
                await self._register(source, name, tenant)
            except SourceMissing:
                continue
            except Conflict:  # somebody has registered it meanwhile
                return
            except StoreUnavailable:
                raise
            except Unavailable as e:
                logger.warning("%s was asked for, and cannot be fetched: %s", name, e.message)
                unreachable = e
                continue
            except RoundhouseError as e:
                await self._fail(sources, e.message)
                raise AdapterRefused(e.message, param="source") from e
            logger.info("%s was asked for, and fetched from %s", name, source)
            await self._log.used([name])
            return
        if unreachable is not None:
            raise unreachable
        await self._fail(sources, "")
        raise SourceMissing(sources[0])

    async def _fail(self, sources: tuple[str, ...], why: str) -> None:
        await self._log.fail(" ".join(sources), why, for_s=self._settings.resolve_again_s)

    async def _tidy(self) -> None:
        used, self._used = self._used, set()
        try:
            await self._log.used(used)
        except StoreUnavailable:
            self._used |= used
            raise
        fetched = {n for n, a in self._catalogue.adapters.items() if a.card.resolved_from}
        await self._log.know(fetched)
        for name in await self._log.idle(self._settings.resolve_idle_s):
            if name in fetched and name not in self._used:
                await self._remove(self._catalogue.adapters[name])
            await self._log.forget(name)

    async def _remove(self, adapter: Adapter) -> None:
        try:
            await self._store.registry.delete(adapter.name, revision=adapter.revision)
        except (ModelNotFound, Conflict):  # another ingress was faster, or somebody keeps it
            return
        logger.info("%s left: nobody has asked for it in a while", adapter.name)
        for version in adapter.versions.values():
            await remove_unneeded(self._store, self._blobs, version.digest)


def places_of(patterns: tuple[str, ...], model: str) -> tuple[str, tuple[str, ...]]:
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
            sources.append(before + (quote(rest) if before.startswith("http") else rest))
    return name, tuple(sources)
