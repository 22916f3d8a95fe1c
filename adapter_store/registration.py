"""Registering an adapter: fetch, check, put under its hash, record. All or nothing."""

import asyncio
import contextlib
import shutil
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from adapter_store.collector import remove_unneeded
from adapter_store.files.blob_stores import open_blobs
from adapter_store.files.blobs import BlobStore, remove_abandoned
from adapter_store.files.door import check_adapter, check_base, check_sha256
from adapter_store.files.filesystems import storage
from adapter_store.files.peft_config import read_json_object
from adapter_store.files.signatures import signer_of
from adapter_store.files.sources import CARD_FILE, Progress, Sources, staging_of
from adapter_store.files.uploads import UPLOAD, Uploads
from adapter_store.registry import BlobUnreserved, Stored, name_taken
from adapter_store.store import Store
from cluster.adapters import BaseModelFacts, Card, Version
from cluster.errors import (
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
from cluster.values import Value

_RESERVE_AGAIN_S = 0.5
_TRIES = 20
_AT_ONCE = 4

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
        self._sources = Sources(settings, self.uploads)
        self._running: set[asyncio.Task[Stored]] = set()
        self._threads = ThreadPoolExecutor(_AT_ONCE, "registration")

    async def register(
        self,
        registration: Registration,
        *,
        mode: str,
        progress: Progress | None = None,
        default_base: str | None = None,
        resolved_from: str = "",
    ) -> Stored:
        """Check an adapter and store it; `mode` as in :meth:`Registry.put`.

        A caller who gives up midway does not stop it.

        Args:
            progress: called from other threads.
            default_base: the base model where neither the caller nor the card names one.
            resolved_from: see :class:`Card`.

        Raises:
            AdapterRefused: the files or the card do not pass; nothing was stored.
            Conflict, ModelNotFound: the name is taken, or not there.
            StoreUnavailable: the same call may be made again, whether it was recorded or not.
        """
        task = asyncio.create_task(
            self._register(registration, mode, progress or _silence, default_base, resolved_from)
        )
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        stored = await asyncio.shield(task)
        if registration.source.startswith(UPLOAD):
            with contextlib.suppress(NotFound):
                await self._in_thread(self.uploads.remove, registration.source.removeprefix(UPLOAD))
        return stored

    async def _register(
        self,
        registration: Registration,
        mode: str,
        progress: Progress,
        default_base: str | None,
        resolved_from: str,
    ) -> Stored:
        # Before anything is fetched for it.
        if registration.name is not None:
            parse(_Named, {"name": registration.name})
            if mode == "create":
                await self._check_free(registration.name)
        folder = await self._in_thread(self._sources.fetch, registration.source, progress)
        try:
            sent = await self._in_thread(self._sent_card, registration, folder, default_base)
            sent.fields["resolved_from"] = resolved_from
            if resolved_from:
                sent.fields["pinned"] = False  # by whoever wrote its card; nobody here asked for it
            _, base, _ = await self._card(sent, mode)
            progress("checking", 0, None)
            version = await self._in_thread(self._admit, registration, folder, base)
            progress("storing", 0, version.size_bytes)
            return await self._record(registration, sent, version, mode, folder)
        finally:
            await self._in_thread(shutil.rmtree, folder)

    async def _in_thread(self, work: Callable[..., Result], *args: Any) -> Result:
        """In threads of our own: slow sources must not hold up what else the process does."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    async def _check_free(self, name: str) -> None:
        if await self._registry.get(name) is not None:
            raise name_taken(name)

    def _sent_card(
        self, registration: Registration, folder: Path, default_base: str | None
    ) -> "_SentCard":
        """What was sent, over the card in the folder, over what the place suggests."""
        given = registration.model_dump(exclude=_NOT_OF_CARD, exclude_none=True)
        fields = _card_file(folder) | given
        if "name" not in fields:
            fields["name"] = self._sources.name_of(registration.source)
        parse(_Named, {"name": fields["name"]})
        return _SentCard(fields, default_base)

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
        return card, base, stored.revision if stored else 0

    def _admit(self, registration: Registration, folder: Path, base: BaseModelFacts) -> Version:
        """The checks at the door."""
        if registration.base_fingerprint is not None:
            check_base(base, registration.base_fingerprint)
        if registration.sha256 is not None:
            check_sha256(folder, registration.sha256)
        signed_by = signer_of(
            folder, self._settings.trusted_keys, required=self._settings.require_signature
        )
        checked = check_adapter(folder, base)
        return Version(
            digest=checked.digest,
            size_bytes=checked.size_bytes,
            rank=checked.rank,
            target_modules=checked.target_modules,
            notices=checked.notices,
            base_fingerprint=base.fingerprint,
            signed_by=signed_by,
            lineage=registration.lineage,
        )

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
    """The fields that a registration brings."""

    fields: dict[str, Any]
    default_base: str | None

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


def sweep(settings: StoreSettings) -> None:
    """Remove what registrations that were cut off have left."""
    remove_abandoned(staging_of(settings))
    open_blobs(settings).sweep()


def _silence(what: str, done: int, total: int | None) -> None:
    """Progress that nobody follows."""


def _card_file(folder: Path) -> dict[str, Any]:
    """The fields of the folder's card; those that a card has not go into its metadata."""
    file = folder / CARD_FILE
    fields = read_json_object(file) if file.is_file() else {}
    known = {k: v for k, v in fields.items() if k in Card.model_fields}
    extra = {k: v for k, v in fields.items() if k not in Card.model_fields}
    metadata = known.get("metadata", {})
    if extra and isinstance(metadata, dict):
        known["metadata"] = {**extra, **metadata}
    return known
