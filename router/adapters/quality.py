"""How well each candidate will answer a prompt, learnt from how well it did: the perceptive head
of Tryage (2023) as one kernel ridge regression per candidate on the chooser's features."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from cluster.decisions import Outcome
from router.adapters.features import FeatureExtractor, Features, Kernel, KernelWeights
from router.adapters.ridge import Examples, Ridge, without_own

# Fewer records than this foretell nothing.
MIN_RECORDS = 20
# Scores are noisy where labels are not: a right answer may be luck.
_NOISES = (0.3, 1.0, 3.0, 10.0)
_BLOCK = 4096
# Left-out errors are taken on this many prompts at most.
_SAMPLE = 2000


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

    @classmethod
    def fit(
        cls,
        features: Features,
        scores: Mapping[str, np.ndarray],
        *,
        max_landmarks: int = 1024,
        seed: int = 0,
    ) -> "QualityPredictor | None":
        """Learn from n prompts; None when no candidate has :data:`MIN_RECORDS`.

        Args:
            scores: of each candidate (n,), NaN where it was not tried.
        """
        known = {c: s for c, s in sorted(scores.items()) if (~np.isnan(s)).sum() >= MIN_RECORDS}
        if not known:
            return None
        features, known = _shuffled(features, known, np.random.default_rng(seed))
        landmarks = features[:max_landmarks]
        kernel = Kernel(KernelWeights(), landmarks, landmarks)
        between = kernel(landmarks)
        likeness = np.concatenate(
            [kernel(features[i : i + _BLOCK]) for i in range(0, len(features), _BLOCK)]
        )
        table = np.stack(list(known.values()), axis=1)
        means = np.nanmean(table, axis=0)
        columns = np.empty((len(landmarks), len(known)))
        # Candidates that were tried on the same prompts are solved for together.
        tried, group = np.unique(~np.isnan(table), axis=1, return_inverse=True)
        for i, rows in enumerate(tried.T):
            members = np.flatnonzero(group.ravel() == i)
            targets = table[np.ix_(rows, members)] - means[members]
            columns[:, members] = _fit(between, likeness[rows], targets)
        return cls(kernel, tuple(known), columns.astype(np.float32), means)

    def predict(self, features: Features) -> np.ndarray:
        """(n, candidates); what is sure to fail or succeed may lie a little beyond 0 and 1."""
        return self.foretell(features)[0]

    def foretell(self, features: Features) -> tuple[np.ndarray, np.ndarray]:
        """What `predict` gives, and (n,) the likeness of the nearest prompt of known outcome, among
        the landmarks."""
        likeness = self.kernel(features)
        return likeness @ self.coefficients + self.means, likeness.max(axis=1)


@dataclass(frozen=True)
class Foretold:
    """What outcomes say of one prompt.

    Attributes:
        qualities: predicted, by candidate, of those that outcomes are known of.
        nearest: how alike the nearest prompt of known outcome is.
    """

    qualities: Mapping[str, float] = field(default_factory=dict)
    nearest: float = 0.0


# Tenant -> the outcomes that teach its choices; "" is everybody who has none.
Lessons = dict[str, list[Outcome]]


class OutcomeLearner:
    """Keeps a predictor of the outcomes for each tenant; only prompts not seen before are embedded,
    and only tenants whose outcomes have changed learn anew.

    Args:
        shared: whether what one says of its answers teaches the choices of all.
    """

    def __init__(self, extract: FeatureExtractor, *, shared: bool = False) -> None:
        self._extract = extract
        self._shared = shared
        self._lessons: Lessons = {}
        self._predictors: dict[str, QualityPredictor | None] = {}
        self._features: dict[str, Features] = {}

    @property
    def candidates(self) -> tuple[str, ...]:
        """Those that outcomes are known of which teach everybody."""
        predictor = self._predictors.get("")
        return predictor.candidates if predictor else ()

    def learn(self, outcomes: Iterable[Outcome]) -> None:
        """Learn anew how well each candidate answers."""
        lessons = shared_lessons(outcomes) if self._shared else own_lessons(outcomes)
        self._embed({o.input for lesson in lessons.values() for o in lesson})
        self._predictors = {
            owner: self._predictors[owner]
            if self._lessons.get(owner) == lesson
            else self._fit(lesson)
            for owner, lesson in lessons.items()
        }
        self._lessons = lessons

    def _embed(self, texts: set[str]) -> None:
        known = {text: f for text, f in self._features.items() if text in texts}
        if new := sorted(texts - known.keys()):
            read = self._extract(new).compact()
            known |= {text: read[i : i + 1] for i, text in enumerate(new)}
        self._features = known

    def _fit(self, outcomes: Iterable[Outcome]) -> QualityPredictor | None:
        texts, scores = table_of(outcomes)
        if not texts:
            return None
        return QualityPredictor.fit(Features.stack([self._features[t] for t in texts]), scores)

    def foretell(self, features: Features, owner: str = "") -> list[Foretold]:
        """Of each of n prompts of a tenant."""
        predictor = self._predictors.get(owner if owner in self._predictors else "")
        if predictor is None:
            return [Foretold()] * len(features)
        predicted, nearest = predictor.foretell(features)
        return [
            Foretold(dict(zip(predictor.candidates, row, strict=True)), near)
            for row, near in zip(predicted.tolist(), nearest.tolist(), strict=True)
        ]


def own_lessons(outcomes: Iterable[Outcome]) -> Lessons:
    """A tenant learns from its own outcomes, and from those that are nobody's."""
    by_owner = _by_owner(outcomes)
    common = by_owner.pop("", [])
    return {"": common} | {owner: common + own for owner, own in by_owner.items()}


def shared_lessons(outcomes: Iterable[Outcome]) -> Lessons:
    """All learn from all: of the tenant that says most, no more than all others say, the newest."""
    by_owner = _by_owner(outcomes)
    loudest = max(by_owner, key=lambda owner: len(by_owner[owner]), default="")
    others = sum(len(said) for owner, said in by_owner.items() if owner != loudest)
    if loudest:
        by_owner[loudest] = by_owner[loudest][max(0, len(by_owner[loudest]) - others) :]
    return {"": [outcome for said in by_owner.values() for outcome in said]}


def _by_owner(outcomes: Iterable[Outcome]) -> Lessons:
    found: Lessons = {}
    for outcome in outcomes:
        found.setdefault(outcome.owner, []).append(outcome)
    return found


def table_of(outcomes: Iterable[Outcome]) -> tuple[list[str], dict[str, np.ndarray]]:
    """Distinct inputs, and per candidate its mean score on each (NaN: not tried).

    Of several tenants, the mean of what each says: to say it again does not make it count more.
    """
    rows: dict[str, int] = {}
    cells: dict[str, dict[int, dict[str, list[float]]]] = {}
    for outcome in outcomes:
        row = rows.setdefault(outcome.input, len(rows))
        said = cells.setdefault(outcome.candidate, {}).setdefault(row, {})
        said.setdefault(outcome.owner, []).append(outcome.score)
    scores = {name: np.full(len(rows), np.nan) for name in cells}
    for name, found in cells.items():
        for row, by_owner in found.items():
            scores[name][row] = np.mean([np.mean(values) for values in by_owner.values()])
    return list(rows), scores


def _shuffled(
    features: Features, scores: dict[str, np.ndarray], rng: np.random.Generator
) -> tuple[Features, dict[str, np.ndarray]]:
    """So that the first rows stand for all."""
    order = rng.permutation(len(features))
    return features[order], {name: found[order] for name, found in scores.items()}


def _fit(between: np.ndarray, likeness: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(m, c) under the noise with which left-out scores (n, c) are best foretold."""
    fits = []
    for level in _NOISES:
        noise = np.full(len(targets), level)
        ridge = Ridge.fit(between, [Examples(likeness, targets, noise)])
        coefficients = ridge.coefficients()
        some = slice(_SAMPLE)
        left_out = without_own(
            likeness[some] @ coefficients,
            targets[some],
            ridge.leverage(likeness[some], noise[some]),
        )
        error = float(((left_out - targets[some]) ** 2).mean())
        fits.append((error, level, coefficients))
    return min(fits, key=lambda f: f[:2])[2]
