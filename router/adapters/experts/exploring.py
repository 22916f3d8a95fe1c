"""Candidates of whom little is known are tried, for a share of the choices.

Each quality is drawn from what is believed of it: at random (Thompson, Biometrika 1933; for
contextual choices Agrawal & Goyal, ICML 2013), or at an upper bound (UCB: Auer, JMLR 2002; for
Gaussian processes Srinivas et al., ICML 2010). Then the choice is made as always, under the same
constraints and costs. Where it comes out otherwise, a budget says whether it may.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from cluster.settings import RouterSettings
from router.adapters.policy import Choice, Option

# Of a normal distribution, 95 of 100 lie below the mean and so many standard deviations.
_BOUND = 1.645
# What may be saved up while there is nothing to try.
_MOST_SAVED = 10.0

Choose = Callable[[list[Option]], Choice]


class Explorer:
    """Its budget is for all tenants together: never more than a share of the choices so far.

    Args:
        share: of the choices between two candidates or more.
    """

    def __init__(self, policy: str, share: float, seed: int | None = None) -> None:
        self._policy = policy
        self._share = share
        self._random = np.random.default_rng(seed)
        self._saved = 0.0

    @classmethod
    def of(cls, settings: RouterSettings) -> "Explorer | None":
        """The explorer that the settings ask for, if they do."""
        if settings.explore == "none":
            return None
        return cls(settings.explore, settings.explore_share)

    def explore(self, choice: Choice, options: Sequence[Option], choose: Choose) -> Choice:
        """The choice, or another that says that it was explored.

        Args:
            options: that it was made among, and those that only exploring would try.
            choose: makes a choice among options under the constraints.
        """
        if choice.best is None or len(options) < 2:
            return choice
        self._saved = min(_MOST_SAVED, self._saved + self._share)
        drawn = choose([replace(o, quality=o.quality + self._luck() * o.doubt) for o in options])
        if drawn.best is None or drawn.best.name == choice.best.name or self._saved < 1 - 1e-9:
            return choice
        self._saved -= 1
        best = next(o for o in options if o.name == drawn.best.name)
        return replace(choice, best=best, passed_over=None, explored_over=choice.best)

    def _luck(self) -> float:
        return _BOUND if self._policy == "ucb" else float(self._random.standard_normal())
