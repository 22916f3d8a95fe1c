"""How much each adapter is asked for."""

import pytest

from cluster.demand import Day, Demand, foreseen, mean_times, total_demand
from cluster.members import Ingress, Replica


def asked(demand: Demand, name: str, rate: float, since: float, until: float) -> None:
    for i in range(round((until - since) * rate)):
        demand.count(name, since + i / rate)


def test_a_steady_rate_is_told_as_it_is():
    demand = Demand(half_life_s=10)
    asked(demand, "a", 20, 0, 100)
    assert demand.rates(100)["a"] == pytest.approx(20, rel=0.05)


def test_looking_changes_nothing():
    looked, other = Demand(half_life_s=10), Demand(half_life_s=10)
    for second in range(60):
        for demand in (looked, other):
            asked(demand, "a", 5, second, second + 1)
        looked.rates(second + 1)
    assert looked.rates(60)["a"] == pytest.approx(other.rates(60)["a"])


def test_it_is_halved_in_a_half_life_and_forgotten_after_five():
    demand = Demand(half_life_s=10)
    demand.count("a", 0)
    first = demand.rates(0)["a"]
    assert demand.rates(10)["a"] == pytest.approx(first / 2)
    assert demand.rates(60) == {}


def test_of_too_many_the_least_asked_for_are_forgotten():
    demand = Demand(half_life_s=10, most=2)
    for i, times in enumerate((3, 1, 2)):
        for _ in range(times):
            demand.count(f"a{i}", 0)
    assert set(demand.rates(0)) == {"a0", "a2"}


def test_after_days_without_a_look_the_numbers_are_still_numbers():
    demand = Demand(half_life_s=1)
    demand.count("a", 0)
    demand.count("b", 500_000)
    assert demand.rates(500_000) == {"b": pytest.approx(0.693, rel=0.01)}


def test_on_a_machine_that_is_up_for_long_the_first_look_is_empty():
    assert Demand(half_life_s=60).rates(1e7) == {}


def test_ingresses_add_up():
    members = [
        Ingress(id="i1", demand={"a": 1.0, "b": 2.0}),
        Ingress(id="i2", demand={"a": 0.5}),
        Replica(id="r", model="echo"),
    ]
    assert total_demand(members) == {"a": 1.5, "b": 2.0}


def test_an_ingress_that_is_asked_more_says_more_about_the_time():
    members = [
        Ingress(id="i1", demand={"a": 3.0}, times={"a": 1.0}),
        Ingress(id="i2", demand={"a": 1.0, "b": 1.0}, times={"a": 5.0}),
    ]
    assert mean_times(members) == {"a": 2.0}


NOON = 12 * 3600.0


def a_quarter(start: float, rates: dict[str, float]) -> Day:
    """One that has looked once a minute until the quarter had ended."""
    day, at = Day(), start
    while (ended := day.see(at, rates)) is None:
        at += 60.0
    assert ended == Day.quarter(start)
    return day


def test_what_is_usual_is_learned_by_the_quarter_hour_and_older_days_fade():
    assert Day.quarter(NOON) == 48
    usual = a_quarter(NOON, {"lunch": 2.0}).learn({})
    assert usual == {"lunch": pytest.approx(1.0, rel=0.1)}
    usual = a_quarter(NOON, {"lunch": 2.0}).learn(usual)
    assert usual["lunch"] == pytest.approx(1.5, rel=0.1)
    # Nobody asks any more: it fades, and then it is gone.
    for _ in range(30):
        usual = a_quarter(NOON, {}).learn(usual)
    assert usual == {}


def test_a_part_of_a_quarter_counts_for_its_part():
    day = a_quarter(NOON + 600, {"late": 4.0})
    assert day.learn({})["late"] == pytest.approx(0.5 * 240 / 900 * 4.0, rel=0.01)


def test_a_planner_that_saw_nothing_changes_nothing():
    day = Day()
    assert day.see(NOON, {"a": 1.0}) is None
    assert day.see(NOON + 86_400 - 900, {"a": 1.0}) == 48
    assert day.learn({"a": 3.0}) == {"a": 3.0}


def test_demand_is_raised_to_what_is_usual_and_never_lowered():
    assert foreseen({"now": 2.0, "both": 1.0}, {"both": 3.0, "soon": 1.0}) == {
        "now": 2.0,
        "both": 3.0,
        "soon": 1.0,
    }
