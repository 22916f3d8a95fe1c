"""Whose signature an adapter carries: OpenSSF Model Signing, with elliptic-curve keys.

Made with `model_signing sign key --private_key KEY.pem --signature model.sig FOLDER`, over a folder
that holds the adapter's two files.
"""

import base64
import json
from collections.abc import Sequence
from pathlib import Path

from adapter_store.files.blobs import FILES
from cluster.errors import AdapterRefused, ConfigError

SIGNATURE = "model.sig"


def signer_of(folder: Path, trusted_keys: Sequence[Path], *, required: bool) -> str:
    """The name of the trusted key that signed the files of a folder; "" without a signature.

    Raises:
        AdapterRefused: the signature is not by a trusted key, not of these files, or missing
            though it is required.
        ConfigError: a trusted key cannot be read.
    """
    if not (folder / SIGNATURE).is_file():
        if required:
            raise AdapterRefused(
                f"{SIGNATURE} is missing, and this cluster takes signed adapters only; sign the "
                "folder with `model_signing sign key`",
                param="source",
            )
        return ""
    refusals = []
    for key in trusted_keys:
        refusal = _refusal(folder, key)
        if refusal is None:
            return key.stem
        refusals.append(f"{key.stem}: {refusal}")
    if refusals:
        raise AdapterRefused(
            f"{SIGNATURE} is by no trusted key, or not of these files ({'; '.join(refusals)})"[
                :600
            ],
            param="source",
        )
    return ""  # nobody said whom to trust: an unchecked signature proves nothing


def _refusal(folder: Path, key: Path) -> str | None:
    from model_signing import hashing, verifying

    if not key.expanduser().is_file():
        raise ConfigError(f"store.trusted_keys: {key} is not a file", param="store.trusted_keys")
    signature = folder / SIGNATURE
    verifier = (
        verifying.Config()
        .use_elliptic_key_verifier(public_key=key.expanduser())
        .set_hashing_config(hashing.Config().set_ignored_paths(paths=[signature]))
        # A card may be written after the signature.
        .set_ignore_unsigned_files(True)
    )
    try:
        verifier.verify(folder, signature)
        unsigned = set(FILES) - _signed_files(signature)
    except Exception as e:  # noqa: BLE001 (a hostile signature may break the library anywhere)
        return str(e)[:200] or type(e).__name__
    return f"it does not cover {min(unsigned)}" if unsigned else None


def _signed_files(signature: Path) -> set[str]:
    """The files that a verified signature speaks of: an in-toto statement in a DSSE envelope."""
    payload = json.loads(signature.read_bytes())["dsseEnvelope"]["payload"]
    resources = json.loads(base64.b64decode(payload))["predicate"]["resources"]
    return {resource["name"] for resource in resources}
