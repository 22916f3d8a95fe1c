"""What the cluster is, as small frozen values. They cross process and wire boundaries as JSON."""

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StringConstraints,
    model_validator,
)

# The newest version, and the one that answers to the plain name.
LATEST, STABLE = "latest", "stable"

AdapterName = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$", strip_whitespace=False),
]
# Not a number: `name@3` is version 3.
AliasName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9._-]{0,62}$")]
Owner = Annotated[str, StringConstraints(pattern=r"^([a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?)?$")]
Example = Annotated[str, StringConstraints(min_length=1, max_length=8000)]
Tag = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Share = Annotated[float, Field(ge=0, le=1)]


def _plain_json(value: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: what cannot be read back must not be stored."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError as e:
        raise ValueError("numbers must be finite") from e
    return value


class Value(BaseModel):
    """Immutable, compared by content, and strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Tier(StrEnum):
    """Where the weights of an adapter version are, seen from one replica; nearest first."""

    SLOT = "slot"
    HOST = "host"
    NODE = "node"
    REMOTE = "remote"


class Route(StrEnum):
    """Who chose the adapter."""

    EXPLICIT = "explicit"
    AUTO = "auto"
    FALLBACK = "fallback"


class EvaluationPrompt(Value):
    """A prompt with a known good answer; a rollout asks it of the old and of the new version."""

    prompt: Example
    expected: str = Field(max_length=8000)
    match: Literal["exact", "contains"] = Field("exact", description="white space is trimmed first")

    def accepts(self, answer: str) -> bool:
        expected, got = self.expected.strip(), answer.strip()
        return got == expected if self.match == "exact" else expected in got


class Card(Value):
    """What an adapter says of itself: the prompt router learns from it, the fleet obeys it."""

    name: AdapterName
    base_model: str
    description: str = Field("", max_length=4000)
    examples: tuple[Example, ...] = Field((), max_length=1000)
    evaluation: tuple[EvaluationPrompt, ...] = Field((), max_length=1000)
    license: str = Field("", max_length=200)
    tags: tuple[Tag, ...] = Field((), max_length=64)
    owner: Owner = Field("", description="the tenant that it belongs to")
    visibility: Literal["public", "private"] = Field(
        "public", description="private: only for keys of its owner, and admins"
    )
    pinned: StrictBool = Field(
        False, description="a replica that has loaded it keeps it in host memory"
    )
    replicas: Literal["auto"] | Annotated[StrictInt, Field(ge=1, le=10_000)] = Field(
        "auto", description="how many replicas are to hold it; auto: those with room"
    )
    metadata: Annotated[dict[str, Any], AfterValidator(_plain_json)] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _private_to_someone(self) -> Self:
        if self.visibility == "private" and not self.owner:
            raise ValueError("owner: visibility 'private' needs one")
        return self


class Viewer(Value):
    """Who asks, as far as visibility goes."""

    owner: str = ""
    sees_all: bool = False

    def may_see(self, card: Card) -> bool:
        return self.sees_all or card.visibility == "public" or card.owner == self.owner


OPERATOR = Viewer(sees_all=True)


class Lineage(Value):
    """Where derived weights come from."""

    parents: tuple[str, ...] = Field(
        min_length=1, max_length=64, description="name@version of each"
    )
    transformation: str = Field(
        min_length=1, max_length=64, description="composed | truncated | quantised | ported | ..."
    )


class Version(Value):
    """One immutable set of weights."""

    number: int
    digest: str = Field(description="sha256 over the file names and contents")
    size_bytes: int
    rank: int
    target_modules: tuple[str, ...]
    created_at: float = Field(description="Unix time in seconds")
    base_fingerprint: str = Field("", description="of the base model that it was checked against")
    signed_by: str = Field("", description="the trusted key whose signature was verified")
    lineage: Lineage | None = None


class Gate(Value):
    """How much worse than the old version a new one may be."""

    max_accuracy_drop: Share = 0.02
    max_negative_flips: Share = Field(
        0.05, description="share of prompts right before and wrong now (MUSCLE's measure)"
    )


class Evaluation(Value):
    """Two versions on the same prompts, asked of one replica."""

    prompts: int
    accuracy_before: float
    accuracy_after: float
    negative_flips: float = Field(description="share of prompts right before and wrong now")
    replica: str
    at: float = Field(description="Unix time in seconds")


class Rollout(Value):
    """A version on its way to `stable`, step by step."""

    version: int
    percents: tuple[int, ...] = Field(description="share of the requests at each step")
    step: int = Field(-1, description="-1: being checked, before it gets any request")
    step_s: float
    next_at: float = Field(description="Unix time at which the gate is run again")
    gate: Gate | None
    evaluation: Evaluation | None = Field(None, description="the newest one")

    @property
    def percent(self) -> int:
        return self.percents[self.step] if self.step >= 0 else 0


class RolloutEnd(Value):
    """How the last rollout went."""

    version: int
    outcome: Literal["done", "rolled_back"]
    reason: str
    evaluation: Evaluation | None
    at: float


class Adapter(Value):
    """A card, its versions, and what points to them."""

    card: Card
    versions: dict[int, Version]
    aliases: dict[str, int]
    revision: int
    previous: tuple[int, ...] = Field((), description="what was `stable` before, oldest first")
    rollout: Rollout | None = None
    last_rollout: RolloutEnd | None = None

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def latest(self) -> Version:
        return self.versions[self.aliases[LATEST]]

    @property
    def stable(self) -> Version:
        return self.versions[self.aliases[STABLE]]

    @property
    def serving(self) -> tuple[Version, ...]:
        """The versions that requests for the plain name may get."""
        if self.rollout is None:
            return (self.stable,)
        return (self.stable, self.versions[self.rollout.version])

    def resolve(self, selector: str = STABLE) -> Version | None:
        """The version behind a number or an alias, or None."""
        number = self.aliases.get(selector)
        if number is None and selector.isascii() and selector.isdecimal() and len(selector) < 10:
            number = int(selector)
        return self.versions.get(number) if number is not None else None


class AdapterRef(Value):
    """Enough to load one version into an engine."""

    name: AdapterName
    version: int
    digest: str

    @property
    def key(self) -> str:
        """``name@version``: unique for ever, so it can key caches."""
        return f"{self.name}@{self.version}"

    @classmethod
    def of(cls, adapter: Adapter, version: Version) -> "AdapterRef":
        return cls(name=adapter.name, version=version.number, digest=version.digest)


class BaseModelFacts(Value):
    """What adapters must match, as the engine that serves the base model reports it."""

    id: str
    architecture: str
    fingerprint: str = Field(description="sha256 over architecture, shapes and tokenizer")
    max_rank: int
    linear_shapes: dict[str, tuple[int, int]] = Field(
        description="module path -> (out_features, in_features), where an adapter may attach"
    )


class Residency(Value):
    """Adapter versions (``name@version``) by tier, as the engine's worker itself reports."""

    slots: tuple[str, ...] = ()
    host: tuple[str, ...] = ()
    slot_capacity: int = 0
    host_capacity: int = 0

    def tier(self, key: str) -> Tier | None:
        if key in self.slots:
            return Tier.SLOT
        return Tier.HOST if key in self.host else None


class Twins(Value):
    """Two adapters that prompts cannot tell apart, by their cards."""

    a: str
    b: str
    confused: float = Field(description="share of their examples that went to the other")


class RouterReport(Value):
    """What a prompt router knows of its own quality, from examples scored without themselves."""

    versions: dict[str, str]
    cards: int
    examples: int = 0
    landmarks: int = 0
    is_whole: bool = Field(True, description="false: changes are worked in, learning is due")
    temperature: float | None = None
    threshold: float | None = None
    left_out_top1: float | None = None
    left_out_ece: float | None = Field(None, description="expected calibration error")
    scope_auroc: float | None = Field(None, description="examples against everyday prompts")
    twins: tuple[Twins, ...] = ()
    experts: tuple[str, ...] = Field((), description="candidates whose outcomes are known")


def fewest_first(requests: Mapping[str, int]) -> list[str]:
    """Adapter versions by their requests, as all processes order those that run."""
    return sorted(requests, key=lambda key: (requests[key], key))


class Member(Value):
    """A process that follows the store: its lease carries this report."""

    id: str
    kind: str = Field(description="replica | router | ingress")
    model: str | None = None
    node: str = ""
    position: str = Field("0-0", description="last event applied")
    residency: Residency = Residency()
    loading: tuple[str, ...] = Field((), description="versions on their way in")
    ongoing: int = 0
    max_ongoing: int = 0
    service_s: float = Field(0.0, description="mean time of the last requests")
    load_s: float = Field(0.0, description="mean time of the last loads from the node's own files")
    loads: int = Field(0, description="loads into the engine since it started")
    running: tuple[str, ...] = Field(
        (), description="versions that requests use now, those with the fewest first"
    )
    demand: dict[str, float] = Field(
        default_factory=dict, description="requests a second by adapter, as an ingress sees them"
    )
    times: dict[str, float] = Field(
        default_factory=dict,
        description="mean seconds of a request by adapter, of those in demand",
    )
    waiting: dict[str, int] = Field(
        default_factory=dict, description="requests in an ingress's queue by adapter version"
    )
    tenants: dict[str, float] = Field(
        default_factory=dict, description="requests a second by tenant, as an ingress sees them"
    )
    leases: int = Field(0, description="requests that hold an adapter in place now")
    kv_use: float | None = Field(None, description="part of the KV cache in use, 0 to 1")
    leaving: tuple[str, ...] = Field((), description="versions that go when their last lease ends")
    problems: dict[str, str] = Field(
        default_factory=dict, description="adapter version -> why it could not be loaded"
    )
    router: RouterReport | None = None


class Prompt(Value):
    """What the choice is made by."""

    text: str = Field(description="the last turn of the user")
    context: str = Field("", description="the conversation that it ends, when there is one")


class Candidate(Value):
    """An adapter or a base model as the prompt router sees it for a prompt."""

    adapter: str | None = Field(description="None is the base model")
    model: str = Field("", description="the base model")
    score: float = Field(description="predicted quality, between 0 and 1")
    cost: float = Field(0.0, description="sum of the weighed costs, in the unit of the score")
    costs: dict[str, float] = Field(
        default_factory=dict, description="latency_s, price, size_gb and load, not weighed"
    )
    residency: Tier | None = Field(None, description="the nearest place where it is now")


class Evidence(Value):
    """An example that made the score of the chosen adapter."""

    example: str
    share: float = Field(description="of the score")
    wording: float = Field(description="how much of the likeness is shared wording, 0 to 1")


class Decision(Value):
    """Which adapter a prompt goes to, and why."""

    adapter: str | None
    version: int | None = None
    model: str | None = Field(None, description="the base model; None: the default one")
    confidence: float = Field(ge=0, le=1, description="that the adapter is the right one")
    in_scope: float = Field(0.0, ge=0, le=1, description="that any adapter is")
    threshold: float = Field(0.0, ge=0, le=1, description="of in_scope; below, it abstains")
    route: Route
    reason: str
    candidates: tuple[Candidate, ...] = ()
    excluded: dict[str, str] = Field(
        default_factory=dict, description="better adapters, and the constraint that excluded each"
    )
    evidence: tuple[Evidence, ...] = ()
    versions: dict[str, str] = Field(
        default_factory=dict, description="of the features and of the cards that it was made with"
    )


class RoutedRequest(Value):
    """A request and where it went, as it is kept for a while."""

    request_id: str
    at: float = Field(description="Unix time in seconds")
    owner: str = Field("", description="of the key that asked")
    input: str | None = Field(None, description="the deciding text, when prompts are kept")
    answered_by: str = Field(description="adapter or base model")
    decision: Decision


class Outcome(Value):
    """How well a candidate answered a prompt."""

    input: str
    candidate: str = Field(description="name of an adapter or of a base model")
    score: Share


class ModelPlan(Value):
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


class PlacementPlan(Value):
    """The newest plan, as the store keeps it."""

    leader: str = Field("", description="the planner that made it")
    at: float = Field(0.0, description="Unix time in seconds")
    demand: dict[str, float] = Field(
        default_factory=dict, description="requests a second by adapter, that it was made for"
    )
    models: dict[str, ModelPlan] = Field(default_factory=dict, description="by base model")


class Happening(Value):
    """Something that whoever runs the cluster wants to know of."""

    id: str = Field("", description="of the journal's entry")
    at: float = Field(description="Unix time in seconds")
    kind: Literal["adapter", "rollout", "load", "failure", "replica"]
    subject: str = Field(description="name of an adapter, or id of a process")
    text: str
    is_bad: bool = False
    revision: int = Field(
        0, description="of the adapter: every cluster's planner sees what was done to it"
    )


class DeploymentState(Value):
    """One deployment as Ray Serve sees it."""

    name: str
    status: str = Field(description="HEALTHY | UPDATING | UNHEALTHY | ...: Serve's own word")
    running: int = Field(description="replicas that run")
    reason: str = Field("", description="why it is not healthy")


class ClusterSnapshot(Value):
    """What `GET /v1/cluster` answers."""

    models: tuple[str, ...]
    adapters: int
    members: tuple[Member, ...]
    deployments: tuple[DeploymentState, ...] = ()
    store: str = Field(description="ok | stale")
    position: str
    plan: PlacementPlan | None = Field(
        None, description="what should be where; for those who may see every adapter"
    )
