"""Registering an adapter: fetch, check, put under its hash, record. All or nothing."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from adapter_store.collector import remove_unneeded
from adapter_store.files.blob_stores import open_blobs
from adapter_store.files.blobs import BlobStore, remove_abandoned
from adapter_store.files.filesystems import storage
from adapter_store.files.inbound.confined import Progress
from adapter_store.files.inbound.fetching import CARD_FILE, scheme_of
from adapter_store.files.sources import Sources, staging_of
from adapter_store.files.tensor_names import cut
from adapter_store.files.uploads import UPLOAD, Uploads
from adapter_store.registry import BlobUnreserved, Stored, name_taken
from adapter_store.store import Store
from cluster.adapters import BaseModelFacts, Card, Version
from cluster.errors import (
    AdapterRefused,
    Conflict,
    InvalidRequest,
    ModelNotFound,
    NotFound,
    Stale,
    StoreUnavailable,
    Unavailable,
    parse,
)
from cluster.names import AdapterName
from cluster.requests import Registration, edited
from cluster.settings import RESERVED_NAMES, StoreSettings
from cluster.tasks import cancel
from cluster.values import Value

_RESERVE_AGAIN_S = 0.5
_TRIES = 20
_AT_ONCE = 4
_SHOWN = 3

# Places that are the caller's own: what lies elsewhere may be anybody's.
_OF_CALLERS = ("file", "upload")
# Whose an adapter is, and what of the cluster it takes.
_FOR_OWNERS = ("owner", "visibility", "pinned", "replicas")
# Of a registration: what is of the version, or of the call; the rest is of the card.
_NOT_OF_CARD = {"source", "sha256", "base_fingerprint", "lineage", "promote", "revision"}

Result = TypeVar("Result")


# Has files loaded by a replica of a base model (its id); returns whether one runs.
Prove = Callable[[str, str], Awaitable[bool]]


class _Named(Value):
    name: AdapterName


async def unproven(_base_model: str, _digest: str) -> bool:
    """Where no replica can be asked."""
    return False


class Registrar:
    """Takes adapters in.

    Args:
        prove: asked of each digest before it becomes a version. Raises AdapterRefused when no
            replica can load it, and Unavailable when it cannot be tried now.
    """

    def __init__(self, store: Store, settings: StoreSettings, prove: Prove = unproven) -> None:
        self._store = store
        self._prove = prove
        self._registry = store.registry
        self._refs = store.blob_refs
        self._settings = settings
        self.blobs: BlobStore = open_blobs(settings)
        self.uploads = Uploads(settings)
        self.sources = Sources(settings, self.uploads)
        self._running: set[asyncio.Task[Stored]] = set()
        self._storing: set[asyncio.Task[Any]] = set()
        self._threads = ThreadPoolExecutor(_AT_ONCE, "registration")

    async def register(
        self,
        registration: Registration,
        *,
        mode: str,
        progress: Progress | None = None,
        tenant: str = "",
        default_base: str | None = None,
        resolved_from: str = "",
    ) -> Stored:
        """Check an adapter and store it; `mode` as in :meth:`Registry.put`.

        A caller who gives up midway stops it, until it has begun to be stored.

        Args:
            tenant: who waits for it, and for nobody else's slow places.
            default_base: the base model where neither the caller nor the card names one.
            resolved_from: see :class:`Card`.

        Raises:
            AdapterRefused: the files or the card do not pass; nothing was stored.
            Conflict, ModelNotFound: the name is taken, or not there.
            StoreUnavailable: the same call may be made again, whether it was recorded or not.
        """
        task = asyncio.create_task(
            self._register(
                registration, mode, progress or _silence, tenant, default_base, resolved_from
            )
        )
        self._running.add(task)
        task.add_done_callback(self._ended)
        try:
            stored = await asyncio.shield(task)
        except asyncio.CancelledError:
            if task not in self._storing:
                task.cancel()
            raise
        if registration.source.startswith(UPLOAD):
            with contextlib.suppress(NotFound):
                await self._in_thread(self.uploads.remove, registration.source.removeprefix(UPLOAD))
        return stored

    async def stop(self) -> None:
        """End what is under way; what it has begun to store, the collector sees to."""
        await cancel(*self._running)

    def _ended(self, task: asyncio.Task[Stored]) -> None:
        self._running.discard(task)
        self._storing.discard(task)

    async def _register(
        self,
        registration: Registration,
        mode: str,
        progress: Progress,
        tenant: str,
        default_base: str | None,
        resolved_from: str,
    ) -> Stored:
        # Before anything is fetched for it.
        if registration.name is not None:
            parse(_Named, {"name": registration.name})
            if mode == "create":
                await self._check_free(registration.name)
        arriving = self.sources.arrived(registration.source, tenant, progress)
        async with arriving as (folder, in_folder):
            name = await self._in_thread(self.sources.name_of, registration.source)
            if scheme_of(registration.source) not in _OF_CALLERS:
                _check_claims(registration, in_folder)
            sent = _SentCard.of(registration, in_folder, name, default_base)
            sent.fields["resolved_from"] = resolved_from
            if resolved_from:
                sent.fields["pinned"] = False  # by whoever wrote its card; nobody here asked for it
            _, base, _ = await self._card(sent, mode)
            version = await self._admit(registration, folder, base, tenant, progress)
            version = version.model_copy(update={"notices": (*sent.notices, *version.notices)})
            progress("storing", 0, version.size_bytes)
            if task := asyncio.current_task():
                self._storing.add(task)
            return await self._record(registration, sent, version, mode, folder)

    async def _in_thread(self, work: Callable[..., Result], *args: Any) -> Result:
        """In threads of our own: slow sources must not hold up what else the process does."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    async def _check_free(self, name: str) -> None:
        if await self._registry.get(name) is not None:
            raise name_taken(name)

    async def _card(self, sent: "_SentCard", mode: str) -> tuple[Card, BaseModelFacts, int]:
        """The card to store, over the one that is stored; its base model; the stored revision."""
        stored = await self._registry.get(sent.fields["name"])
        card = sent.over(stored.card if stored else None)
        if card.name in RESERVED_NAMES or await self._registry.base_model(card.name) is not None:
            raise InvalidRequest(f"the name {card.name!r} is taken by a model", param="name")
        if stored is not None and mode == "create":
            raise name_taken(card.name)
        if stored is not None and stored.card.base_model != card.base_model:
            raise Conflict(
                f"{card.name!r} is an adapter of {stored.card.base_model}; for {card.base_model} "
                "register it under another name",
                param="base_model",
            )
        base = await self._registry.base_model(card.base_model)
        if base is None:
            raise ModelNotFound(card.base_model, param="base_model")
        if not base.max_rank:
            raise InvalidRequest(
                f"{base.id} is a model elsewhere, which takes no adapters; name one that is here",
                param="base_model",
            )
        return card, base, stored.revision if stored else 0

    async def _admit(
        self,
        registration: Registration,
        folder: Path,
        base: BaseModelFacts,
        tenant: str,
        progress: Progress,
    ) -> Version:
        """The checks at the door."""
        if registration.base_fingerprint is not None:
            _check_base(base, registration.base_fingerprint)
        found = await self.sources.checked(folder, base, registration.sha256, tenant, progress)
        return Version(base_fingerprint=base.fingerprint, lineage=registration.lineage, **found)

    async def _record(
        self,
        registration: Registration,
        sent: "_SentCard",
        version: Version,
        mode: str,
        folder: Path,
    ) -> Stored:
        is_proven = False
        for _ in range(_TRIES):
            reservation = await self._refs.reserve(version.digest)
            if reservation is None:
                await asyncio.sleep(_RESERVE_AGAIN_S)  # the collector is removing it
                continue
            try:
                await self._in_thread(self._commit, folder, version.digest)
                if not is_proven:
                    version, is_proven = await self._proven(sent, version), True
                return await self._put(registration, sent, version, mode, reservation)
            except BlobUnreserved:
                continue
            except BaseException as e:
                await self._give_back(version.digest, reservation)
                if not isinstance(e, Stale) or registration.revision is not None:
                    raise
        raise Unavailable("the blob store is too slow, or its collector hangs; try again")

    async def _put(
        self,
        registration: Registration,
        sent: "_SentCard",
        version: Version,
        mode: str,
        reservation: str,
    ) -> Stored:
        # Read now: others may have changed the card while the files were on their way.
        card, _, revision = await self._card(sent, mode)
        return await self._registry.put(
            card,
            version,
            reservation,
            mode=mode,
            promote=registration.promote,
            revision=revision if registration.revision is None else registration.revision,
        )

    async def _give_back(self, digest: str, reservation: str) -> None:
        """Nothing of what is not recorded stays; without the store, the collector sees to it."""
        with contextlib.suppress(StoreUnavailable):
            await self._refs.release(digest, reservation)
            await remove_unneeded(self._store, self.blobs, digest)

    async def _proven(self, sent: "_SentCard", version: Version) -> Version:
        """No version is recorded that a replica would refuse: what passed the door is loaded once.

        Raises AdapterRefused and Unavailable.
        """
        stored = await self._registry.get(sent.fields["name"])
        if stored is not None and any(version.is_same(v) for v in stored.versions.values()):
            return version
        base_model = sent.over(stored.card if stored else None).base_model
        if await self._prove(base_model, version.digest):
            return version
        untried = f"no replica of {base_model} ran when it was registered, so none had loaded it"
        return version.model_copy(update={"notices": (*version.notices, untried)})

    def _commit(self, folder: Path, digest: str) -> None:
        with storage("the blob store"):
            self.blobs.commit(folder, digest)


@dataclass(frozen=True)
class _SentCard:
    """The fields that a registration brings.

    Attributes:
        notices: what of its folder's card is not used.
    """

    fields: dict[str, Any]
    default_base: str | None
    notices: tuple[str, ...]

    @classmethod
    def of(
        cls,
        registration: Registration,
        in_folder: dict[str, Any],
        name: str,
        default_base: str | None,
    ) -> "_SentCard":
        """What was sent, over the card in the folder, over what the place suggests.

        Only the fields of a card are taken: a place that is not what its name says may answer with
        any JSON, and cards are public.
        """
        given = registration.model_dump(exclude=_NOT_OF_CARD, exclude_none=True)
        known = {k: v for k, v in in_folder.items() if k in Card.model_fields}
        fields = {"name": name} | known | given
        parse(_Named, {"name": fields["name"]})
        others = sorted(in_folder.keys() - known)
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        said = ", ".join(repr(cut(other)) for other in others[:_SHOWN]) + more
        unused = (
            f"{CARD_FILE}: not used, since a card has no such fields: {said}; metadata has place"
        )
        return cls(fields, default_base, (unused,) if others else ())

    def over(self, stored: Card | None) -> Card:
        """The whole card; what nobody mentions stays as it is stored."""
        if stored is not None:
            return edited(stored, self.fields)
        base_model = self.fields.get("base_model", self.default_base)
        if base_model is None:
            raise InvalidRequest(
                "base_model is required: name the base model that the adapter was trained on",
                param="base_model",
            )
        return parse(Card, self.fields | {"base_model": base_model})


def _check_claims(registration: Registration, in_folder: dict[str, Any]) -> None:
    """Whoever made an adapter does not say whose it is here, nor what it may take up.

    Refused, not passed over: what was meant to be private would be public.
    """
    for field in _FOR_OWNERS:
        is_claimed = in_folder.get(field) not in (None, Card.model_fields[field].default)
        if is_claimed and getattr(registration, field) is None:
            raise AdapterRefused(
                f"the {CARD_FILE} there sets {field}, which is for who registers it to say: give "
                f"{field} in the request, or take it out of the card",
                param=field,
            )


def _check_base(base: BaseModelFacts, expected: str) -> None:
    """The base model is the one that the adapter was trained on."""
    if expected != base.fingerprint:
        raise AdapterRefused(
            f"the adapter is for a base model with fingerprint {expected}, {base.id} here has "
            f"{base.fingerprint}; register it for the base model that it was trained on",
            param="base_fingerprint",
        )


def sweep(settings: StoreSettings) -> None:
    """Remove what registrations that were cut off have left."""
    remove_abandoned(staging_of(settings))
    open_blobs(settings).sweep()


def _silence(what: str, done: int, total: int | None) -> None:
    """Progress that nobody follows."""
