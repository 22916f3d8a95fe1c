"""Whether a turn goes on with what was said before it, or stands alone.

"and on Sundays?" fits nothing by itself, and so does "Who wrote Faust?": only the first one says
that something came before. A logistic regression on the features of the turn (meaning and form)
tells a shipped list of follow-ups about all kinds of things from a shipped list of everyday
prompts; no card has a part in it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from router.adapters.features import Features

_FOLLOW_UPS = Path(__file__).parent.parent / "data" / "follow_ups.txt"
_STRENGTH = 10.0


class FollowUps:
    """Args: alone: prompts that need nothing before them."""

    def __init__(self, extract: Callable[[list[str]], Features], alone: Sequence[str]) -> None:
        follow_ups = _FOLLOW_UPS.read_text().splitlines()
        rows = _rows(extract([*follow_ups, *alone]))
        truth = np.arange(len(rows)) < len(follow_ups)
        model = LogisticRegression(C=_STRENGTH, class_weight="balanced", max_iter=1000)
        self._model = model.fit(rows, truth)

    def __call__(self, features: Features) -> np.ndarray:
        """(n,) probability that each turn goes on."""
        likely: np.ndarray = self._model.predict_proba(_rows(features))[:, 1]
        return likely


def _rows(features: Features) -> np.ndarray:
    return np.concatenate([features.meaning, features.form], axis=1)
