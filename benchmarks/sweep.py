"""What the constants of placement and dispatch are worth: each changed alone, in virtual time.

The default of a setting is measured when no other value is clearly better over all scenes.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.simulator import Costs, Outcome, Simulation
from benchmarks.trace import Load, Request, draw, with_drift, with_flash_crowd
from cluster.settings import AdmissionSettings, DispatchSettings, PlacementSettings

DURATION_S = 90
PLACES = 16
# Values beside the default, by section and setting.
SWEPT: dict[str, dict[str, tuple[float, ...]]] = {
    "dispatch": {
        "spread": (0.0, 0.1, 0.25, 1.0, 4.0),
        "spread_from": (1, 2, 4, 8, 16),
        "evict_weight": (0.0, 0.25, 1.0, 2.0),
        "coming": (0.0, 0.25, 0.75, 1.0),
        "crowding": (0.0, 0.03, 0.3, 1.0),
        "home_s": (0.0, 0.0005, 0.01, 0.05),
        "load_s": (0.02, 0.5),
        "swap_s": (0.0, 0.02),
    },
    "placement": {
        "period_s": (0.25, 5, 20),
        "half_life_s": (10, 30, 120, 300),
        "share_of_replica": (0.1, 0.25, 0.75, 1.0),
        "keep_below": (0.3, 0.5, 0.9, 1.0),
        "moves_per_replica": (1, 4, 16),
        "prefetch": (False,),
    },
    "admission": {"prefetch": (False,)},
}


_DEFAULTS = {
    "dispatch": DispatchSettings(),
    "placement": PlacementSettings(),
    "admission": AdmissionSettings(),
}


@dataclass(frozen=True)
class Scene:
    """A fleet and what it is asked for."""

    replicas: int
    trace: tuple[Request, ...]


def scenes() -> dict[str, Scene]:
    """Two sizes of a fleet that is busy and holds a part of its adapters, five traces each."""
    found = {}
    for replicas, adapters, rate in ((2, 100, 9), (16, 400, 90)):
        load = Load(adapters, rate, DURATION_S, answer_tokens=(8, 32))
        steady = draw(load)
        traces = {
            "alpha 0.6": steady,
            "alpha 0.2": draw(Load(adapters, rate, DURATION_S, 0.2, answer_tokens=(8, 32), seed=1)),
            "bursts": draw(
                Load(adapters, rate, DURATION_S, 0.6, 4.0, answer_tokens=(8, 32), seed=2)
            ),
            "hot set moves": with_drift(steady, load),
            "flash crowd": with_flash_crowd(steady, load),
        }
        for name, trace in traces.items():
            found[f"{replicas} replicas, {name}"] = Scene(replicas, tuple(trace))
    return found


def sweep(costs: dict[str, float], lora: dict[str, int]) -> dict[str, Any]:
    """Setting -> value -> time to the first token and hits, held against the default's.

    Times are ratios to those with the defaults, the geometric mean over the scenes; hits are the
    mean difference in points.
    """
    against = scenes()
    plain = {name: _play(scene, costs, lora) for name, scene in against.items()}
    found: dict[str, Any] = {
        "scenes": {name: outcome.summary() for name, outcome in plain.items()},
        "defaults": {},
        "settings": {},
    }
    for section, name, value in _changes():
        changed = {
            scene: _play(against[scene], costs, lora, {section: {name: value}}) for scene in against
        }
        label = f"{section}.{name}"
        found["defaults"][label] = getattr(_DEFAULTS[section], name)
        found["settings"].setdefault(label, {})[str(value)] = _held(changed, plain)
    return found


def _changes() -> Iterator[tuple[str, str, float]]:
    for section, settings in SWEPT.items():
        for name, values in settings.items():
            for value in values:
                yield section, name, value


def _play(
    scene: Scene,
    costs: dict[str, float],
    lora: dict[str, int],
    changed: dict[str, dict[str, float]] | None = None,
) -> Outcome:
    changed = changed or {}
    settings = [type(plain)(**changed.get(name, {})) for name, plain in _DEFAULTS.items()]
    fleet = Simulation(scene.replicas, lora, PLACES, Costs(**costs), *settings)
    return fleet.play(scene.trace)


def _held(changed: dict[str, Outcome], plain: dict[str, Outcome]) -> dict[str, float]:
    now = {name: outcome.summary() for name, outcome in changed.items()}
    before = {name: outcome.summary() for name, outcome in plain.items()}
    mean = [statistics.fmean(changed[n].ttft_s) / statistics.fmean(plain[n].ttft_s) for n in now]
    p99 = [now[n]["ttft_p99_ms"] / before[n]["ttft_p99_ms"] for n in now]
    hits = [now[n]["hit_ratio"] - before[n]["hit_ratio"] for n in now]
    return {
        "ttft_mean": round(statistics.geometric_mean(mean), 3),
        "ttft_p99": round(statistics.geometric_mean(p99), 3),
        "hit_points": round(statistics.fmean(hits), 2),
    }
