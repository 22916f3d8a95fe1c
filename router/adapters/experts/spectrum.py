"""Kernel ridge regression for all levels of noise at once, and how unsure it is.

With k_i the likeness of example i to the m landmarks, K = L L^T their likeness to each other,
p_i = L^-1 k_i, and w_i what an example counts,

    sum_i w_i p_i p_i^T = V diag(s) V^T,        r(x) = V^T L^-1 k(x)

and at every noise n, with b = sum_i w_i r_i y_i, all is a sum over m:

    f(x)   = sum_j r_j(x) b_j / (s_j + n)
    h_i    = w_i sum_j r_ij^2 / (s_j + n)           f_-i = (f_i - h_i y_i) / (1 - h_i)
    var(x) = 1 - sum_j r_j(x)^2 s_j / (s_j + n)

the last in units of the prior's variance: the posterior of a Gaussian process on the projections to
the landmarks, to which what these do not explain is added (DTC and FITC: Quinonero-Candela &
Rasmussen, JMLR 2005, eq. 20b and 23; f_-i: Rifkin & Lippert 2007).
"""

from dataclasses import dataclass

import numpy as np
import scipy.linalg

# Equal landmarks make K singular; this is below what a likeness tells.
_JITTER = 1e-4
_MOST = 1 - 1e-6


def whitening(between: np.ndarray) -> np.ndarray:
    """(m, m) L^-T of the landmarks' likeness to each other, (m, m)."""
    lifted = between.astype(np.float64) + _JITTER * np.eye(len(between))
    root = scipy.linalg.cholesky(lifted, lower=True)
    found: np.ndarray = scipy.linalg.solve_triangular(root, np.eye(len(root)), lower=True).T
    return found


@dataclass(frozen=True)
class Spectrum:
    """The examples of a regression, n of them, in the coordinates in which it is diagonal.

    Attributes:
        basis: (m, m) L^-T V: likeness times it is r.
        strengths: (m,) s.
        examples: (n, m) r of each.
        weights: (n,) w.
    """

    basis: np.ndarray
    strengths: np.ndarray
    examples: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, white: np.ndarray, likeness: np.ndarray, weights: np.ndarray) -> "Spectrum":
        """Args: white: of :func:`whitening`; likeness: (n, m) of the examples."""
        projected = likeness @ white
        strengths, turn = scipy.linalg.eigh((projected * weights[:, None]).T @ projected)
        return cls(white @ turn, np.maximum(strengths, 0), projected @ turn, weights)

    def coefficients(self, targets: np.ndarray, noise: float) -> np.ndarray:
        """(m, c) of f(x) = k(x) a, for targets (n, c)."""
        found: np.ndarray = self.basis @ self._shrunk(targets, noise)
        return found

    def left_out(self, targets: np.ndarray, noise: float) -> np.ndarray:
        """(n, c) what would be predicted of each example without itself."""
        own = self.weights * (self.examples**2 / (self.strengths + noise)).sum(axis=1)
        h = np.minimum(own, _MOST)[:, None]
        found: np.ndarray = (self.examples @ self._shrunk(targets, noise) - h * targets) / (1 - h)
        return found

    def shrinkage(self, noise: float) -> np.ndarray:
        """(m,) s / (s + n), by which the variance is made."""
        found: np.ndarray = self.strengths / (self.strengths + noise)
        return found

    def _shrunk(self, targets: np.ndarray, noise: float) -> np.ndarray:
        moments = self.examples.T @ (self.weights[:, None] * targets)
        found: np.ndarray = moments / (self.strengths + noise)[:, None]
        return found
