"""Who is next."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from router.replicas.fair_queue import FairQueue, Waiting


def everyone(_):
    return True


def drain(queue, may_start=everyone):
    order = []
    while (waiting := queue.pop(may_start)) is not None:
        order.append(waiting)
    return order


def test_tenants_take_turns_however_many_adapters_and_requests_one_has():
    queue = FairQueue()
    for i in range(90):
        queue.push(Waiting(("greedy", f"a{i % 9}"), tokens=10))
    for _ in range(10):
        queue.push(Waiting(("modest", "b"), tokens=10))
    first = Counter(waiting.flow[0] for waiting in drain(queue)[:20])
    assert first == {"greedy": 10, "modest": 10}


def test_turns_are_counted_in_tokens():
    queue = FairQueue()
    for _ in range(40):
        queue.push(Waiting(("long", "a"), tokens=30))
        queue.push(Waiting(("short", "a"), tokens=10))
    first = Counter(waiting.flow[0] for waiting in drain(queue)[:40])
    assert first == {"long": 10, "short": 30}


def test_adapters_of_a_tenant_take_turns():
    queue = FairQueue()
    for _ in range(10):
        queue.push(Waiting(("t", "hot")))
    queue.push(Waiting(("t", "rare")))
    assert "rare" in [waiting.flow[1] for waiting in drain(queue)[:2]]


def test_one_flow_keeps_its_order():
    queue = FairQueue()
    sent = [Waiting(("t", "a"), since=i) for i in range(5)]
    for waiting in sent:
        queue.push(waiting)
    assert drain(queue) == sent


def test_higher_priorities_come_before_all_lower_ones():
    queue = FairQueue()
    for priority in (0, -5, 7, 0):
        queue.push(Waiting(("t", "a"), priority=priority))
    assert [w.priority for w in drain(queue)] == [7, 0, 0, -5]


def test_those_who_cannot_start_are_passed_and_keep_their_place():
    queue = FairQueue()
    cold = Waiting(("t", "cold"))
    queue.push(cold)
    queue.push(Waiting(("t", "warm")))
    assert [w.flow[1] for w in drain(queue, lambda w: w.flow[1] == "warm")] == ["warm"]
    assert drain(queue) == [cold]


def test_who_comes_late_has_saved_nothing_up():
    queue = FairQueue()
    for _ in range(30):
        queue.push(Waiting(("early", "a")))
    for _ in range(10):
        queue.pop(everyone)
    for _ in range(30):
        queue.push(Waiting(("late", "a")))
    first = Counter(w.flow[0] for w in drain(queue)[:20])
    assert first == {"early": 10, "late": 10}


def test_of_a_full_queue_the_newest_of_the_greediest_goes():
    queue = FairQueue()
    for i in range(3):
        queue.push(Waiting(("greedy", f"a{i}"), since=i))
    queue.push(Waiting(("modest", "b"), since=9))
    assert queue.newest_of_most().since == 2
    queue.push(Waiting(("patient", "c"), priority=-1, since=5))
    assert queue.newest_of_most().flow[0] == "patient"


def test_what_is_ahead_is_counted_by_turns():
    queue = FairQueue()
    for i in range(50):
        queue.push(Waiting(("greedy", "a"), since=i))
    modest = Waiting(("modest", "b"), since=60)
    queue.push(modest)
    assert queue.ahead_of(modest) == 1
    late = Waiting(("greedy", "a"), since=70)
    queue.push(late)
    assert queue.ahead_of(late) == 51
    queue.push(Waiting(("urgent", "c"), priority=1, since=80))
    assert queue.ahead_of(modest) == 2


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from("ab"), st.integers(-1, 1))))
def test_nobody_gets_lost(pushed):
    queue = FairQueue()
    sent = [Waiting((tenant, key), priority=priority) for tenant, key, priority in pushed]
    for waiting in sent:
        queue.push(waiting)
    for waiting in sent[::3]:
        queue.remove(waiting)
    assert len(queue) == len(sent) - len(sent[::3])
    assert set(drain(queue)) == set(sent) - set(sent[::3])
    assert len(queue) == 0


def test_what_is_settled_counts_for_the_next_turn_and_only_while_somebody_waits():
    queue = FairQueue()
    for _ in range(3):
        queue.push(Waiting(("a", None), tokens=10))
        queue.push(Waiting(("b", None), tokens=10))
    first, second = queue.pop(everyone), queue.pop(everyone)
    queue.settle(first, 0)
    queue.settle(second, 30)
    assert [queue.pop(everyone).flow[0] for _ in range(2)] == [first.flow[0]] * 2
    late = drain(queue)[-1]
    queue.push(Waiting(("a", None), tokens=10))
    queue.push(Waiting(("b", None), tokens=10))
    queue.settle(late, -1000)  # of counters that were forgotten since
    other = "b" if late.flow[0] == "a" else "a"
    queue.push(Waiting((other, None), tokens=10))
    turns = [w.flow[0] for w in drain(queue)]
    assert sorted(turns[:2]) == ["a", "b"], "it has no credit"
