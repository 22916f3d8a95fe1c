"""What people are told of what has changed."""

from cluster.adapters import Adapter, AdapterKey, Card, Evaluation, Rollout, RolloutEnd, Version
from cluster.members import Replica, Residency
from deployments.planner.journal import adapter_news, member_news


def adapter(**changes) -> Adapter:
    versions = {
        n: Version(
            number=n, digest=f"d{n}", size_bytes=1, rank=8, target_modules=("q",), created_at=0
        )
        for n in range(1, changes.pop("versions", 1) + 1)
    }
    fields = {
        "card": Card(name="cron", base_model="m"),
        "versions": versions,
        "aliases": {"latest": max(versions), "stable": 1},
        "revision": 1,
    }
    return Adapter(**(fields | changes))


def told(before: Adapter | None, after: Adapter | None) -> list[str]:
    known = {} if before is None else {"cron": before}
    return [h.text for h in adapter_news(known, {"cron": after})]


ROLLOUT = Rollout(version=2, percents=(10, 100), step_s=1, next_at=0, gate=None)


def test_registrations_and_removals():
    assert told(None, adapter()) == ["cron@1 was registered"]
    assert told(adapter(), adapter(versions=2)) == ["cron@2 was registered, a new version"]
    assert told(adapter(), None) == ["cron was deleted"]
    assert told(None, None) == []
    assert told(adapter(), adapter()) == []


def test_an_edited_card_says_what_was_edited():
    edited = adapter(card=Card(name="cron", base_model="m", pinned=True))
    assert told(adapter(), edited) == ["the card of cron was edited: pinned"]


def test_a_rollout_is_told_from_step_to_step():
    two = adapter(versions=2)
    checking = two.model_copy(update={"rollout": ROLLOUT})
    first = two.model_copy(update={"rollout": ROLLOUT.model_copy(update={"step": 0})})
    assert told(two, checking) == ["cron@2 is being rolled out"]
    assert told(checking, first) == ["cron@2 gets 10 % of the requests"]
    end = RolloutEnd(version=2, outcome="done", reason="", evaluation=None, at=1)
    done = two.model_copy(update={"last_rollout": end, "aliases": {"latest": 2, "stable": 2}})
    assert told(first, done) == ["cron@2 is rolled out", "cron is now version 2, before 1"]


def test_a_gate_tells_what_it_found():
    two = adapter(versions=2).model_copy(update={"rollout": ROLLOUT})
    found = Evaluation(
        prompts=20, accuracy_before=0.9, accuracy_after=0.8, negative_flips=0.1, replica="r", at=1
    )
    judged = two.model_copy(update={"rollout": ROLLOUT.model_copy(update={"evaluation": found})})
    assert told(two, judged) == [
        "cron@2 was held against the stable version: right 90% before, 80% now, newly wrong 10% of "
        "20 prompts"
    ]
    assert told(judged, judged) == []


def test_a_rollback_is_bad_news_with_its_reason():
    two = adapter(versions=2)
    end = RolloutEnd(version=2, outcome="rolled_back", reason="worse", evaluation=None, at=1)
    (news,) = adapter_news({"cron": two}, {"cron": two.model_copy(update={"last_rollout": end})})
    assert news.text == "cron@2 was rolled back: worse"
    assert news.is_bad


def replica(**changes) -> Replica:
    return Replica(id="r1", model="m", node="n1").model_copy(update=changes)


def test_replicas_come_and_go():
    (come,) = member_news([], [replica()], {})
    assert (come.text, come.is_bad) == ("replica of m r1 is there on n1", False)
    (gone,) = member_news([replica()], [], {})
    assert (gone.text, gone.is_bad) == ("replica of m r1 is gone", True)


def test_loads_and_failures_are_told_once():
    held = replica(residency=Residency(host=("cron@1",)))
    failed = held.model_copy(update={"problems": {AdapterKey("sql@1"): "damaged"}})
    assert [h.text for h in member_news([replica()], [held], {})] == ["cron@1 was loaded on r1"]
    moved = replica(residency=Residency(slots=("cron@1",)))
    assert list(member_news([held], [moved], {})) == []
    (news,) = member_news([held], [failed], {})
    assert (news.text, news.is_bad) == ("r1 cannot load sql@1: damaged", True)
    assert list(member_news([failed], [failed], {})) == []


PRIVATE = Card(name="cron", base_model="m", visibility="private", owner="a")


def told_to(before: Adapter | None, after: Adapter | None) -> set[str | None]:
    known = {} if before is None else {"cron": before}
    return {h.owner for h in adapter_news(known, {"cron": after})}


def test_news_of_a_private_adapter_are_for_its_owner_whatever_becomes_of_it():
    public, private = adapter(), adapter(card=PRIVATE)
    assert told_to(None, public) == told_to(public, None) == {""}
    assert told_to(None, private) == told_to(private, None) == {"a"}
    assert told_to(private, public) == told_to(public, private) == {"a"}


def test_loads_are_told_to_those_who_may_know_of_the_version():
    keys = (AdapterKey("cron@1"), AdapterKey("cron@7"), AdapterKey("gone@1"))
    held = replica(residency=Residency(host=keys[:2]), problems={keys[2]: "damaged"})
    for card, owner in ((PRIVATE, "a"), (Card(name="cron", base_model="m"), "")):
        news = member_news([replica()], [held], {"cron": adapter(card=card)})
        assert [n.owner for n in news] == [owner, None, None], "of another's version: admins alone"
