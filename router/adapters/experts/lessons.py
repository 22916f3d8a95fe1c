"""Outcomes as a table to learn from: whose count, how much, and for how long."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from cluster.decisions import Outcome

# Fewer records than this foretell nothing.
MIN_RECORDS = 20
# Of what an outcome counts, so that of very old ones alone there still is a mean.
_OLDEST = 1e-9


class Lesson(NamedTuple):
    """What teaches the choices of a tenant.

    Attributes:
        weights: how much one prompt's outcomes count, by the tenant that they are of.
    """

    outcomes: list[Outcome]
    weights: dict[str, float]


# By tenant; "" is for everybody who has none.
Lessons = dict[str, Lesson]


def lessons_of(outcomes: Iterable[Outcome], *, shared: bool) -> Lessons:
    """What teaches everybody, and each tenant that has said enough: that, and its own on top.

    Everybody learns from what is nobody's; shared, from all, of whom each counts as much as the
    others however much it says.
    """
    said: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        said.setdefault(outcome.owner, []).append(outcome)
    weights = _voices(said) if shared else {"": 1.0}
    common = [o for owner in sorted(weights) for o in said.get(owner, ())]
    lessons = {"": Lesson(common, weights)}
    for owner, own in said.items():
        if owner and len(own) >= MIN_RECORDS:
            lessons[owner] = Lesson(
                common if owner in weights else common + own,
                weights | {owner: weights.get(owner, 0.0) + 1},
            )
    return lessons


def _voices(said: Mapping[str, list[Outcome]]) -> dict[str, float]:
    """What a prompt of each tenant counts, 1 on average; those that do not are left out.

    From :data:`MIN_RECORDS` prompts on each tenant has one voice, which its prompts share, and none
    a louder one than all others together; what that takes from it is given to nobody.
    """
    prompts = {owner: len({o.input for o in found}) for owner, found in said.items()}
    voices = {owner: min(1.0, count / MIN_RECORDS) for owner, count in prompts.items()}
    if not voices:
        return {}
    scale = sum(prompts.values()) / sum(voices.values())
    loudest = max(voices, key=lambda owner: voices[owner])
    if loudest:
        voices[loudest] = min(voices[loudest], sum(voices.values()) - voices[loudest])
    return {owner: scale * voice / prompts[owner] for owner, voice in voices.items() if voice > 0}


def table_of(outcomes: Iterable[Outcome]) -> tuple[list[str], dict[str, np.ndarray]]:
    """Distinct inputs, and per candidate its mean score on each (NaN: not tried)."""
    outcomes = list(outcomes)
    texts, scores, _ = weighed_table(Lesson(outcomes, {o.owner: 1.0 for o in outcomes}))
    return texts, scores


def weighed_table(
    lesson: Lesson, half_life_s: float | None = None
) -> tuple[list[str], dict[str, np.ndarray], np.ndarray]:
    """Distinct inputs, per candidate its mean score on each (NaN: not tried), and what each counts.

    Of several tenants, the mean of what each says: to say it again does not make it count more.

    Args:
        half_life_s: an outcome that is so much older than the newest one counts half; a prompt, as
            much as its newest outcome. None: all count alike, however old.
    """
    rows: dict[str, int] = {}
    said_by: list[dict[str, float]] = []
    cells: dict[str, dict[int, dict[str, list[tuple[float, float]]]]] = {}
    newest = max((outcome.at for outcome in lesson.outcomes), default=0.0)
    for outcome in lesson.outcomes:
        row = rows.setdefault(outcome.input, len(rows))
        if row == len(said_by):
            said_by.append({})
        fresh = 1.0 if half_life_s is None else 0.5 ** ((newest - outcome.at) / half_life_s)
        owner = outcome.owner
        said_by[row][owner] = max(said_by[row].get(owner, 0.0), fresh)
        said = cells.setdefault(outcome.candidate, {}).setdefault(row, {})
        said.setdefault(owner, []).append((outcome.score, max(fresh, _OLDEST)))
    scores = {name: np.full(len(rows), np.nan) for name in cells}
    for name, found in cells.items():
        for row, by_owner in found.items():
            scores[name][row] = np.average(
                [_mean(values) for values in by_owner.values()],
                weights=[lesson.weights[owner] for owner in by_owner],
            )
    weights = [sum(lesson.weights[o] * fresh for o, fresh in said.items()) for said in said_by]
    return list(rows), scores, np.array(weights)


def _mean(scores: list[tuple[float, float]]) -> float:
    values, counts = zip(*scores, strict=True)
    return float(np.average(values, weights=counts))
