"""API keys: hashed at rest, compared in constant time."""

import hashlib
import hmac
import secrets
from collections.abc import Mapping

from cluster.adapters import OPERATOR, Viewer
from cluster.errors import Forbidden, Unauthenticated
from cluster.settings import ApiKey, AuthSettings

CLIENT, ADMIN = "client", "admin"
_PREFIX = "rh-"


def new_key() -> tuple[str, str]:
    """A fresh key and its sha256. The key is 256 random bits, so a plain hash keeps it."""
    key = _PREFIX + secrets.token_urlsafe(32)
    return key, hash_key(key)


def hash_key(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def key_in(headers: Mapping[str, str]) -> str | None:
    """The key as it is sent: OpenAI's clients have a header for it, and Anthropic's another."""
    kind, _, key = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key", "").strip() or None


class Authoriser:
    """Lets a request in, or says why not."""

    def __init__(self, settings: AuthSettings) -> None:
        self._settings = settings

    def check(self, key: str | None, scope: str) -> Viewer:
        """Return who asks, when the request may pass.

        Args:
            key: as `key_in` finds it.

        Raises:
            Unauthenticated: no key, or one that is not known.
            Forbidden: the key does not carry the scope.
        """
        if not self._settings.enabled:
            return OPERATOR
        if key is None:
            raise Unauthenticated(
                "an API key is needed: send 'Authorization: Bearer KEY', or 'x-api-key: KEY'"
            )
        found = self._find(key)
        if found is None:
            raise Unauthenticated("this API key is not known here")
        if scope == ADMIN and found.scope != ADMIN:
            raise Forbidden(f"the key {found.name!r} has scope 'client'; this needs 'admin'")
        return Viewer(
            owner=found.tenant, sees_all=found.scope == ADMIN, local_only=found.local_only
        )

    def _find(self, key: str) -> ApiKey | None:
        sent = hash_key(key)
        found = None
        for known in self._settings.keys:
            # No early exit: the time must not tell which key came close.
            if hmac.compare_digest(known.sha256, sent):
                found = known
        return found
