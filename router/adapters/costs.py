"""What a candidate costs now, from the reports of the replicas."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cluster.adapters import AdapterKey, Tier, Version
from cluster.members import Replica, Report
from cluster.settings import BaseModelSettings

# Measured on the vLLM CPU engine with adapters of rank 8 (benchmarks/results/engine-cpu.json):
# a slot from the host cache, and the host cache from prepared files of 10 MB.
_FROM_HOST_S, _FROM_FILES_S, _FILES_BYTES_PER_S = 0.004, 0.05, 200e6
_GB = 1e9


@dataclass(frozen=True)
class Cost:
    """Of one candidate."""

    latency_s: float = 0.0
    price: float = 0.0
    size_gb: float = 0.0
    load: float = 0.0
    residency: Tier | None = None
    is_served: bool = True
    is_elsewhere: bool = False

    def as_dict(self) -> dict[str, float]:
        named = {
            "latency_s": self.latency_s,
            "price": self.price,
            "size_gb": self.size_gb,
            "load": self.load,
        }
        return {name: round(value, 4) for name, value in named.items()}


@dataclass(frozen=True)
class LiveCosts:
    """A snapshot of the replicas, by base model."""

    models: Mapping[str, BaseModelSettings] = field(default_factory=dict)
    replicas: Mapping[str, tuple[Replica, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, models: Iterable[BaseModelSettings], members: Iterable[Report]) -> "LiveCosts":
        replicas: dict[str, list[Replica]] = {}
        for member in members:
            if isinstance(member, Replica):
                replicas.setdefault(member.model, []).append(member)
        return cls({m.id: m for m in models}, {k: tuple(v) for k, v in replicas.items()})

    def base_model(self, model: str) -> Cost:
        """Of a request that needs no adapter."""
        replicas = tuple(m for m in self.replicas.get(model, ()) if not m.trouble)
        wait = min((_queue_s(m) for m in replicas), default=0.0)
        return Cost(
            wait,
            self._price(model),
            0.0,
            _load(replicas),
            is_served=bool(replicas) or not self.replicas,
            is_elsewhere=model in self.models and self.models[model].is_elsewhere,
        )

    def adapter(self, model: str, key: AdapterKey, version: Version) -> Cost:
        """Of a request for `key` (``name@version``): on the replica where it is soonest."""
        able = [m for m in self.replicas.get(model, ()) if key not in m.problems]
        replicas = tuple(able)
        load_s = {member.id: _load_s(member, key, version) for member in replicas}
        soonest = min(replicas, key=lambda m: load_s[m.id] + _queue_s(m), default=None)
        tiers = [tier for m in replicas if (tier := m.residency.tier(key)) is not None]
        return Cost(
            load_s[soonest.id] + _queue_s(soonest) if soonest else 0.0,
            self._price(model),
            version.size_bytes / _GB,
            _load(replicas),
            min(tiers, key=list(Tier).index, default=None),
            # Before the first reports nothing is known, which is no reason to refuse.
            is_served=bool(replicas) or not self.replicas,
        )

    def _price(self, model: str) -> float:
        return self.models[model].weighed_price if model in self.models else 0.0


def _load_s(member: Replica, key: AdapterKey, version: Version) -> float:
    tier = member.residency.tier(key)
    if tier is Tier.SLOT:
        return 0.0
    if tier is Tier.HOST:
        return _FROM_HOST_S
    return _FROM_FILES_S + version.size_bytes / _FILES_BYTES_PER_S


def _queue_s(member: Replica) -> float:
    """Until one of the requests before makes room, if there is none."""
    if not member.max_ongoing:
        return 0.0
    waiting = max(0, member.ongoing + 1 - member.max_ongoing)
    return waiting * member.service_s / member.max_ongoing


def _load(replicas: tuple[Replica, ...]) -> float:
    """Share of the places that are taken."""
    places = sum(m.max_ongoing for m in replicas)
    return sum(m.ongoing for m in replicas) / places if places else 0.0
