"""Registering an adapter: stage, check, put under its hash, record. All or nothing."""

import asyncio
import json
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from adapter_store.blobs import BlobStore
from adapter_store.door import Checked, check_adapter, check_folder
from adapter_store.store import AdapterStore, Stored, new_version
from cluster.errors import AdapterRefused, InvalidRequest, ModelNotFound
from cluster.settings import RESERVED_NAMES
from cluster.state import Card, Value

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
        StoreUnavailable: nothing was recorded; the same call may be made again.
    """
    source = Path(registration.source).expanduser()
    card = await asyncio.to_thread(_read_card, source, registration)
    base = await store.base_model(card.base_model)
    if base is None:
        raise ModelNotFound(card.base_model, param="base_model")
    if card.name in RESERVED_NAMES or await store.base_model(card.name) is not None:
        raise InvalidRequest(f"the name {card.name!r} is taken by a model", param="name")
    staged = await asyncio.to_thread(blobs.stage, source)
    try:
        checked: Checked = await asyncio.to_thread(check_adapter, staged, base)
        digest, size_bytes = await asyncio.to_thread(blobs.commit, staged)
    finally:
        await asyncio.to_thread(blobs.discard, staged)
    version = new_version(
        digest=digest,
        size_bytes=size_bytes,
        rank=checked.rank,
        target_modules=checked.target_modules,
    )
    return await store.put(card, version, mode=mode)


def _read_card(source: Path, registration: Registration) -> Card:
    check_folder(source)
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
    known["metadata"] = {**extra, **known.get("metadata", {})}
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
    try:
        card = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as e:
        raise AdapterRefused(f"{CARD_FILE} is not JSON: {e}", param="source") from e
    if not isinstance(card, dict):
        raise AdapterRefused(f"{CARD_FILE} must be a JSON object", param="source")
    return card
