"""What keeps a tenant's requests apart from others' in the engines' caches.

Whoever asks for a beginning that is cached gets the first token sooner: shared, the prefix cache
tells tenants what others have sent. So each has a part of its own, by vLLM's `cache_salt`.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cluster.adapters import Viewer
from cluster.errors import InvalidRequest
from cluster.settings import AuthSettings

SALT = "cache_salt"


def kept_apart(fields: Mapping[str, Any], viewer: Viewer, auth: AuthSettings) -> Mapping[str, Any]:
    """A body for the engine with its tenant's own salt, and its own names of images, videos and
    sounds; a salt that was sent divides what is the tenant's.

    Raises:
        InvalidRequest: a salt that is none.
    """
    if not auth.enabled or auth.shared_prefix_cache:
        return fields
    sent = fields.get(SALT)
    if sent is not None and not (isinstance(sent, str) and sent):
        raise InvalidRequest(f"{SALT} must be a string that is not empty", param=SALT)
    apart = {**fields, SALT: _own(viewer, sent)}
    if isinstance(messages := fields.get("messages"), list):
        apart["messages"] = [_message_apart(message, viewer) for message in messages]
    return apart


def _message_apart(message: Any, viewer: Viewer) -> Any:
    parts = message.get("content") if isinstance(message, dict) else None
    if not isinstance(parts, list):
        return message
    return message | {"content": [_part_apart(part, viewer) for part in parts]}


def _part_apart(part: Any, viewer: Viewer) -> Any:
    """The engine takes a part without content for what it last had under its name (`uuid`)."""
    if not isinstance(part, dict) or part.get("uuid") is None:
        return part
    return part | {"uuid": _own(viewer, part["uuid"])}


def _own(viewer: Viewer, sent: Any) -> str:
    """One of the tenant's: no other can name it, whatever it sends."""
    return hashlib.sha256(json.dumps([viewer.owner, sent]).encode()).hexdigest()
