"""What keeps a tenant's requests apart from others' in the engines' caches.

Whoever asks for a beginning that is cached gets the first token sooner: shared, the prefix cache
tells tenants what others have sent. So each has a part of its own, by vLLM's `cache_salt`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.adapters import Viewer
from cluster.errors import InvalidRequest
from cluster.settings import AuthSettings

SALT = "cache_salt"
# Where messages, and what else has parts, have them.
_PARTS = ("content",)


def kept_apart(
    fields: Mapping[str, Any], viewer: Viewer, auth: AuthSettings, prompt: Sequence[str]
) -> Mapping[str, Any]:
    """A body for the engine with its tenant's own salt, and its own names of images, videos and
    sounds; a salt that was sent divides what is the tenant's.

    Args:
        prompt: fields that it may be in.

    Raises:
        InvalidRequest: a salt that is none, a prompt that is nested too deeply.
    """
    if not auth.enabled or auth.shared_prefix_cache:
        return fields
    sent = fields.get(SALT)
    if sent is not None and not (isinstance(sent, str) and sent):
        raise InvalidRequest(f"{SALT} must be a string that is not empty", param=SALT)
    try:
        named = {name: _named_apart(fields[name], viewer) for name in prompt if name in fields}
    except RecursionError as e:
        raise InvalidRequest("the body is nested too deeply") from e
    return {**fields, **named, SALT: _own(viewer, sent)}


def _named_apart(value: Any, viewer: Viewer) -> Any:
    """The engine takes a part without content for what it last had under its name (`uuid`)."""
    if isinstance(value, list):
        return [_named_apart(part, viewer) for part in value]
    if not isinstance(value, dict):
        return value
    apart = {name: _named_apart(part, viewer) for name, part in value.items() if name in _PARTS}
    if value.get("uuid") is not None:
        apart["uuid"] = _own(viewer, value["uuid"])
    return value | apart


def _own(viewer: Viewer, sent: Any) -> str:
    """One of the tenant's: no other can name it, whatever it sends."""
    return hashlib.sha256(json.dumps([viewer.owner, sent]).encode()).hexdigest()
