"""What should be where, and what happened."""

from typing import Literal

from pydantic import Field

from cluster.values import Record


class ModelPlan(Record):
    """What should be where, of the adapters of one base model."""

    holders: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="adapter -> replicas that should hold it"
    )
    loads: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="replica -> adapters to load now, in this order"
    )
    reasons: dict[str, str] = Field(
        default_factory=dict, description="adapter -> why it has fewer replicas than it should"
    )


class PlacementPlan(Record):
    """The newest plan, as the store keeps it."""

    leader: str = Field("", description="the planner that made it")
    at: float = Field(0.0, description="Unix time in seconds")
    demand: dict[str, float] = Field(
        default_factory=dict, description="requests a second by adapter, that it was made for"
    )
    models: dict[str, ModelPlan] = Field(default_factory=dict, description="by base model")


class Happening(Record):
    """Something that whoever runs the cluster wants to know of."""

    id: str = Field("", description="of the journal's entry")
    at: float = Field(description="Unix time in seconds")
    kind: Literal["adapter", "rollout", "load", "failure", "replica"]
    subject: str = Field(description="name of an adapter, or id of a process")
    text: str
    owner: str | None = Field(
        None,
        description="tenant that alone may know of it, empty where all may who know the subject; "
        "null: only those who may see everything",
    )
    is_bad: bool = False
    revision: int = Field(
        0, description="of the adapter: every cluster's planner sees what was done to it"
    )
