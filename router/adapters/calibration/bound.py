"""From which sureness on a word may be taken, judged by few examples.

How often it is wrong at a sureness is a logistic regression, where it is hardly ever wrong: from
half of the wrong ones on. Of examples so few that none is wrong where it matters, a count says
nothing; the regression says what the others foretell, and its own uncertainty (Laplace's
approximation: MacKay 1992) how much more it may well be.
"""

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import t

# One-sided: of six catalogues one may lose more.
_SPREADS = 1.0
# Before any example: seldom wrong, the more seldom the surer; known no better than to 2 each.
_PRIOR_MEAN, _PRIOR_SPREAD = np.array([-2.0, -1.0]), 2.0


def sure_enough(sureness: np.ndarray, wrong: np.ndarray, most: float) -> float:
    """The least sureness from which on no more than a share of all examples is wrong, at 84 %.

    Args:
        sureness: (n,) log-odds, or what is like them.
        wrong: (n,) whether the word was wrong.
        most: the share, of all n, that may be.

    Returns:
        Infinity where even the surest ones might be wrong too often.
    """
    order = np.argsort(-sureness)
    if wrong.any():
        order = order[sureness[order] >= np.median(sureness[wrong])]
    terms = np.column_stack([np.ones(len(order)), sureness[order]])
    weights, spread = _regression(terms, wrong[order].astype(float))
    doubt = np.sqrt(np.einsum("ij,jk,ik->i", terms, spread, terms))
    expected = np.cumsum(expit(terms @ weights + _SPREADS * doubt)) / len(wrong)
    taken = int(np.searchsorted(expected, most, side="right"))
    return float(sureness[order][taken - 1]) if taken else np.inf


def below_all(values: np.ndarray, most: float) -> float:
    """Below this, no more than a share of more like these is to be expected: where a normal
    distribution says so that is known by so few (Student's t), and none of them lies lower."""
    if len(values) < 2:
        return -np.inf
    spread = float(values.std(ddof=1)) * np.sqrt(1 + 1 / len(values))
    foretold = values.mean() - spread * t.isf(most, len(values) - 1)
    return float(min(foretold, values.min()))


def _regression(terms: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(2,) weights at the peak of what they may be, and (2, 2) their covariance there."""

    def loss(weights: np.ndarray) -> float:
        logit = terms @ weights
        away = (weights - _PRIOR_MEAN) / _PRIOR_SPREAD
        return float((np.logaddexp(0, logit) - wrong * logit).sum() + (away**2).sum() / 2)

    weights = minimize(loss, _PRIOR_MEAN, method="BFGS").x
    likely = expit(terms @ weights)
    curved = (terms * (likely * (1 - likely))[:, None]).T @ terms
    return weights, np.linalg.inv(curved + np.eye(2) / _PRIOR_SPREAD**2)
