"""What all values here have in common: frozen, compared by content, JSON between processes."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """Immutable, compared by content, and strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _as_sent(schema: dict[str, Any]) -> None:
    """Schemas are for those who send: they know all the fields there are."""
    schema["additionalProperties"] = False


class Record(Value):
    """A value that the store keeps: two releases share one store.

    Fields that a newer release has added are kept and written back. What a client sends is held to
    the known ones all the same (:func:`cluster.errors.parse`).
    """

    model_config = ConfigDict(frozen=True, extra="allow", json_schema_extra=_as_sent)
