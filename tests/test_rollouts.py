"""Versions in motion: which version answers, what the gate measures, how a rollout ends."""

import pytest

from cluster import rollouts
from cluster.adapters import Adapter, Card, EvaluationPrompt, Gate, Version
from cluster.errors import Conflict, InvalidRequest, ModelNotFound

NOW = 1000.0


def version(number: int) -> Version:
    return Version(
        number=number,
        digest=f"d{number}",
        size_bytes=1,
        rank=4,
        target_modules=("q_proj",),
        created_at=0,
    )


@pytest.fixture
def adapter() -> Adapter:
    """Three versions; the first is stable."""
    return Adapter(
        card=Card(name="cron", base_model="echo"),
        versions={n: version(n) for n in (1, 2, 3)},
        aliases={"latest": 3, "stable": 1},
        revision=1,
    )


def begin(adapter: Adapter, number: int = 2, percents=(10, 50, 100), **more) -> Adapter:
    fields = {"percents": percents, "step_s": 60.0, "gate": Gate(), "now": NOW} | more
    return rollouts.begin(adapter, adapter.versions[number], **fields)


def share(adapter: Adapter) -> float:
    """Of 10,000 keys, how many get the version that is rolled out."""
    return sum(rollouts.pick(adapter, f"user-{i}").number != 1 for i in range(10_000)) / 10_000


def test_a_new_rollout_takes_no_request_before_it_is_checked(adapter):
    begun = begin(adapter)
    assert rollouts.is_due(begun.rollout, NOW)
    assert share(begun) == 0
    assert begun.serving == (adapter.versions[1], adapter.versions[2])


def test_it_goes_through_its_shares_and_becomes_stable(adapter):
    step = begin(adapter)
    for expected in (0.10, 0.50):
        step = rollouts.advance(step, None, NOW)
        assert share(step) == pytest.approx(expected, abs=0.02)
        assert not rollouts.is_due(step.rollout, NOW + 59)
        assert rollouts.is_due(step.rollout, NOW + 60)
    done = rollouts.advance(step, None, NOW)
    assert done.rollout is None
    assert (done.aliases["stable"], done.previous) == (2, (1,))
    assert done.last_rollout.outcome == "done"
    assert share(done) == 1


def test_a_key_that_got_the_new_version_keeps_it_while_the_share_grows(adapter):
    small = rollouts.advance(begin(adapter), None, NOW)
    large = rollouts.advance(small, None, NOW)
    drawn = [k for k in map(str, range(2000)) if rollouts.pick(small, k).number == 2]
    assert drawn
    assert all(rollouts.pick(large, k).number == 2 for k in drawn)


def test_two_rollouts_draw_different_keys(adapter):
    of_two = rollouts.advance(begin(adapter, 2), None, NOW)
    of_three = rollouts.advance(begin(adapter, 3), None, NOW)
    keys = [str(i) for i in range(2000)]
    drawn = [{k for k in keys if rollouts.pick(a, k).number != 1} for a in (of_two, of_three)]
    assert len(drawn[0] & drawn[1]) < 0.3 * len(drawn[0])


def test_a_share_below_100_is_held_and_checked_again(adapter):
    held = rollouts.advance(begin(adapter, percents=(20,)), None, NOW)
    again = rollouts.advance(held, None, NOW + 60)
    assert again.rollout.percent == 20
    assert again.rollout.next_at == NOW + 120


def test_new_shares_for_a_running_rollout_take_nobody_off_it(adapter):
    running = rollouts.advance(begin(adapter, percents=(20,)), None, NOW)
    widened = begin(running, percents=(10, 60, 100))
    assert widened.rollout.percents == (20, 60, 100)
    assert widened.rollout.percent == 20
    with pytest.raises(Conflict, match="roll it back"):
        begin(running, percents=(5, 10))


def test_another_version_must_wait_for_its_turn(adapter):
    with pytest.raises(Conflict, match="cron@2 is under way"):
        begin(begin(adapter, 2), 3)
    with pytest.raises(Conflict, match="stable version already"):
        begin(adapter, 1)


def test_stopping_gives_all_requests_back(adapter):
    running = rollouts.advance(begin(adapter), None, NOW)
    stopped = rollouts.stop(running, "worse", None, NOW)
    assert share(stopped) == 0
    assert (stopped.last_rollout.outcome, stopped.last_rollout.reason) == ("rolled_back", "worse")


def test_rolling_back_stops_a_rollout_first_and_then_goes_back_by_one(adapter):
    done = rollouts.advance(begin(adapter, percents=(100,)), None, NOW)
    running = rollouts.advance(begin(done, 3, percents=(10, 100)), None, NOW)
    once = rollouts.roll_back(running, None, NOW)
    assert (once.aliases["stable"], once.rollout) == (2, None)
    twice = rollouts.roll_back(once, None, NOW)
    assert twice.aliases["stable"] == 1
    with pytest.raises(Conflict, match="no earlier"):
        rollouts.roll_back(twice, None, NOW)


def test_rolling_back_to_a_named_version(adapter):
    back = rollouts.roll_back(adapter, adapter.versions[3], NOW)
    assert back.aliases["stable"] == 3
    with pytest.raises(Conflict, match="already"):
        rollouts.roll_back(adapter, adapter.versions[1], NOW)


def test_the_gate_looks_at_accuracy_and_at_negative_flips():
    better = rollouts.compare([True, False, True], [True, True, True], replica="r", at=NOW)
    assert rollouts.why_not(better, Gate()) is None
    worse = rollouts.compare([True] * 4, [True] * 3 + [False], replica="r", at=NOW)
    assert (worse.accuracy_before, worse.accuracy_after) == (1.0, 0.75)
    assert "accuracy fell from 1.000 to 0.750" in rollouts.why_not(worse, Gate())
    # As right as before on the whole, but on other prompts.
    swapped = rollouts.compare([True, False] * 5, [False, True] * 5, replica="r", at=NOW)
    assert swapped.negative_flips == 0.5
    assert "right before and are wrong now" in rollouts.why_not(swapped, Gate())
    assert rollouts.why_not(swapped, Gate(max_negative_flips=0.5)) is None


@pytest.mark.parametrize(
    ("match", "answer", "accepted"),
    [("exact", " 4 \n", True), ("exact", "4!", False), ("contains", "it is 4!", True)],
)
def test_an_answer_is_held_against_the_expected_one(match, answer, accepted):
    assert EvaluationPrompt(prompt="2+2", expected="4", match=match).accepts(answer) is accepted


def test_aliases_of_ones_own(adapter):
    named = rollouts.set_alias(adapter, "blue", adapter.versions[2])
    assert named.resolve("blue").number == 2
    assert "blue" not in rollouts.remove_alias(named, "blue").aliases
    with pytest.raises(InvalidRequest, match="a rollout moves it"):
        rollouts.set_alias(adapter, "stable", adapter.versions[2])
    with pytest.raises(ModelNotFound):
        rollouts.remove_alias(adapter, "green")


def test_a_version_in_use_stays_and_latest_moves_on(adapter):
    without = rollouts.remove_version(adapter, adapter.versions[3])
    assert (without.aliases["latest"], sorted(without.versions)) == (2, [1, 2])
    with pytest.raises(Conflict, match="alias 'stable'"):
        rollouts.remove_version(adapter, adapter.versions[1])
    with pytest.raises(Conflict, match="a rollout"):
        rollouts.remove_version(begin(adapter, 2), adapter.versions[2])
