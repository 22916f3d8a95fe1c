"""Registering an adapter: fetch, check, put under its hash, record. All or nothing."""

import asyncio
import shutil
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError

from adapter_store.blobs import BlobStore, open_blobs
from adapter_store.door import (
    Checked,
    check_adapter,
    check_base,
    check_sha256,
    read_json_object,
)
from adapter_store.signatures import signer_of
from adapter_store.sources import CARD_FILE, Progress, Sources
from adapter_store.store import AdapterStore, BlobUnreserved, Stored, name_taken, new_version
from adapter_store.uploads import Uploads
from cluster.errors import Conflict, InvalidRequest, ModelNotFound, Unavailable
from cluster.settings import RESERVED_NAMES, StoreSettings
from cluster.state import BaseModelFacts, Card, Lineage, Value, Version

_RESERVE_AGAIN_S = 0.5
_TRIES = 20


class Registration(Value):
    """What a client sends. Card fields that are left out come from the folder's ``card.json``."""

    source: str = Field(description="folder, archive or URL, as the server sees it")
    name: str | None = None
    base_model: str | None = None
    description: str | None = None
    examples: tuple[str, ...] | None = None
    evaluation: tuple[dict[str, Any], ...] | None = None
    license: str | None = None
    tags: tuple[str, ...] | None = None
    owner: str | None = None
    visibility: str | None = None
    pinned: bool | None = None
    replicas: int | str | None = None
    metadata: dict[str, Any] | None = None
    # Of this version.
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9A-Fa-f]{64}$")] | None = Field(
        None, description="that adapter_model.safetensors must have"
    )
    base_fingerprint: str | None = Field(None, description="that the base model must have")
    lineage: Lineage | None = None
    promote: bool = Field(True, description="false: the plain name stays with the version it has")
    revision: int | None = Field(None, description="of the adapter as the client last read it")


_OF_VERSION = {"source", "sha256", "base_fingerprint", "lineage", "promote", "revision"}


class Registrar:
    """Takes adapters in."""

    def __init__(self, store: AdapterStore, settings: StoreSettings) -> None:
        self._store = store
        self._settings = settings
        self.blobs: BlobStore = open_blobs(settings)
        self.uploads = Uploads(settings)
        self._sources = Sources(settings, self.uploads)
        self._running: set[asyncio.Task[Stored]] = set()

    async def register(
        self,
        registration: Registration,
        *,
        mode: str,
        progress: Progress | None = None,
        default_base: str | None = None,
    ) -> Stored:
        """Check an adapter and store it; `mode` as in :meth:`AdapterStore.put`.

        A caller who gives up midway does not stop it.

        Args:
            progress: called from other threads.
            default_base: the base model where neither the caller nor the card names one.

        Raises:
            AdapterRefused: the files or the card do not pass; nothing was stored.
            Conflict, ModelNotFound: the name is taken, or not there.
            StoreUnavailable: the same call may be made again, whether it was recorded or not.
        """
        task = asyncio.create_task(
            self._register(registration, mode, progress or _silence, default_base)
        )
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    def sweep(self) -> None:
        """Remove what a crash left; call it when nobody registers."""
        self._sources.sweep()
        self.blobs.sweep()

    async def _register(
        self, registration: Registration, mode: str, progress: Progress, default_base: str | None
    ) -> Stored:
        if registration.name is not None and mode == "create":
            await self._check_free(registration.name)
        folder = await asyncio.to_thread(self._sources.fetch, registration.source, progress)
        try:
            card = await self._card(registration, folder, default_base)
            base = await self._check_name(card, mode)
            progress("checking", 0, None)
            version = await asyncio.to_thread(self._admit, registration, folder, base)
            progress("storing", 0, version.size_bytes)
            return await self._record(registration, card, version, mode, folder)
        finally:
            await asyncio.to_thread(shutil.rmtree, folder)

    async def _card(
        self, registration: Registration, folder: Path, default_base: str | None
    ) -> Card:
        """What was sent, over the card in the folder, over the card that is stored."""
        sent = registration.model_dump(exclude=_OF_VERSION, exclude_none=True)
        fields = await asyncio.to_thread(_card_file, folder) | sent
        fields.setdefault("name", self._sources.name_of(registration.source))
        stored = await self._store.get(str(fields["name"]))
        if stored is not None:
            fields = stored.card.model_dump(mode="json") | fields
        elif default_base is not None:
            fields.setdefault("base_model", default_base)
        if "base_model" not in fields:
            raise InvalidRequest(
                "base_model is required: name the base model that the adapter was trained on",
                param="base_model",
            )
        return parse_card(fields)

    async def _check_free(self, name: str) -> None:
        """Before anything is fetched for it."""
        if await self._store.get(name) is not None:
            raise name_taken(name)

    async def _check_name(self, card: Card, mode: str) -> BaseModelFacts:
        if card.name in RESERVED_NAMES or await self._store.base_model(card.name) is not None:
            raise InvalidRequest(f"the name {card.name!r} is taken by a model", param="name")
        existing = await self._store.get(card.name)
        if existing is not None and mode == "create":
            raise name_taken(card.name)
        if existing is not None and existing.card.base_model != card.base_model:
            raise Conflict(
                f"{card.name!r} is an adapter of {existing.card.base_model}; for {card.base_model} "
                "register it under another name",
                param="base_model",
            )
        base = await self._store.base_model(card.base_model)
        if base is None:
            raise ModelNotFound(card.base_model, param="base_model")
        return base

    def _admit(self, registration: Registration, folder: Path, base: BaseModelFacts) -> Version:
        """The checks at the door."""
        if registration.base_fingerprint is not None:
            check_base(base, registration.base_fingerprint)
        if registration.sha256 is not None:
            check_sha256(folder, registration.sha256)
        signed_by = signer_of(
            folder, self._settings.trusted_keys, required=self._settings.require_signature
        )
        checked: Checked = check_adapter(folder, base)
        return new_version(
            digest=checked.digest,
            size_bytes=checked.size_bytes,
            rank=checked.rank,
            target_modules=checked.target_modules,
            base_fingerprint=base.fingerprint,
            signed_by=signed_by,
            lineage=registration.lineage,
        )

    async def _record(
        self, registration: Registration, card: Card, version: Version, mode: str, folder: Path
    ) -> Stored:
        for _ in range(_TRIES):
            if not await self._store.reserve(version.digest):
                await asyncio.sleep(_RESERVE_AGAIN_S)  # the collector is removing it
                continue
            await asyncio.to_thread(self.blobs.commit, folder)
            try:
                return await self._store.put(
                    card,
                    version,
                    mode=mode,
                    promote=registration.promote,
                    revision=registration.revision,
                )
            except BlobUnreserved:
                continue
        raise Unavailable("the blob store is too slow, or its collector hangs; try again")


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


def parse_card(fields: dict[str, Any]) -> Card:
    """A card from JSON; raises InvalidRequest, which names the field."""
    try:
        return Card.model_validate(fields)
    except ValidationError as e:
        raise InvalidRequest.of(e) from e
