"""Who is there: what each process reports of itself, and the whole cluster at one moment."""

from collections.abc import Mapping

from pydantic import Field

from cluster.adapters import Tier
from cluster.plans import PlacementPlan
from cluster.values import Value


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
