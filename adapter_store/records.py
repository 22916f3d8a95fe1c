"""What the store keeps, as strings and back."""

import json
import logging
from collections.abc import Mapping
from typing import TypeVar

from pydantic import ValidationError

from cluster.adapters import LATEST, STABLE, Adapter, Card, Rollout, RolloutEnd, Version
from cluster.values import Record

logger = logging.getLogger(__name__)

Kept = TypeVar("Kept", bound=Record)


# The release that shares the store in an upgrade may not know these: they stand beside what it
# reads, or are left out where they say nothing.
_BESIDE_VERSION = {"notices"}
_BESIDE_CARD = {"resolved_from"}


def card_as_kept(card: Card) -> str:
    return card.model_dump_json(exclude=None if card.resolved_from else _BESIDE_CARD)


def version_as_kept(version: Version, *, numbered: bool = True) -> str:
    """Without its notices, which are kept apart."""
    return version.model_dump_json(exclude=_BESIDE_VERSION | (set() if numbered else {"number"}))


def fields_of(adapter: Adapter) -> dict[str, str]:
    """The adapter's hash, without the revision, which only scripts write."""
    fields = {"card": card_as_kept(adapter.card), "previous": json.dumps(adapter.previous)}
    fields |= {f"version:{n}": version_as_kept(v) for n, v in adapter.versions.items()}
    fields |= {f"notices:{n}": json.dumps(v.notices) for n, v in adapter.versions.items()}
    fields |= {f"alias:{alias}": str(n) for alias, n in adapter.aliases.items()}
    if adapter.rollout:
        fields["rollout"] = adapter.rollout.model_dump_json()
    if adapter.last_rollout:
        fields["last_rollout"] = adapter.last_rollout.model_dump_json()
    return fields


def adapter_of(fields: Mapping[str, str]) -> Adapter:
    """The adapter that a hash holds, revision included."""
    versions, aliases = {}, {}
    for field, value in fields.items():
        kind, _, rest = field.partition(":")
        if kind == "version":
            notices = json.loads(fields.get(f"notices:{rest}", "[]"))
            version = Version.model_validate_json(value)
            versions[int(rest)] = version.model_copy(update={"notices": tuple(notices)})
        elif kind == "alias":
            aliases[rest] = int(value)
    # A process of an older release, in the midst of an upgrade, writes none.
    aliases.setdefault(STABLE, aliases[LATEST])
    rollout, last = fields.get("rollout"), fields.get("last_rollout")
    return Adapter(
        card=Card.model_validate_json(fields["card"]),
        versions=dict(sorted(versions.items())),
        aliases=aliases,
        revision=int(fields["revision"]),
        previous=tuple(json.loads(fields.get("previous", "[]"))),
        rollout=Rollout.model_validate_json(rollout) if rollout else None,
        last_rollout=RolloutEnd.model_validate_json(last) if last else None,
    )


def read_or_none(kind: type[Kept], record: str) -> Kept | None:
    """None for a record of another release, or a damaged one: the others are still of use."""
    try:
        return kind.model_validate_json(record)
    except ValidationError as e:
        logger.warning("a %s cannot be read: %s", kind.__name__, e)
        return None
