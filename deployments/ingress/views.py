"""Adapters as the API shows them: whole, in a listing, in a table, as one of OpenAI's models."""

from typing import Any

from cluster.adapters import Adapter, BaseModelFacts
from cluster.members import ClusterSnapshot, Ingress, Replica, Router


def describe(adapter: Adapter) -> dict[str, Any]:
    """The adapter as the API shows it."""
    shown = adapter.model_dump(mode="json")
    return {**shown.pop("card"), **shown, "versions": list(shown["versions"].values())}


def summarise(adapter: Adapter) -> dict[str, Any]:
    """The adapter in a listing: without its prompts, of which there may be thousands."""
    brief = adapter.card.model_copy(update={"examples": (), "evaluation": ()})
    shown = describe(adapter.model_copy(update={"card": brief}))
    counts = {"examples": len(adapter.card.examples), "evaluation": len(adapter.card.evaluation)}
    return {k: v for k, v in shown.items() if k not in counts} | {"prompts": counts}


def row(adapter: Adapter) -> dict[str, Any]:
    """The adapter in a table of thousands."""
    card, rollout = adapter.card, adapter.rollout
    return {
        "name": adapter.name,
        "base_model": card.base_model,
        "description": card.description[:200],
        "tags": card.tags,
        "owner": card.owner,
        "pinned": card.pinned,
        "replicas": card.replicas,
        "rank": adapter.stable.rank,
        "size_bytes": adapter.stable.size_bytes,
        "stable": adapter.stable.number,
        "versions": tuple(adapter.versions),
        "rollout": {"version": rollout.version, "percent": rollout.percent} if rollout else None,
    }


# Clients find the same fields in every member, whatever its kind.
_EVERY_FIELD: dict[str, Any] = {
    **Ingress(id="").model_dump(mode="json"),
    **Router(id="").model_dump(mode="json"),
    **Replica(id="", model="").model_dump(mode="json"),
    "model": None,
    "trouble": "",
}


def cluster(snapshot: ClusterSnapshot) -> dict[str, Any]:
    """What `GET /v1/cluster` answers."""
    shown = snapshot.model_dump(mode="json")
    return shown | {"members": [_EVERY_FIELD | member for member in shown["members"]]}


def model_card(
    model: str, created_at: float, facts: BaseModelFacts | None, adapter: Adapter | None = None
) -> dict[str, Any]:
    """A model as OpenAI lists it, with what vLLM adds.

    Args:
        created_at: Unix time in seconds.
        facts: of the base model, as far as they are known.
        adapter: what the model is; without one, a base model or `auto`.
    """
    root = adapter.stable.digest if adapter else facts.name if facts else ""
    return {
        "id": model,
        "object": "model",
        "created": int(created_at),
        "owned_by": "roundhouse",
        "root": root or model,
        "parent": adapter.card.base_model if adapter else None,
        "max_model_len": facts.max_model_len if facts else None,
    }
