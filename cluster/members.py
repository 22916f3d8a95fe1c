"""Who is there: what each process reports of itself, and the whole cluster at one moment.

A report says itself what of it others may see: it names what it shows, so that nothing is shown
because somebody forgot to hide it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from cluster.adapters import AdapterKey, Tier
from cluster.calls import GENERATES
from cluster.plans import PlacementPlan
from cluster.values import Record, Value

Kept = TypeVar("Kept", bound=str)
Amount = TypeVar("Amount")


@dataclass(frozen=True)
class Eyes:
    """Who looks, and may not see everything.

    Attributes:
        shows: whether they may know of an adapter or a base model, by name.
        holds: whether they may know of an adapter version; a name may have been another's before.
        counts: whether they may know what was counted under an adapter's name of late.
    """

    owner: str
    shows: Callable[[str], bool]
    holds: Callable[[AdapterKey], bool]
    counts: Callable[[str], bool]

    def keys(self, keys: Iterable[AdapterKey]) -> tuple[AdapterKey, ...]:
        """Those of versions that they may know of."""
        return tuple(key for key in keys if self.holds(key))

    def by_key(self, amounts: Mapping[AdapterKey, Amount]) -> dict[AdapterKey, Amount]:
        return {key: amount for key, amount in amounts.items() if self.holds(key)}

    def by_name(self, amounts: Mapping[str, Amount]) -> dict[str, Amount]:
        return {name: amount for name, amount in amounts.items() if self.counts(name)}


class Residency(Record):
    """Adapter versions by tier, as the engine's worker itself reports."""

    slots: tuple[AdapterKey, ...] = ()
    host: tuple[AdapterKey, ...] = ()
    slot_capacity: int = 0
    host_capacity: int = 0

    def tier(self, key: AdapterKey) -> Tier | None:
        if key in self.slots:
            return Tier.SLOT
        return Tier.HOST if key in self.host else None

    def seen_by(self, eyes: Eyes) -> "Residency":
        return Residency(
            slots=eyes.keys(self.slots),
            host=eyes.keys(self.host),
            slot_capacity=self.slot_capacity,
            host_capacity=self.host_capacity,
        )


class Twins(Record):
    """Two adapters that prompts cannot tell apart, by their cards."""

    a: str
    b: str
    confused: float = Field(description="share of their examples that went to the other")


class RouterReport(Record):
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
    # Not told where there is no reader: the release before refuses fields that it does not know.
    kernels: dict[str, float] = Field(
        default_factory=dict,
        description="weights of the kinds of likeness, as learnt, where there is a reader",
        exclude_if=lambda kernels: not kernels,
    )
    asks_reader: float = Field(
        0,
        description="share of the examples that the reader is for",
        exclude_if=lambda share: not share,
    )
    encoder: str = Field(
        "",
        description="the trained encoder that reads; none: the settings' own",
        exclude_if=lambda encoder: not encoder,
    )
    encoder_problem: str = Field(
        "",
        description="why it is not the one that shall",
        exclude_if=lambda problem: not problem,
    )

    def seen_by(self, eyes: Eyes) -> "RouterReport":
        return RouterReport(
            versions=self.versions,
            cards=self.cards,
            examples=self.examples,
            landmarks=self.landmarks,
            is_whole=self.is_whole,
            temperature=self.temperature,
            threshold=self.threshold,
            left_out_top1=self.left_out_top1,
            left_out_ece=self.left_out_ece,
            scope_auroc=self.scope_auroc,
            twins=tuple(
                Twins(a=t.a, b=t.b, confused=t.confused)
                for t in self.twins
                if eyes.shows(t.a) and eyes.shows(t.b)
            ),
            experts=tuple(name for name in self.experts if eyes.shows(name)),
            kernels=self.kernels,
            asks_reader=self.asks_reader,
            encoder=self.encoder,
            encoder_problem=self.encoder_problem,
        )


def fewest_first(requests: Mapping[Kept, int]) -> list[Kept]:
    """Adapter versions by their requests, as all processes order those that run."""
    return sorted(requests, key=lambda key: (requests[key], key))


class _Report(Record):
    """Of a process that follows the store: its lease carries it."""

    id: str
    position: str = Field("0-0", description="last event applied")


class Replica(_Report):
    """One engine."""

    kind: Literal["replica"] = "replica"
    model: str
    node: str = ""
    residency: Residency = Residency()
    loading: tuple[AdapterKey, ...] = Field((), description="versions on their way in")
    ongoing: int = 0
    max_ongoing: int = 0
    service_s: float = Field(0.0, description="mean time of the last requests")
    load_s: float = Field(0.0, description="mean time of the last loads from the node's own files")
    loads: int = Field(0, description="loads into the engine since it started")
    running: tuple[AdapterKey, ...] = Field(
        (), description="versions that requests use now, those with the fewest first"
    )
    leases: int = Field(0, description="requests that hold an adapter in place now")
    kv_use: float | None = Field(None, description="part of the KV cache in use, 0 to 1")
    leaving: tuple[AdapterKey, ...] = Field(
        (), description="versions that go when their last lease ends"
    )
    problems: dict[AdapterKey, str] = Field(
        default_factory=dict, description="adapter version -> why it could not be loaded"
    )
    # Not told where there is none: the release before refuses fields that it does not know.
    trouble: str = Field(
        "",
        description="why what it passes requests on to is not asked now",
        exclude_if=lambda trouble: not trouble,
    )
    tasks: tuple[str, ...] = Field(
        GENERATES,
        description="what its engine can do",
        exclude_if=lambda tasks: tasks == GENERATES,
    )

    def seen_by(self, eyes: Eyes) -> "Replica":
        return Replica(
            id=self.id,
            position=self.position,
            model=self.model,
            node=self.node,
            residency=self.residency.seen_by(eyes),
            loading=eyes.keys(self.loading),
            ongoing=self.ongoing,
            max_ongoing=self.max_ongoing,
            service_s=self.service_s,
            load_s=self.load_s,
            loads=self.loads,
            running=eyes.keys(self.running),
            leases=self.leases,
            kv_use=self.kv_use,
            leaving=eyes.keys(self.leaving),
            problems=eyes.by_key(self.problems),
            trouble=self.trouble,
            tasks=self.tasks,
        )


class Router(_Report):
    """One prompt router."""

    kind: Literal["router"] = "router"
    router: RouterReport | None = None

    def seen_by(self, eyes: Eyes) -> "Router":
        router = self.router.seen_by(eyes) if self.router else None
        return Router(id=self.id, position=self.position, router=router)


class Arrival(Record):
    """An adapter that is being fetched, or checked, and not registered yet."""

    source: str
    owner: str
    since: float
    doing: str = "waiting for its turn"
    done_bytes: int = 0
    of_bytes: int | None = None


class Ingress(_Report):
    """One HTTP process, and what it is asked for."""

    kind: Literal["ingress"] = "ingress"
    demand: dict[str, float] = Field(
        default_factory=dict, description="requests a second by adapter"
    )
    times: dict[str, float] = Field(
        default_factory=dict,
        description="mean seconds of a request by adapter, of those in demand",
    )
    waiting: dict[AdapterKey, int] = Field(
        default_factory=dict, description="requests in its queue by adapter version"
    )
    tenants: dict[str, float] = Field(
        default_factory=dict, description="requests a second by tenant"
    )
    arrivals: tuple[Arrival, ...] = Field(
        (), description="adapters that it brings in; for those who may see everything"
    )

    def seen_by(self, eyes: Eyes) -> "Ingress":
        return Ingress(
            id=self.id,
            position=self.position,
            demand=eyes.by_name(self.demand),
            times=eyes.by_name(self.times),
            waiting=eyes.by_key(self.waiting),
            tenants={who: rate for who, rate in self.tenants.items() if who == eyes.owner},
        )


Report = Annotated[Replica | Router | Ingress, Field(discriminator="kind")]
_REPORT: TypeAdapter[Replica | Router | Ingress] = TypeAdapter(Report)


def read_report(stored: str) -> Replica | Router | Ingress | None:
    """A report as the store has it; None for a kind of process that this release does not know."""
    try:
        return _REPORT.validate_json(stored)
    except ValidationError as e:
        if e.errors()[0]["type"] == "union_tag_invalid":
            return None
        raise


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
    members: tuple[Report, ...]
    deployments: tuple[DeploymentState, ...] = ()
    store: str = Field(description="ok | stale")
    position: str
    plan: PlacementPlan | None = Field(
        None, description="what should be where; for those who may see every adapter"
    )
