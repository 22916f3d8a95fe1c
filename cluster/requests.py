"""What clients send to change adapters."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StringConstraints, field_validator

from cluster.adapters import LATEST, Card, Gate, Lineage
from cluster.errors import parse
from cluster.values import Value

_STEP_S = 300.0
# Fields of a card that are checked together.
_TOGETHER = {"name", "base_model", "owner", "visibility"}


def edited(card: Card, sent: Mapping[str, Any]) -> Card:
    """The card with what a client sent over it; what a newer release has stored in it stays.

    Raises:
        InvalidRequest: names the field, unknown ones too.
    """
    parse(Card, card.model_dump(mode="json", include=_TOGETHER) | dict(sent))
    return parse(Card, card.model_dump(mode="json") | dict(sent), keep_unknown=True)


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
    pinned: StrictBool | None = None
    replicas: StrictInt | str | None = None
    metadata: dict[str, Any] | None = None
    # Of this version.
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9A-Fa-f]{64}$")] | None = Field(
        None, description="that adapter_model.safetensors must have"
    )
    base_fingerprint: str | None = Field(None, description="that the base model must have")
    lineage: Lineage | None = None
    promote: StrictBool = Field(
        True, description="false: the plain name stays with the version it has"
    )
    revision: StrictInt | None = Field(
        None, ge=0, description="of the adapter as the client last read it"
    )


class RolloutRequest(Value):
    """What `POST /v1/adapters/{name}/rollout` takes."""

    version: StrictInt | str = Field(LATEST, description="a number or an alias")
    percent: tuple[StrictInt, ...] = Field(
        (100,),
        min_length=1,
        max_length=20,
        description="share of the requests, or growing shares that are gone through; 100 ends it",
    )
    step_s: StrictFloat = Field(
        _STEP_S, gt=0, le=7 * 86400, description="between two steps, and between two checks"
    )
    gate: Gate | StrictBool = Field(
        True, description="limits, or false for none; asks the adapter's evaluation prompts"
    )
    revision: StrictInt | None = Field(
        None, description="of the adapter as the client last read it"
    )

    @field_validator("percent", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return value if isinstance(value, list | tuple) else [value]

    @field_validator("percent")
    @classmethod
    def _grows(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if list(value) != sorted(set(value)) or not 1 <= value[0] <= value[-1] <= 100:
            raise ValueError("shares between 1 and 100 that grow are needed")
        return value


class RollbackRequest(Value):
    """What `POST /v1/adapters/{name}/rollback` takes."""

    version: StrictInt | str | None = Field(
        None, description="default: the one that was stable before"
    )
    revision: StrictInt | None = None


class AliasRequest(Value):
    """What `PUT /v1/adapters/{name}/aliases/{alias}` takes."""

    version: StrictInt | str
    revision: StrictInt | None = None
