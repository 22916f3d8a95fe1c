"""Looks into what was fetched: archive, card, signature, tensors; in children without network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapter_store.files.inbound.confined import Progress
from adapter_store.files.inbound.fetching import CARD_FILE, fetch, unpack
from adapter_store.files.peft_config import read_json_object
from adapter_store.files.signatures import signer_of
from cluster.adapters import BaseModelFacts
from cluster.settings import StoreSettings


def bring(settings: StoreSettings, source: str, folder: Path, progress: Progress) -> dict[str, Any]:
    """Both at once, from where no network is needed: `fetch`, and `open_up`."""
    fetch(settings, source, folder, progress)
    return open_up(settings, folder, progress)


def open_up(settings: StoreSettings, folder: Path, progress: Progress) -> dict[str, Any]:
    """Unpack what came as an archive; returns the fields of the card, if there is one.

    Raises AdapterRefused.
    """
    unpack(settings, folder, progress)
    card = folder / CARD_FILE
    return read_json_object(card) if card.is_file() else {}


def check(
    folder: Path,
    base: BaseModelFacts,
    sha256: str | None,
    trusted_keys: Sequence[Path],
    must_be_signed: bool,
    _progress: Progress,
) -> dict[str, Any]:
    """The checks at the door; returns what a version says of its files.

    Raises AdapterRefused.
    """
    # Only the children wait for PyTorch.
    from adapter_store.files.door import check_adapter, check_sha256

    if sha256 is not None:
        check_sha256(folder, sha256)
    signed_by = signer_of(folder, trusted_keys, required=must_be_signed)
    return check_adapter(folder, base).model_dump(mode="json") | {"signed_by": signed_by}
