"""What happened, for people: read off the differences between what was and what is.

One process writes it, the planner that leads. It sees every adapter and every report anyway, and
nobody else has to tell it.
"""

import time
from collections.abc import Iterable, Iterator, Mapping

from cluster.adapters import Adapter, AdapterKey
from cluster.members import Replica, Report, Router
from cluster.plans import Happening

# Of one replica in one step: a replica that starts has dozens at once.
_MOST_LOADS = 8


def adapter_news(
    before: Mapping[str, Adapter], after: Mapping[str, Adapter | None]
) -> Iterator[Happening]:
    """What was done to the adapters in `after`; None is one that was deleted."""
    for name, now in after.items():
        was = before.get(name)
        told = now or was
        if told is None:
            continue
        fields = {"revision": told.revision, "owner": _whose(told, was or told)}
        for news in _news_of(name, was, now):
            yield news.model_copy(update=fields)


def _whose(*states: Adapter) -> str:
    """Who alone may know of it, as the first state says that is private; empty: everybody."""
    return next((a.card.owner for a in states if a.card.visibility == "private"), "")


def _news_of(name: str, was: Adapter | None, now: Adapter | None) -> Iterator[Happening]:
    if now is None:
        if was is not None:
            yield _of("adapter", name, f"{name} was deleted")
    elif was is None:
        yield _of("adapter", name, f"{name}@{now.latest.number} was registered")
    else:
        yield from _changes(was, now)


def _changes(was: Adapter, now: Adapter) -> Iterator[Happening]:
    name = now.name
    for number in sorted(now.versions.keys() - was.versions.keys()):
        yield _of("adapter", name, f"{name}@{number} was registered, a new version")
    for number in sorted(was.versions.keys() - now.versions.keys()):
        yield _of("adapter", name, f"{name}@{number} was deleted")
    yield from _rollout(was, now)
    if was.stable.number != now.stable.number:
        text = f"{name} is now version {now.stable.number}, before {was.stable.number}"
        yield _of("rollout", name, text)
    if was.card != now.card:
        old, new = was.card.model_dump(), now.card.model_dump()
        fields = [field for field in new if old[field] != new[field]]
        yield _of("adapter", name, f"the card of {name} was edited: {', '.join(fields)}")


def _rollout(was: Adapter, now: Adapter) -> Iterator[Happening]:
    name, old, new = now.name, was.rollout, now.rollout
    if new is not None and (old is None or old.version != new.version):
        yield _of("rollout", name, f"{name}@{new.version} is being rolled out")
    if new is not None and new.step >= 0 and (old is None or old.step != new.step):
        yield _of("rollout", name, f"{name}@{new.version} gets {new.percent} % of the requests")
    if new is not None and new.evaluation not in (None, old and old.evaluation):
        found = new.evaluation
        text = (
            f"{name}@{new.version} was held against the stable version: right "
            f"{found.accuracy_before:.0%} before, {found.accuracy_after:.0%} now, newly wrong "
            f"{found.negative_flips:.0%} of {found.prompts} prompts"
        )
        yield _of("rollout", name, text)
    end = now.last_rollout
    if end is not None and end != was.last_rollout:
        is_bad = end.outcome == "rolled_back"
        how = "was rolled back" if is_bad else "is rolled out"
        why = f": {end.reason}" if end.reason else ""
        yield _of("rollout", name, f"{name}@{end.version} {how}{why}", is_bad=is_bad)


def member_news(
    before: Iterable[Report], after: Iterable[Report], adapters: Mapping[str, Adapter]
) -> Iterator[Happening]:
    """Processes that came and went, what replicas loaded, and what they could not.

    Args:
        adapters: as they are now; of versions that are none of theirs only admins are told.
    """
    old, new = ({m.id: m for m in members} for members in (before, after))
    for gone in old.keys() - new.keys():
        member = old[gone]
        is_bad = isinstance(member, Replica)
        yield _of("replica", gone, f"{_what(member)} {gone} is gone", is_bad=is_bad)
    for member in new.values():
        was = old.get(member.id)
        if was is None:
            where = f" on {member.node}" if isinstance(member, Replica) and member.node else ""
            yield _of("replica", member.id, f"{_what(member)} {member.id} is there{where}")
        elif isinstance(member, Router) and isinstance(was, Router):
            yield from _encoders(was, member)
        elif isinstance(member, Replica) and isinstance(was, Replica):
            if member.trouble and not was.trouble:
                text = f"{member.model} is not asked: {member.trouble}"
                yield _of("failure", member.model, text, is_bad=True)
            for news, key in _loads(was, member):
                adapter = adapters.get(key.name)
                is_known = adapter and key in map(adapter.key, adapter.versions.values())
                owner = _whose(adapter) if adapter and is_known else None
                yield news.model_copy(update={"owner": owner})


def _encoders(was: Router, now: Router) -> Iterator[Happening]:
    old, new = was.router, now.router
    if old is None or new is None:
        return
    if new.encoder != old.encoder:
        which = f"the trained encoder {new.encoder}" if new.encoder else "the settings' encoder"
        yield _of("replica", now.id, f"router {now.id} reads prompts with {which}")
    if new.encoder_problem and new.encoder_problem != old.encoder_problem:
        yield _of("failure", now.id, f"router {now.id}: {new.encoder_problem}", is_bad=True)


def _loads(was: Replica, now: Replica) -> Iterator[tuple[Happening, AdapterKey]]:
    held = {*was.residency.slots, *was.residency.host}
    loaded = [k for k in (*now.residency.slots, *now.residency.host) if k not in held]
    for key in loaded[:_MOST_LOADS]:
        yield _of("load", key.name, f"{key} was loaded on {now.id}"), key
    for key in now.problems.keys() - was.problems.keys():
        text = f"{now.id} cannot load {key}: {now.problems[key]}"
        yield _of("failure", key.name, text, is_bad=True), key


def _what(member: Report) -> str:
    return f"replica of {member.model}" if isinstance(member, Replica) else member.kind


def _of(kind: str, subject: str, text: str, *, is_bad: bool = False) -> Happening:
    return Happening(at=time.time(), kind=kind, subject=subject, text=text, is_bad=is_bad)
