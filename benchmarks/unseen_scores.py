"""How near each way to choose comes to the best single adapter, task by task.

Percent of oracle is (method - base) / (oracle - base), of the means over tasks, with the standard
error of a bootstrap over tasks. The oracle is the adapter that is best on the very prompts that
it is measured on, so it flatters itself, most where many are equally good.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# A task's prompts are dealt into so many parts: one is asked, feedback is of the others.
PARTS = 6


@dataclass(frozen=True)
class Found:
    """Of a task that was left out.

    Attributes:
        right: by method, (n,) how often the answer to each prompt was right.
        oracle: the best adapter, or the base model.
        helpful: adapters that are better than the base model beyond doubt.
    """

    right: Mapping[str, np.ndarray]
    oracle: str
    helpful: list[str]


def table(tasks: Mapping[str, Found]) -> dict[str, Any]:
    """By task and method, right answers in %, and the standard error of what it gains."""
    return {
        task: {
            "oracle": found.oracle,
            "helpful": found.helpful,
            "right": {n: round(100 * float(right.mean()), 1) for n, right in found.right.items()},
            "error": {n: _error(right - found.right["base"]) for n, right in found.right.items()},
        }
        for task, found in tasks.items()
    }


def means(tasks: Sequence[Mapping[str, np.ndarray]]) -> dict[str, dict[str, float]]:
    """Over tasks, each with the standard error that other tasks would make."""
    right = {name: np.array([task[name].mean() for task in tasks]) for name in tasks[0]}
    draws = np.random.default_rng(0).integers(len(tasks), size=(2000, len(tasks)))
    drawn = {name: shares[draws].mean(axis=1) for name, shares in right.items()}
    base, oracle = right["base"].mean(), right["oracle"].mean()
    possible = np.maximum(drawn["oracle"] - drawn["base"], 1e-9)
    return {
        name: {
            "right": _percent(shares.mean()),
            "gain": _percent(shares.mean() - base),
            "gain_error": _percent((drawn[name] - drawn["base"]).std()),
            "of_oracle": _percent((shares.mean() - base) / (oracle - base)),
            "of_oracle_error": _percent(((drawn[name] - drawn["base"]) / possible).std()),
            "to_oracle": _percent(shares.mean() / oracle),
            "to_oracle_error": _percent((drawn[name] / drawn["oracle"]).std()),
        }
        for name, shares in right.items()
    }


def _percent(share: float) -> float:
    return round(100 * float(share), 1)


def _error(differences: np.ndarray) -> float:
    return _percent(differences.std() / len(differences) ** 0.5)
