"""What the cluster is, as small frozen values. They cross process and wire boundaries as JSON."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

LATEST = "latest"

AdapterName = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$", strip_whitespace=False),
]
Example = Annotated[str, StringConstraints(min_length=1, max_length=8000)]


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


class Card(Value):
    """What an adapter says of itself; the prompt router learns from it."""

    name: AdapterName
    base_model: str
    description: str = Field("", max_length=4000)
    examples: tuple[Example, ...] = Field((), max_length=1000)
    license: str = Field("", max_length=200)
    tags: tuple[Annotated[str, StringConstraints(max_length=64)], ...] = Field((), max_length=64)
    metadata: dict[str, Any] = Field(default_factory=dict)


class Version(Value):
    """One immutable set of weights."""

    number: int
    digest: str = Field(description="sha256 over the file names and contents")
    size_bytes: int
    rank: int
    target_modules: tuple[str, ...]
    created_at: float = Field(description="Unix time in seconds")


class Adapter(Value):
    """A card, its versions, and the aliases that point to them."""

    card: Card
    versions: dict[int, Version]
    aliases: dict[str, int]
    revision: int

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def latest(self) -> Version:
        return self.versions[self.aliases[LATEST]]

    def resolve(self, selector: str = LATEST) -> Version | None:
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


class Member(Value):
    """A process that follows the store: its lease carries this report."""

    id: str
    kind: str = Field(description="replica | router | ingress")
    model: str | None = None
    node: str = ""
    position: str = Field("0-0", description="last event applied")
    residency: Residency = Residency()
    ongoing: int = 0
    problems: dict[str, str] = Field(
        default_factory=dict, description="adapter version -> why it could not be loaded"
    )


class Candidate(Value):
    """One adapter as the prompt router sees it for a prompt."""

    adapter: str | None = Field(description="None is the base model")
    score: float
    cost: float = 0.0


class Decision(Value):
    """Which adapter a prompt goes to, and why."""

    adapter: str | None
    version: int | None = None
    confidence: float = Field(ge=0, le=1)
    route: Route
    reason: str
    candidates: tuple[Candidate, ...] = ()


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
