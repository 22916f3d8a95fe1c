"""The fleet in virtual time: what must hold of any fleet holds of it."""

import pytest

from benchmarks.simulator import Costs, Simulation
from benchmarks.trace import Load, draw
from cluster.settings import AdmissionSettings, DispatchSettings, PlacementSettings

COSTS = Costs(prefill_s=0.1, token_s=0.02, crowd=0.0, load_s=0.5, swap_s=0.0)
LORA = {"slots": 4, "host_entries": 8}


def play(
    load: Load, *, replicas: int = 4, lora: dict[str, int] = LORA, prefetch: bool = True, **dispatch
):
    admission = AdmissionSettings(prefetch=prefetch)
    settings = DispatchSettings(**dispatch), PlacementSettings(), admission
    return Simulation(replicas, lora, 16, COSTS, *settings).play(draw(load))


def test_every_request_is_answered_and_either_hit_or_loaded():
    load = Load(100, rate=10, duration_s=60)
    outcome = play(load)
    assert len(outcome.ttft_s) == len(draw(load))
    assert min(outcome.ttft_s) == pytest.approx(COSTS.prefill_s)
    assert 0 < outcome.hits < len(outcome.ttft_s)


def test_with_room_for_all_each_adapter_is_loaded_at_most_once_per_replica():
    outcome = play(Load(8, rate=10, duration_s=120))
    assert outcome.loads <= 8 * 4
    assert outcome.summary()["hit_ratio"] > 95


def test_one_replica_beyond_its_room_loads_again_and_again():
    small = play(Load(100, rate=4, duration_s=60), replicas=1)
    large = play(Load(100, rate=4, duration_s=60), replicas=1, lora=LORA | {"host_entries": 100})
    assert small.loads > 2 * large.loads
    assert sum(small.ttft_s) > sum(large.ttft_s)


def test_affinity_hits_more_than_load_alone():
    load = Load(60, rate=20, duration_s=60)
    assert play(load, spread=0.5).hits > play(load, spread=0.0, crowding=1.0, home_s=0.0).hits


def test_the_same_trace_gives_the_same_outcome():
    load = Load(50, rate=10, duration_s=30, burstiness=4.0)
    assert play(load) == play(load)


def test_what_is_loaded_while_requests_wait_is_there_when_their_turn_comes():
    load = Load(100, rate=8, duration_s=60, burstiness=4.0)
    without, with_it = (play(load, replicas=2, prefetch=on) for on in (False, True))
    assert with_it.hits > without.hits
    assert sum(with_it.ttft_s) < sum(without.ttft_s)
