"""From what is predicted and what it costs to the choice. Pure: values in, a decision out.

    choose argmax_c  quality_c - sum_j lambda_j cost_cj      under the hard constraints

(Tryage 2023, eq. 3, with quality for minus the loss). Among candidates that are nearly as good,
the one that can answer soonest.
"""

from dataclasses import dataclass

from cluster.decisions import Candidate
from cluster.settings import CostWeightSettings
from router.adapters.constraints import Constraints, CostWeights
from router.adapters.costs import Cost

SHOWN_CANDIDATES = 5
NOT_SERVED = "no live replica can serve it"


@dataclass(frozen=True)
class Option:
    """A candidate that the constraints on cards leave.

    Attributes:
        doubt: standard deviation of the quality, as far as it was learnt from outcomes.
    """

    adapter: str | None
    model: str
    quality: float
    cost: Cost
    doubt: float = 0.0

    @property
    def name(self) -> str:
        return self.adapter or self.model


@dataclass(frozen=True)
class Choice:
    """`best` is None when the constraints leave nothing; `ranked` is best first.

    Attributes:
        passed_over: what is a little better than the best, which can answer sooner.
        explored_over: what is expected to be better, where the best is tried to learn of it.
    """

    best: Option | None
    ranked: tuple[tuple[Option, float], ...]
    excluded: dict[str, str]
    passed_over: Option | None = None
    explored_over: Option | None = None

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        return tuple(
            Candidate(
                adapter=option.adapter,
                model=option.model,
                score=round(option.quality, 4),
                cost=round(cost, 4),
                costs=option.cost.as_dict(),
                residency=option.cost.residency,
            )
            for option, cost in self.ranked[:SHOWN_CANDIDATES]
        )


def choose(
    options: list[Option],
    constraints: Constraints,
    defaults: CostWeightSettings,
    near_tie: float,
) -> Choice:
    """Args: near_tie: difference in quality less cost that a shorter wait outweighs."""
    excluded = {o.name: why for o in options if (why := _objection(o.cost, constraints))}
    weights = _weights(constraints.weights, defaults)
    priced = [(o, _cost(o.cost, weights)) for o in options if o.name not in excluded]
    ranked = sorted(priced, key=lambda p: p[1] - p[0].quality)
    if not ranked:
        return Choice(None, (), excluded)
    (first, cost), *others = ranked
    utility = first.quality - cost
    near = [o for o, c in others if utility - (o.quality - c) <= near_tie]
    soonest = min([first, *near], key=lambda o: o.cost.latency_s)
    if soonest.cost.latency_s < first.cost.latency_s:
        return Choice(soonest, tuple(ranked), excluded, passed_over=first)
    return Choice(first, tuple(ranked), excluded)


def _weights(asked: CostWeights, defaults: CostWeightSettings) -> dict[str, float]:
    return defaults.model_dump() | asked.model_dump(exclude_none=True)


def _cost(cost: Cost, weights: dict[str, float]) -> float:
    return (
        weights["latency"] * cost.latency_s
        + weights["price"] * cost.price
        + weights["size"] * cost.size_gb
        + weights["load"] * cost.load
    )


def _objection(cost: Cost, constraints: Constraints) -> str | None:
    if constraints.local_only and cost.is_elsewhere:
        return "local_only: it is elsewhere"
    if constraints.max_latency_s is not None and cost.latency_s > constraints.max_latency_s:
        return f"max_latency_s: {cost.latency_s:.3g} s expected"
    if constraints.max_price is not None and cost.price > constraints.max_price:
        return f"max_price: costs {cost.price:.3g}"
    # Last: it may be served soon, or by another, and what it must not be still holds then.
    return None if cost.is_served else NOT_SERVED
