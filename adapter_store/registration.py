"""Registering an adapter: stage, check, put under its hash, record. All or nothing."""

import asyncio
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from adapter_store.blobs import BlobStore
from adapter_store.door import check_adapter, check_folder, read_json_object
from adapter_store.store import AdapterStore, Stored, name_taken, new_version
from cluster.errors import AdapterRefused, Conflict, InvalidRequest, ModelNotFound
from cluster.settings import RESERVED_NAMES
from cluster.state import BaseModelFacts, Card, Value, Version

CARD_FILE = "card.json"
_MAX_CARD_BYTES = 1 << 20


class Registration(Value):
    """What a client sends. Fields that are left out come from the folder's ``card.json``."""

    source: str = Field(description="folder with the peft files, as the server sees it")
    name: str | None = None
    base_model: str | None = None
    description: str | None = None
    examples: tuple[str, ...] | None = None
    license: str | None = None
    tags: tuple[str, ...] | None = None
    metadata: dict[str, Any] | None = None


async def register(
    store: AdapterStore, blobs: BlobStore, registration: Registration, *, mode: str
) -> Stored:
    """Check the adapter and store it; `mode` as in :meth:`AdapterStore.put`.

    Raises:
        AdapterRefused: the files or the card do not pass; nothing was stored.
        Conflict, ModelNotFound: the name is taken, or not there.
        StoreUnavailable: the same call may be made again, whether it was recorded or not.
    """
    card = await asyncio.to_thread(_read_card, registration)
    await _check_name(store, card, mode)
    base = await store.base_model(card.base_model)
    if base is None:
        raise ModelNotFound(card.base_model, param="base_model")
    # One call, so that a caller who gives up midway cannot leave half of it behind.
    version = await asyncio.to_thread(_admit, blobs, _folder(registration), base)
    return await store.put(card, version, mode=mode)


async def _check_name(store: AdapterStore, card: Card, mode: str) -> None:
    """What can be known before the files are looked at."""
    if card.name in RESERVED_NAMES or await store.base_model(card.name) is not None:
        raise InvalidRequest(f"the name {card.name!r} is taken by a model", param="name")
    existing = await store.get(card.name)
    if existing is None:
        return
    if mode == "create":
        raise name_taken(card.name)
    if existing.card.base_model != card.base_model:
        raise Conflict(
            f"{card.name!r} is an adapter of {existing.card.base_model}; for {card.base_model} "
            "register it under another name",
            param="base_model",
        )


def _admit(blobs: BlobStore, source: Path, base: BaseModelFacts) -> Version:
    """Check a private copy of the files and keep it under its hash."""
    try:
        with blobs.staged(source) as staged:
            checked = check_adapter(staged, base)
            digest, size_bytes = blobs.commit(staged)
    except PermissionError as e:
        raise AdapterRefused(f"{e.filename} cannot be read by the server", param="source") from e
    return new_version(
        digest=digest,
        size_bytes=size_bytes,
        rank=checked.rank,
        target_modules=checked.target_modules,
    )


def _folder(registration: Registration) -> Path:
    if not registration.source or not registration.source.isprintable():
        raise AdapterRefused("source must be the path of a folder", param="source")
    try:
        return Path(registration.source).expanduser()
    except RuntimeError as e:
        raise AdapterRefused(f"source: {e}", param="source") from e


def _read_card(registration: Registration) -> Card:
    source = _folder(registration)
    try:
        check_folder(source)
    except OSError as e:
        raise AdapterRefused(f"source: {e.strerror}", param="source") from e
    sent = registration.model_dump(exclude={"source"}, exclude_none=True)
    fields = {**_card_file(source / CARD_FILE), **sent}
    fields.setdefault("name", source.name)
    if "base_model" not in fields:
        raise InvalidRequest(
            "base_model is required: name the base model that the adapter was trained on",
            param="base_model",
        )
    known = {k: v for k, v in fields.items() if k in Card.model_fields}
    extra = {k: v for k, v in fields.items() if k not in Card.model_fields}
    metadata = known.get("metadata", {})
    known["metadata"] = {**extra, **metadata} if isinstance(metadata, dict) else metadata
    try:
        card = Card.model_validate(known)
    except ValidationError as e:
        raise InvalidRequest.of(e) from e
    return card


def _card_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    if path.stat().st_size > _MAX_CARD_BYTES:
        raise AdapterRefused(f"{CARD_FILE} is larger than {_MAX_CARD_BYTES} bytes", param="source")
    return read_json_object(path)
