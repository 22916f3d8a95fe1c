"""Kernel ridge regression in closed form, on landmarks (Nyström), with updates.

With k_i the likeness of example i to the m landmarks, K their likeness to each other, n_i the
noise of example i and y_i its target, the coefficients of f(x) = k(x) a are

    a = P (sum_i k_i y_i / n_i),     P = (K + sum_i k_i k_i^T / n_i)^-1

which is exact kernel ridge when every example is a landmark (Williams & Seeger, NIPS 2000). What a
prediction would have been without its own example is in closed form too, so everything that must
be learnt from mistakes (temperature, threshold, settings) needs no held-out data:

    f_-i = (f_i - h_i y_i) / (1 - h_i),     h_i = k_i P k_i^T / n_i

(Rifkin & Lippert 2007). Of several left out at once, H with h_ij = k_i P k_j^T / n_j is a matrix:

    f_-C = y - (I - H)^-1 (y - f)

Adding examples changes P by a matrix of their rank (Woodbury).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.sparse

# Equal landmarks make K singular. The first is far below what a likeness can tell; the last still
# is, and enough for hundreds of copies of one text.
_JITTERS = (1e-6, 1e-4, 1e-2)


@dataclass(frozen=True)
class Examples:
    """n examples as the regression sees them.

    Attributes:
        likeness: (n, m) to the landmarks.
        targets: (n, c), dense or sparse.
        noise: (n,) an example with much of it is followed less.
    """

    likeness: np.ndarray
    targets: np.ndarray | scipy.sparse.csr_matrix
    noise: np.ndarray

    @property
    def weighed(self) -> np.ndarray:
        """(n, m) k_i / n_i of the module's formula."""
        weighed: np.ndarray = self.likeness / self.noise[:, None].astype(np.float64)
        return weighed


@dataclass(frozen=True)
class Ridge:
    """The solution, for c targets. Float64 where sums of large numbers cancel.

    Attributes:
        precision: (m, m) P of the module's formula.
        moments: (m, c) sum of k_i y_i / n_i.
        mass: (m,) sum of k_i / n_i: the moments of a target that is always 1.
        solution: (m, c) P times the moments.
    """

    precision: np.ndarray
    moments: np.ndarray
    mass: np.ndarray
    solution: np.ndarray

    @classmethod
    def fit(cls, between: np.ndarray, blocks: Iterable[Examples]) -> "Ridge":
        """Solve for examples that come in blocks, so that all need not be in memory at once.

        Args:
            between: (m, m) likeness of the landmarks to each other.
        """
        system = between.astype(np.float64)
        moments, mass = np.zeros(()), np.zeros(len(system))
        for block in blocks:
            weighed = block.weighed
            system += weighed.T @ block.likeness
            moments = moments + (block.targets.T @ weighed).T
            mass += weighed.sum(axis=0)
        precision = _inverse(system)
        return cls(precision, moments, mass, precision @ moments)

    def coefficients(self, offset: float = 0.0) -> np.ndarray:
        """(m, c) of f(x) = k(x) a, for targets from which `offset` is taken."""
        found: np.ndarray = self.solution - offset * (self.precision @ self.mass)[:, None]
        return found

    def leverage(self, likeness: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """(n,) h_i: how much of its own prediction an example makes."""
        own: np.ndarray = np.einsum("ij,ij->i", likeness @ self.precision, likeness) / noise
        return own

    def without_block(
        self, likeness: np.ndarray, predicted: np.ndarray, targets: np.ndarray, noise: np.ndarray
    ) -> np.ndarray:
        """(n, c) what would have been predicted for examples had none of them been learnt from."""
        block = (likeness @ self.precision) @ likeness.T / noise
        rest = (1 + _JITTERS[0]) * np.eye(len(block)) - block
        left_out: np.ndarray = targets - np.linalg.solve(rest, targets - predicted)
        return left_out

    def with_examples(self, examples: Examples) -> "Ridge":
        """The solution with more examples; their targets may have new columns at the end.

        With negative noise it is the solution without them.
        """
        likeness = examples.likeness.astype(np.float64)
        reach = self.precision @ likeness.T
        change = np.linalg.solve(np.diag(examples.noise) + likeness @ reach, reach.T)
        precision = self.precision - reach @ change
        weighed = examples.weighed
        known, wanted = self.moments.shape[1], examples.targets.shape[1]
        wider = ((0, 0), (0, wanted - known))
        moments = np.pad(self.moments, wider)
        solution = np.pad(self.solution - reach @ (change @ self.moments), wider)
        # Of ten thousand targets, the examples of an adapter touch one.
        touched = np.flatnonzero(examples.targets.any(axis=0))
        added = weighed.T @ examples.targets[:, touched]
        moments[:, touched] += added
        solution[:, touched] += precision @ added
        return Ridge(precision, moments, self.mass + weighed.sum(axis=0), solution)

    def without_target(self, column: int) -> "Ridge":
        """The solution without one of the targets."""
        return Ridge(
            self.precision,
            np.delete(self.moments, column, axis=1),
            self.mass,
            np.delete(self.solution, column, axis=1),
        )


def _inverse(system: np.ndarray) -> np.ndarray:
    """Of a matrix that is positive definite but for rounding."""
    for jitter in _JITTERS:
        try:
            lifted = system + jitter * np.eye(len(system))
            inverse: np.ndarray = scipy.linalg.inv(lifted, assume_a="pos")
        except np.linalg.LinAlgError:
            continue
        return inverse
    return np.linalg.pinv(system, hermitian=True)


def without_own(predicted: np.ndarray, targets: np.ndarray, leverage: np.ndarray) -> np.ndarray:
    """(n, c) what would have been predicted for each example had it not been learnt from."""
    h = np.minimum(leverage, 1 - 1e-6)[:, None]
    left_out: np.ndarray = (predicted - h * targets) / (1 - h)
    return left_out
