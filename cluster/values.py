"""What all values here have in common: frozen, compared by content, strict. They cross process and
wire boundaries as JSON."""

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """Immutable, compared by content, and strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")
