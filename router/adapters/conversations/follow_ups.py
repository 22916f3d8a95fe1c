"""Whether a turn goes on with what was said before it, or stands alone.

"and on Sundays?" fits nothing by itself, and so does "Who wrote Faust?": only the first one says
that something came before. A logistic regression on the features of the turn (meaning and form)
tells a shipped list of follow-ups about all kinds of things from shipped lists of prompts that need
nothing before them: the everyday ones, and short orders, statements and questions, which look more
like follow-ups than those do. No card has a part in it.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from router.adapters.features import Features

_DATA = Path(__file__).parent.parent / "data"
_STRENGTH = 10.0


class FollowUps:
    """Args: everyday: of prompts that need nothing before them, beside those of shipped lists."""

    def __init__(self, extract: Callable[[list[str]], Features], everyday: Features) -> None:
        follow_ups = (_DATA / "follow_ups.txt").read_text().splitlines()
        alone = (_DATA / "standing_alone.txt").read_text().splitlines()
        rows = np.concatenate([_rows(extract([*follow_ups, *alone])), _rows(everyday)])
        truth = np.arange(len(rows)) < len(follow_ups)
        model = LogisticRegression(C=_STRENGTH, class_weight="balanced", max_iter=1000)
        self._model = model.fit(rows, truth)

    def __call__(self, features: Features) -> np.ndarray:
        """(n,) probability that each turn goes on."""
        likely: np.ndarray = self._model.predict_proba(_rows(features))[:, 1]
        return likely


def _rows(features: Features) -> np.ndarray:
    return np.concatenate([features.meaning, features.form], axis=1)
