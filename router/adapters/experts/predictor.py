"""How well each candidate will answer a prompt, learnt from how well it did.

    quality_c(x) = mean_c + d(x) + g_c(x) + e_c(x)

`d` is how easy the prompt is for all, learnt from the outcomes of all; `g_c` is what sets a
candidate apart, which alone decides who is chosen. Both are Gaussian processes on the chooser's
features: a coregionalisation (Bonilla et al., NIPS 2007; Alvarez et al. 2012, section 4.2) with the
matrix a 1 1^T + b I, solved one after the other, each with the noise with which left-out outcomes
are best foretold. `e_c` is what was seen of the very prompt (`memory`). The sum is the perceptive
head of Tryage (2023); with `d` as difficulty and `mean_c + g_c` as ability it is a linear
item-response model (IRT-Router, ACL 2025).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from router.adapters.experts.lessons import MIN_RECORDS
from router.adapters.experts.memory import Memory
from router.adapters.experts.spectrum import Spectrum, whitening
from router.adapters.features import Features, Kernel, KernelWeights

# Scores are noisy where labels are not: a right answer may be luck.
_NOISES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_BLOCK = 4096
# With and without the reader: it is asked only where that pays, which so many outcomes tell.
_GLANCED, _READ = KernelWeights(), KernelWeights(mean=0.5, last=0.5)
_SAMPLE, _SAMPLE_LANDMARKS = 2000, 512
# What the error must fall by, in standard errors.
_SURE = 2.0

Read = Callable[[np.ndarray], Features]


class Belief(NamedTuple):
    """Of a candidate's quality: what is expected, and its standard deviation."""

    mean: float
    doubt: float


@dataclass(frozen=True)
class Outcomes:
    """What is learnt from: n prompts, c candidates.

    Attributes:
        scores: (n, c), NaN where a candidate was not tried.
        weights: (n,) how much each prompt counts.
        means: (c,) of each candidate.
    """

    scores: np.ndarray
    weights: np.ndarray
    means: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        found = np.nansum(self.scores * self.weights[:, None], axis=0) / self.totals
        object.__setattr__(self, "means", found)

    @property
    def totals(self) -> np.ndarray:
        """(c,) what the prompts count that each was tried on."""
        found: np.ndarray = (self.weights[:, None] * ~np.isnan(self.scores)).sum(axis=0)
        return found

    def __getitem__(self, rows: np.ndarray) -> "Outcomes":
        return Outcomes(self.scores[rows], self.weights[rows])


class _Apart(NamedTuple):
    """What was learnt of candidates that were tried on the same prompts.

    Attributes:
        members: which columns they are.
        errors: (n, k) of left-out predictions, NaN elsewhere than on those prompts.
    """

    members: np.ndarray
    spectrum: Spectrum
    noise: float
    columns: np.ndarray
    errors: np.ndarray


@dataclass(frozen=True)
class _Doubt:
    """How unsure the predictions of candidates are that were tried on the same prompts.

    Attributes:
        basis, shrinkage: of the :class:`Spectrum`.
        signals: (k,) variance of what sets each apart, before there were outcomes.
        floors: (k,) variance of each one's mean.
    """

    members: np.ndarray
    basis: np.ndarray
    shrinkage: np.ndarray
    signals: np.ndarray
    floors: np.ndarray

    def __call__(self, likeness: np.ndarray) -> np.ndarray:
        """(n, k) standard deviations."""
        left = 1 - ((likeness @ self.basis) ** 2) @ self.shrinkage
        found: np.ndarray = np.sqrt(
            np.maximum(left, 0)[:, None] * self.signals[None] + self.floors[None]
        )
        return found


@dataclass(frozen=True)
class QualityPredictor:
    """Predicts the scores of candidates.

    Attributes:
        candidates: names, in the order of the columns.
        coefficients: (m, c) to the likeness of a prompt to the landmarks.
        means: (c,) mean score of each, which the regression adds to.
    """

    kernel: Kernel
    candidates: tuple[str, ...]
    coefficients: np.ndarray
    means: np.ndarray
    memory: Memory
    _doubts: tuple[_Doubt, ...]

    @classmethod
    def fit(
        cls,
        features: Features,
        scores: Mapping[str, np.ndarray],
        *,
        weights: np.ndarray | None = None,
        texts: Sequence[str] = (),
        read: Read | None = None,
        max_landmarks: int = 1024,
        seed: int = 0,
    ) -> "QualityPredictor | None":
        """Learn from n prompts, the newest last; None when no candidate has :data:`MIN_RECORDS`.

        Args:
            scores: of each candidate (n,), NaN where it was not tried.
            weights: (n,) how much each prompt counts; 1 by default.
            texts: (n) by which prompts are known again; without them none is.
            read: gives the features of some of the prompts with what the reader says of them. It is
                asked about 2,000 at most, unless that makes predictions better.
        """
        if weights is None:
            weights = np.ones(len(features))
        # Many that count for little are few.
        whole = np.minimum(weights, 1)
        names = [c for c, s in sorted(scores.items()) if total(whole, s) >= MIN_RECORDS]
        if not names:
            return None
        table = np.stack([scores[name] for name in names], axis=1)
        rows = np.flatnonzero(~np.isnan(table).all(axis=1) & (weights > 0))
        outcomes = Outcomes(table, weights)
        kind = _GLANCED
        if read is not None and _reading_pays(read, rows[-_SAMPLE:], outcomes):
            kind, features = _READ, read(rows)
        else:
            features = features[rows].unread
        # So that the first rows stand for all.
        order = np.random.default_rng(seed).permutation(len(rows))
        features, outcomes = features[order], outcomes[rows[order]]
        kernel = Kernel(kind, features[:max_landmarks], features[:max_landmarks])
        learnt = _learn(kernel, features, outcomes)
        coefficients = np.empty((len(kernel.landmarks), len(names)), np.float32)
        left = np.empty(outcomes.scores.shape)
        for apart in learnt:
            coefficients[:, apart.members] = apart.columns
            left[:, apart.members] = -apart.errors
        doubts = tuple(_doubt_of(apart, outcomes) for apart in learnt)
        known = [texts[i] for i in rows[order]] if texts else []
        memory = Memory.of(known, left[: len(known)], outcomes.weights[: len(known)])
        return cls(kernel, tuple(names), coefficients, outcomes.means, memory, doubts)

    @property
    def reads(self) -> bool:
        """Whether prompts must be read to predict."""
        return self.kernel.weights.reads

    def predict(self, features: Features, texts: Sequence[str] = ()) -> np.ndarray:
        """(n, candidates); what is sure to fail or succeed may lie a little beyond 0 and 1."""
        return self.foretell(features, texts)[0]

    def foretell(
        self, features: Features, texts: Sequence[str] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """What `predict` gives, and (n,) the likeness of the nearest prompt of known outcome, among
        the landmarks.

        Args:
            texts: (n) of the prompts, by which they are known again.
        """
        likeness = self.kernel(features)
        found = likeness @ self.coefficients + self.means
        if texts:
            found += self.memory.of_each(texts, len(self.candidates))
        return found, likeness.max(axis=1)

    def doubts(self, features: Features) -> np.ndarray:
        """(n, candidates) standard deviations of what sets each apart: of how easy the prompt is,
        all are equally unsure."""
        likeness = self.kernel(features)
        found = np.empty((len(features), len(self.candidates)))
        for doubt in self._doubts:
            found[:, doubt.members] = doubt(likeness)
        return found


def total(weights: np.ndarray, scores: np.ndarray) -> float:
    """Of the prompts that a candidate was tried on. A little is no less than it is for rounding."""
    return round(float(weights[~np.isnan(scores)].sum()), 6)


def _learn(kernel: Kernel, features: Features, outcomes: Outcomes) -> list[_Apart]:
    white = whitening(kernel(kernel.landmarks))
    blocks = range(0, len(features), _BLOCK)
    likeness = np.concatenate([kernel(features[i : i + _BLOCK]) for i in blocks])
    every = Spectrum.of(white, likeness, outcomes.weights)
    residuals = outcomes.scores - outcomes.means
    easy = np.nanmean(residuals, axis=1)[:, None]
    noise = min(_NOISES, key=lambda n: _mean_square(every.left_out(easy, n) - easy, every.weights))
    shared, known = every.coefficients(easy, noise), every.left_out(easy, noise)
    # Candidates that were tried on the same prompts are solved for together.
    tried, group = np.unique(~np.isnan(residuals), axis=1, return_inverse=True)
    found = []
    for i, rows in enumerate(tried.T):
        members = np.flatnonzero(group.ravel() == i)
        own = every if rows.all() else Spectrum.of(white, likeness[rows], outcomes.weights[rows])
        apart = residuals[np.ix_(rows, members)] - known[rows]
        noise, left = min(
            ((n, own.left_out(apart, n) - apart) for n in _NOISES),
            key=lambda tested: _mean_square(_told_apart(tested[1]), own.weights),
        )
        errors = np.full((len(rows), len(members)), np.nan)
        errors[rows] = left
        columns = shared + own.coefficients(apart, noise)
        found.append(_Apart(members, own, noise, columns, errors))
    return found


def _told_apart(errors: np.ndarray) -> np.ndarray:
    """(n, k) less what is common to all k, which changes no choice; of one alone, as they are."""
    return errors - errors.mean(axis=1, keepdims=True) if errors.shape[1] > 1 else errors


def _mean_square(errors: np.ndarray, weights: np.ndarray) -> float:
    return float(np.average((errors**2).mean(axis=1), weights=weights))


def _reading_pays(read: Read, rows: np.ndarray, outcomes: Outcomes) -> bool:
    """Whether what the reader says makes left-out predictions better, by more than their error."""
    features = read(rows)
    if features.states is None:
        return False
    table = outcomes.scores[rows]
    known = Outcomes(table[:, ~np.isnan(table).all(axis=0)], outcomes.weights[rows])
    landmarks = features[np.random.default_rng(0).permutation(len(rows))[:_SAMPLE_LANDMARKS]]
    by_kind = []
    for kind in (_GLANCED, _READ):
        learnt = _learn(Kernel(kind, landmarks, landmarks), features, known)
        errors = [_told_apart(apart.errors) ** 2 for apart in learnt]
        by_kind.append(np.nanmean(np.concatenate(errors, axis=1), axis=1))
    gains = by_kind[0] - by_kind[1]
    return bool(gains.mean() > _SURE * gains.std() / np.sqrt(len(gains)))


def _doubt_of(apart: _Apart, outcomes: Outcomes) -> _Doubt:
    spectrum = apart.spectrum
    weighed = np.nansum(apart.errors**2 * outcomes.weights[:, None], axis=0)
    totals = outcomes.totals[apart.members]
    variances = weighed / totals
    return _Doubt(
        apart.members,
        spectrum.basis.astype(np.float32),
        spectrum.shrinkage(apart.noise).astype(np.float32),
        variances / apart.noise,
        variances / totals,
    )
