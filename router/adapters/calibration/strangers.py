"""Prompts that no adapter was made for, and that are near to what some were made for.

A catalogue has none of them. But to the catalogue that lacks an adapter, the examples of that
adapter are just such prompts. How they would be seen is in closed form, as for a single example
(`ridge.py`). The posterior variance of a text with likenesses l, less those to the landmarks C of
the class, becomes 1 - (l^T Q l - r^T Q_CC^-1 r), with Q as in `regression.py` and r = (Q l)_C.
"""

import numpy as np

from router.adapters.features import Features
from router.adapters.regression import SAME, Regression

# Whole classes are left out, until there are so many examples of them.
_ENOUGH = 600


def signals_of_strangers(
    made: Regression,
    features: Features,
    labels: np.ndarray,
    rng: np.random.Generator,
    usable: np.ndarray,
) -> np.ndarray:
    """(n, 3) signals, as :meth:`Regression.signals` gives them, of examples of some of the classes,
    each seen by the regression without its class. None of them where there is but one class.

    Args:
        features: of what the regression was fitted to.
        labels: (n,) class of each.
        usable: (c,) whether a class may be left out: to what has its twin, it is no stranger.
    """
    found: list[np.ndarray] = []
    for label in rng.permutation(np.flatnonzero(usable)) if made.classes > 1 else ():
        rows = np.flatnonzero(labels == label)
        found.append(_without(made, int(label), features[rows[: 2 * _ENOUGH]]))
        if sum(map(len, found)) >= _ENOUGH:
            break
    return np.concatenate(found) if found else np.zeros((0, 3))


def _without(made: Regression, label: int, features: Features) -> np.ndarray:
    regressors = made.kernel.regressors(features)
    scores = made.score_without(regressors, label)
    likeness = regressors[:, : len(made.landmarks)].copy()
    likeness[likeness > SAME] = 0
    others = np.arange(made.classes) != label
    known = made.familiarity(features, likeness, others)
    known[:, 1] = made.variance_without(likeness, label)
    return np.column_stack([made.surest(scores), known])
