"""Which replica a request goes to."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.adapters import AdapterKey
from cluster.settings import DispatchSettings
from router.replicas.dispatch import Ask, Holding, ReplicaView, Standing, first_missing, rank

SETTINGS = DispatchSettings()
A, B = AdapterKey("a@1"), AdapterKey("b@1")


def replica(id, *, running=None, ongoing=None, slot_capacity=2, **changes):
    running = running or {}
    tiers = (frozenset(changes.pop(tier, ())) for tier in ("slots", "host", "loading"))
    full = {
        "held": Holding(*tiers, slot_capacity=slot_capacity, host_capacity=4),
        "running": sorted(running, key=running.get),
        "ongoing": sum(running.values()) if ongoing is None else ongoing,
        "max_ongoing": 8,
        "service_s": 1.0,
    }
    return ReplicaView(id, **(full | changes))


def best(key, *replicas, **settings):
    return rank(Ask(key), replicas, SETTINGS.model_copy(update=settings))[0]


def test_a_slot_is_better_than_host_memory_and_that_than_a_load():
    stalls = [
        replica("room"),
        replica("slot", slots=[A]),
        replica("host", host=[A]),
        replica("coming", loading=frozenset({A})),
        replica("evictable", host=["w@1", "x@1", "y@1", "z@1"]),
        replica("saturated", running={"x@1": 1, "y@1": 1}),
    ]
    found = [o.standing for o in rank(Ask(A), stalls, SETTINGS)]
    assert found == list(Standing)


def test_who_has_it_in_a_slot_is_asked_however_fast_a_load_is_elsewhere():
    names = [AdapterKey(f"x{i}@1") for i in range(20)]
    for key in names:
        # Some of them have their home on the other one.
        holder, quick = replica("holder", slots=[key]), replica("quick", load_s=1e-6)
        assert best(key, holder, quick).replica == "holder"


def test_a_load_is_worth_it_where_the_holder_is_crowded():
    idle, holder = replica("idle"), replica("holder", slots=[A], running={A: 3})
    assert best(A, idle, holder, crowding=0.1).replica == "holder"
    assert best(A, idle, holder, crowding=0.5).replica == "idle"


def test_affinity_ends_where_a_replica_has_more_than_its_share():
    holder = replica("holder", slots=[A], running={A: 6}, service_s=0.0)
    others = [replica(f"r{i}", ongoing=2) for i in range(3)]
    assert best(A, holder, *others, spread=0.25).is_over_share is False
    assert best(A, holder, *others, spread=0.25).replica != "holder"
    assert best(A, holder, *others, spread=3).replica == "holder"


def test_at_small_loads_the_share_does_not_matter():
    holder = replica("holder", slots=[A], running={A: 3})
    assert best(A, holder, replica("idle")).replica == "holder"


def test_unknown_adapters_have_one_home_whoever_asks():
    stalls = [replica(f"r{i}") for i in range(5)]

    def homes(version: int, *replicas) -> list[str]:
        keys = [AdapterKey.of(f"x{i}", version) for i in range(50)]
        return [best(key, *replicas).replica for key in keys]

    assert homes(1, *stalls) == homes(2, *reversed(stalls))
    assert len(set(homes(1, *stalls))) == 5


def test_a_replica_that_could_not_load_it_is_asked_only_when_all_could_not():
    broken = replica("broken", slots=[A], problems={A})
    assert best(A, broken, replica("fine")).replica == "fine"
    assert best(A, broken).replica == "broken"


def test_a_cached_prompt_start_counts():
    stalls = [replica("one", slots=[A]), replica("two", slots=[A])]
    for cached in ("one", "two"):
        found = rank(Ask(A, {cached: 1000}), stalls, SETTINGS)
        assert found[0].replica == cached


def test_between_equals_the_nearer_one():
    stalls = [replica("far", slots=[A], node="x"), replica("near", slots=[A], node="y")]
    settings = SETTINGS.model_copy(update={"home_s": 0.0})
    assert rank(Ask(A), stalls, settings, node="y")[0].replica == "near"


def test_the_base_model_goes_where_least_is_going_on():
    busy = replica("busy", running={A: 1, B: 1})
    assert best(None, busy, replica("idle")).replica == "idle"
    assert best(None, busy).may_start


def test_hashing_alone_ignores_where_adapters_are():
    stalls = [replica(f"r{i}") for i in range(5)]
    home = best(A, *stalls).replica
    moved = [replica(s.id, slots=[A] if s.id != home else []) for s in stalls]
    assert best(A, *moved, policy="hash").replica == home
    assert best(A, *moved).replica != home


@given(
    ongoing=st.lists(st.integers(0, 8), min_size=1, max_size=8),
    slots=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_a_full_replica_is_never_first_while_another_has_a_place(ongoing, slots):
    stalls = [
        replica(f"r{i}", ongoing=n, slots=[A] if slots[i] else []) for i, n in enumerate(ongoing)
    ]
    options = rank(Ask(A), stalls, SETTINGS)
    assert {o.replica for o in options} == {s.id for s in stalls}
    assert options[0].is_full == all(s.is_full for s in stalls)


def test_what_is_waited_for_and_nowhere_goes_to_the_replica_that_would_be_best():
    busy, idle = replica("busy", slots=[B], running={B: 6}), replica("idle", running={"x@1": 1})
    waiting = [B, A, AdapterKey("c@1")]

    def missing(of, *replicas):
        return first_missing(waiting, of, replicas, SETTINGS)

    assert missing("idle", busy, idle) == A, "b is there, and c comes later"
    assert missing("busy", busy, idle) is missing("gone", busy, idle) is missing("idle") is None


def test_what_is_on_its_way_or_cannot_be_loaded_is_not_missing():
    coming = replica("coming", loading=frozenset({A}))
    begun = replica("begun", running={B: 1})
    assert first_missing([A, B], "coming", [coming, begun], SETTINGS) is None
    broken = replica("r", problems=(A,))
    assert first_missing([A, B], "r", [broken], SETTINGS) == B
