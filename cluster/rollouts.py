"""Versions in motion: from an adapter to the adapter after one step. Pure; times are passed in."""

import hashlib
from typing import Literal

from cluster.adapters import (
    LATEST,
    STABLE,
    Adapter,
    Card,
    Evaluation,
    Gate,
    Rollout,
    RolloutEnd,
    Version,
)
from cluster.errors import Conflict, InvalidRequest, ModelNotFound

_REMEMBERED = 20
_SHARES = 10_000


def pick(adapter: Adapter, key: str) -> Version:
    """The version that a request for the plain name gets.

    The same key gets the same version, and one that was given the new version keeps it while the
    share grows. Another rollout draws other keys.
    """
    rollout = adapter.rollout
    if rollout is None:
        return adapter.stable
    digest = hashlib.sha256(f"{adapter.name}@{rollout.version}:{key}".encode()).digest()
    is_drawn = int.from_bytes(digest[:8]) % _SHARES < rollout.percent * _SHARES // 100
    return adapter.versions[rollout.version] if is_drawn else adapter.stable


def begin(
    adapter: Adapter,
    version: Version,
    *,
    percents: tuple[int, ...],
    step_s: float,
    gate: Gate | None,
    now: float,
) -> Adapter:
    """Start a rollout, or give the one of the same version new shares: the gate is run at once,
    and then the next share is taken."""
    running = adapter.rollout
    if running is not None and running.version != version.number:
        raise Conflict(
            f"a rollout of {adapter.name}@{running.version} is under way; let it end, or roll it "
            "back first"
        )
    if running is None and version == adapter.stable:
        raise Conflict(
            f"{adapter.name}@{version.number} is the stable version already", param="version"
        )
    rollout = Rollout(
        version=version.number, percents=percents, step_s=step_s, next_at=now, gate=gate
    )
    if running is not None and running.step >= 0:
        # Whoever has the new version keeps it: the gate is passed at the share reached.
        kept = tuple(p for p in percents if p > running.percent)
        if not kept:
            raise Conflict(
                f"{adapter.name}@{running.version} has {running.percent} % of the requests "
                "already; give a larger share, or roll it back"
            )
        rollout = rollout.model_copy(update={"percents": (running.percent, *kept), "step": 0})
    return adapter.model_copy(update={"rollout": rollout})


def is_due(rollout: Rollout, now: float) -> bool:
    return now >= rollout.next_at


def under_way(adapter: Adapter) -> Rollout:
    """The rollout of an adapter; raises Conflict when none is under way."""
    if adapter.rollout is None:
        raise Conflict(f"no rollout of {adapter.name} is under way")
    return adapter.rollout


def advance(adapter: Adapter, evaluation: Evaluation | None, now: float) -> Adapter:
    """The gate was passed: take the next step, or finish behind the last one at 100."""
    rollout = under_way(adapter)
    step = min(rollout.step + 1, len(rollout.percents) - 1)
    if rollout.percents[step] == 100:
        done = _promote(adapter, rollout.version)
        return _end(done, rollout.version, "done", "", evaluation, now)
    moved = {"step": step, "next_at": now + rollout.step_s, "evaluation": evaluation}
    return adapter.model_copy(update={"rollout": rollout.model_copy(update=moved)})


def stop(adapter: Adapter, reason: str, evaluation: Evaluation | None, now: float) -> Adapter:
    """End the rollout; the stable version has all requests again."""
    return _end(adapter, under_way(adapter).version, "rolled_back", reason, evaluation, now)


def roll_back(adapter: Adapter, to: Version | None, now: float) -> Adapter:
    """Stop a rollout under way, or make an earlier version stable again.

    Args:
        to: the version to go to; None is the one that was stable before.
    """
    if adapter.rollout is not None and to in (None, adapter.stable):
        return stop(adapter, "rolled back by hand", adapter.rollout.evaluation, now)
    if to is None:
        earlier = [
            n for n in adapter.previous if n in adapter.versions and n != adapter.stable.number
        ]
        if not earlier:
            raise Conflict(f"{adapter.name} has no earlier stable version to go back to")
        to = adapter.versions[earlier[-1]]
    if to == adapter.stable:
        raise Conflict(f"{adapter.name}@{to.number} is the stable version already")
    left = adapter.rollout.version if adapter.rollout else adapter.stable.number
    previous = tuple(n for n in adapter.previous if n != to.number)
    back = {"aliases": adapter.aliases | {STABLE: to.number}, "previous": previous}
    reason = f"rolled back by hand to version {to.number}"
    return _end(adapter.model_copy(update=back), left, "rolled_back", reason, None, now)


def why_not(evaluation: Evaluation, gate: Gate) -> str | None:
    """What keeps a new version from the next step, or None."""
    drop = evaluation.accuracy_before - evaluation.accuracy_after
    if drop > gate.max_accuracy_drop:
        return (
            f"accuracy fell from {evaluation.accuracy_before:.3f} to "
            f"{evaluation.accuracy_after:.3f}, by more than {gate.max_accuracy_drop}"
        )
    if evaluation.negative_flips > gate.max_negative_flips:
        return (
            f"{evaluation.negative_flips:.3f} of the prompts were right before and are wrong now, "
            f"more than {gate.max_negative_flips}"
        )
    return None


def compare(before: list[bool], after: list[bool], *, replica: str, at: float) -> Evaluation:
    """Accuracies of two versions on the same prompts, and the negative flips between them.

    NFR = |{i: before_i right, after_i wrong}| / N (MUSCLE, Echterhoff et al. 2024, section 3).
    """
    flips = sum(old and not new for old, new in zip(before, after, strict=True))
    return Evaluation(
        prompts=len(before),
        accuracy_before=sum(before) / len(before),
        accuracy_after=sum(after) / len(after),
        negative_flips=flips / len(before),
        replica=replica,
        at=at,
    )


# -- other changes of an adapter ------------------------------------------------------------


def set_alias(adapter: Adapter, alias: str, version: Version) -> Adapter:
    _own(alias)
    return adapter.model_copy(update={"aliases": adapter.aliases | {alias: version.number}})


def remove_alias(adapter: Adapter, alias: str) -> Adapter:
    _own(alias)
    if alias not in adapter.aliases:
        raise ModelNotFound(f"{adapter.name}@{alias}", param="alias")
    kept = {a: n for a, n in adapter.aliases.items() if a != alias}
    return adapter.model_copy(update={"aliases": kept})


def remove_version(adapter: Adapter, version: Version) -> Adapter:
    """Without a version that nothing points to; `latest` goes to the newest that is left."""
    number = version.number
    movable = {a: n for a, n in adapter.aliases.items() if a != LATEST}
    holders = [f"the alias {alias!r}" for alias, n in movable.items() if n == number]
    if adapter.rollout is not None and adapter.rollout.version == number:
        holders.append("a rollout")
    if holders:
        raise Conflict(
            f"{adapter.name}@{number} is in use by {' and '.join(holders)}; move that first",
            param="version",
        )
    kept = {n: v for n, v in adapter.versions.items() if n != number}
    newest = max(kept) if adapter.aliases[LATEST] == number else adapter.aliases[LATEST]
    previous = tuple(n for n in adapter.previous if n != number)
    aliases = adapter.aliases | {LATEST: newest}
    return adapter.model_copy(update={"versions": kept, "previous": previous, "aliases": aliases})


def edit_card(adapter: Adapter, card: Card) -> Adapter:
    """With another card; the name and the base model stay."""
    if (card.name, card.base_model) != (adapter.name, adapter.card.base_model):
        field = "name" if card.name != adapter.name else "base_model"
        raise InvalidRequest(
            "name and base_model of an adapter cannot change; register another", param=field
        )
    return adapter.model_copy(update={"card": card})


def _own(alias: str) -> None:
    if alias in (LATEST, STABLE):
        remedy = "a rollout moves it" if alias == STABLE else "registering a version moves it"
        raise InvalidRequest(f"the alias {alias!r} is kept by the store: {remedy}", param="alias")


def _promote(adapter: Adapter, number: int) -> Adapter:
    previous = (*adapter.previous, adapter.stable.number)[-_REMEMBERED:]
    aliases = adapter.aliases | {STABLE: number}
    return adapter.model_copy(update={"aliases": aliases, "previous": previous})


def _end(
    adapter: Adapter,
    version: int,
    outcome: Literal["done", "rolled_back"],
    reason: str,
    evaluation: Evaluation | None,
    now: float,
) -> Adapter:
    end = RolloutEnd(version=version, outcome=outcome, reason=reason, evaluation=evaluation, at=now)
    return adapter.model_copy(update={"rollout": None, "last_rollout": end})
