import pytest

from cluster.adapters import Tier
from cluster.members import Replica, Residency
from cluster.settings import BaseModelSettings, CostWeightSettings
from router.adapters.constraints import Constraints, CostWeights, constraints_in_headers, take_flags
from router.adapters.costs import Cost, LiveCosts
from router.adapters.policy import Option, choose
from tests.test_store import version

FREE = CostWeightSettings()


def option(name: str, quality: float, **cost) -> Option:
    return Option(name, "m", quality, Cost(**cost))


def pick(options, near_tie=0.0, defaults=FREE, **constraints):
    return choose(options, Constraints(**constraints), defaults, near_tie)


def test_the_best_quality_wins_when_nothing_costs():
    assert pick([option("a", 0.4), option("b", 0.6)]).best.name == "b"


def test_a_cost_is_taken_from_the_quality_that_it_is_worth():
    options = [option("slow", 0.9, latency_s=2), option("quick", 0.6)]
    assert pick(options, weights=CostWeights(latency=0.1)).best.name == "slow"
    assert pick(options, weights=CostWeights(latency=0.2)).best.name == "quick"
    assert pick(options, defaults=CostWeightSettings(latency=0.2)).best.name == "quick"
    unasked = pick(
        options, defaults=CostWeightSettings(latency=0.2), weights=CostWeights(latency=0)
    )
    assert unasked.best.name == "slow"


def test_what_a_constraint_excludes_is_told_with_the_constraint():
    options = [option("dear", 0.9, price=5, latency_s=1), option("cheap", 0.5, price=1)]
    choice = pick(options, max_price=2)
    assert (choice.best.name, choice.excluded) == ("cheap", {"dear": "max_price: costs 5"})
    assert "max_latency_s" in pick(options, max_latency_s=0.5).excluded["dear"]
    assert pick(options, max_price=0.5).best is None


def test_among_near_ties_the_one_that_is_there_wins_and_the_choice_says_so():
    options = [option("cold", 0.52, latency_s=0.5), option("warm", 0.48, latency_s=0)]
    assert pick(options, near_tie=0.01).best.name == "cold"
    choice = pick(options, near_tie=0.05)
    assert (choice.best.name, choice.passed_over.name) == ("warm", "cold")
    assert [c.adapter for c in choice.candidates] == ["cold", "warm"]


def replica(slots=(), host=(), **fields) -> Replica:
    held = Residency(slots=slots, host=host, slot_capacity=4, host_capacity=8)
    return Replica(id=f"r{slots}{host}", model="m", residency=held, **fields)


def costs(*members: Replica) -> LiveCosts:
    return LiveCosts.of([BaseModelSettings(id="m", path="p", price=3)], members)


def test_a_cost_is_that_of_the_replica_where_the_adapter_is_soonest():
    weights = version().model_copy(update={"size_bytes": 100_000_000})
    here = costs(replica(), replica(slots=("a@1",))).adapter("m", "a@1", weights)
    assert (here.latency_s, here.residency, here.price) == (0, Tier.SLOT, 3)
    near = costs(replica(), replica(host=("a@1",))).adapter("m", "a@1", weights)
    away = costs(replica()).adapter("m", "a@1", weights)
    assert 0 < near.latency_s < away.latency_s
    assert (near.residency, away.residency) == (Tier.HOST, None)


def test_a_full_replica_makes_wait_and_its_load_is_told():
    full = replica(slots=("a@1",), ongoing=8, max_ongoing=4, service_s=2.0)
    cost = costs(full).adapter("m", "a@1", version())
    assert cost.latency_s == pytest.approx(2.5)
    assert cost.load == 2
    idle = replica(ongoing=0, max_ongoing=4, service_s=2.0)
    both = costs(full, idle).adapter("m", "a@1", version())
    assert both.latency_s < 0.1, "loading elsewhere is sooner than waiting here"
    assert costs(full, idle).base_model("m").latency_s == 0


def test_without_replicas_nothing_is_known_and_nothing_breaks():
    assert costs().adapter("m", "a@1", version()).latency_s == 0
    assert LiveCosts().base_model("m") == Cost()


def test_headers_carry_constraints():
    headers = {
        "x-roundhouse-tags": "fast, short",
        "x-roundhouse-max-latency-s": "0.5",
        "x-roundhouse-weight-price": "0.1",
        "x-roundhouse-base-model": "m",
        "x-request-id": "1",
    }
    found = Constraints(**constraints_in_headers(headers))
    assert found.tags == ("fast", "short")
    assert (found.max_latency_s, found.weights.price, found.base_model) == (0.5, 0.1, "m")
    assert constraints_in_headers({}) == {}


@pytest.mark.parametrize(
    ("text", "left", "weights"),
    [
        ("[Flag: fastest] hello", "hello", {"latency": 1.0, "load": 1.0}),
        ("hello [flag:cheapest] you", "hello you", {"price": 1.0}),
        ("[flag: unknown] hello", "[flag: unknown] hello", {}),
        ("  no flag  ", "  no flag  ", {}),
    ],
)
def test_flags_are_taken_out_of_the_prompt(text, left, weights):
    assert take_flags(text) == (left, weights)
