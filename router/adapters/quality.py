"""How well each candidate will answer a prompt, learnt from how well it did: the perceptive head
of Tryage (2023) as one kernel ridge regression per candidate on the chooser's features."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from cluster.decisions import Outcome
from router.adapters.features import FeatureExtractor, Features, Kernel, KernelWeights
from router.adapters.outcomes.nearby import Nearby, Surroundings
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
        weights: np.ndarray | None = None,
        max_landmarks: int = 1024,
        seed: int = 0,
    ) -> "QualityPredictor | None":
        """Learn from n prompts; None when no candidate has :data:`MIN_RECORDS`.

        Args:
            scores: of each candidate (n,), NaN where it was not tried.
            weights: (n,) how much each prompt counts; 1 by default.
        """
        if weights is None:
            weights = np.ones(len(features))
        # Many that count for little are few.
        whole = np.minimum(weights, 1)
        known = {c: s for c, s in sorted(scores.items()) if _total(whole, s) >= MIN_RECORDS}
        if not known:
            return None
        # So that the first rows stand for all.
        order = np.random.default_rng(seed).permutation(len(features))
        features, weights = features[order], weights[order]
        known = {name: found[order] for name, found in known.items()}
        landmarks = features[:max_landmarks]
        kernel = Kernel(KernelWeights(), landmarks, landmarks)
        between = kernel(landmarks)
        likeness = np.concatenate(
            [kernel(features[i : i + _BLOCK]) for i in range(0, len(features), _BLOCK)]
        )
        table = np.stack(list(known.values()), axis=1)
        means = np.array([np.nansum(s * weights) / _total(weights, s) for s in known.values()])
        columns = np.empty((len(landmarks), len(known)))
        # Candidates that were tried on the same prompts are solved for together.
        tried, group = np.unique(~np.isnan(table), axis=1, return_inverse=True)
        for i, rows in enumerate(tried.T):
            members = np.flatnonzero(group.ravel() == i)
            targets = table[np.ix_(rows, members)] - means[members]
            columns[:, members] = _fit(between, likeness[rows], targets, weights[rows])
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


class Lesson(NamedTuple):
    """What teaches the choices of a tenant.

    Attributes:
        weights: how much one prompt's outcomes count, by the tenant that they are of.
    """

    outcomes: list[Outcome]
    weights: dict[str, float]


# By tenant; "" is for everybody who has none.
Lessons = dict[str, Lesson]


class OutcomeLearner:
    """Keeps a predictor of the outcomes for each tenant; only prompts not seen before are embedded,
    and only tenants whose outcomes have changed learn anew.

    Args:
        background: prompts of all kinds.
        shared: whether what one says of its answers teaches the choices of all.
    """

    def __init__(
        self, extract: FeatureExtractor, background: Features, *, shared: bool = False
    ) -> None:
        self._extract = extract
        self._background = background
        self._shared = shared
        self._lessons: Lessons = {}
        self._predictors: dict[str, QualityPredictor | None] = {}
        self._nearby: dict[str, Nearby] = {}
        self._features: dict[str, Features] = {}

    @property
    def candidates(self) -> tuple[str, ...]:
        """Those that outcomes are known of which teach everybody."""
        predictor = self._predictors.get("")
        return predictor.candidates if predictor else ()

    def learn(self, outcomes: Iterable[Outcome]) -> None:
        """Learn anew how well each candidate answers."""
        lessons = lessons_of(outcomes, shared=self._shared)
        self._embed({o.input for lesson in lessons.values() for o in lesson.outcomes})
        for owner in self._lessons.keys() - lessons.keys():
            del self._lessons[owner], self._predictors[owner]
            self._nearby.pop(owner, None)
        # Each is used as soon as it is there, the one for everybody first.
        for owner, lesson in lessons.items():
            if self._lessons.get(owner) != lesson:
                self._predictors[owner] = self._fit(owner, lesson)
                self._lessons[owner] = lesson

    def _embed(self, texts: set[str]) -> None:
        known = {text: f for text, f in self._features.items() if text in texts}
        if new := sorted(texts - known.keys()):
            read = self._extract.glance(new).compact()
            known |= {text: read[i : i + 1] for i, text in enumerate(new)}
        self._features = known

    def _fit(self, owner: str, lesson: Lesson) -> QualityPredictor | None:
        texts, scores, weights = weighed_table(lesson)
        if not texts:
            self._nearby.pop(owner, None)
            return None
        features = Features.stack([self._features[t] for t in texts])
        self._nearby[owner] = Nearby.of(features, scores, weights, self._background)
        return QualityPredictor.fit(features, scores, weights=weights)

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

    def around(self, features: Features, owner: str = "") -> list[Surroundings]:
        """How well prompts like each of n of a tenant's were answered; empty where nothing is
        known."""
        nearby = self._nearby.get(owner if owner in self._predictors else "")
        return nearby(features) if nearby is not None else []


def lessons_of(outcomes: Iterable[Outcome], *, shared: bool) -> Lessons:
    """What teaches everybody, and each tenant that has said enough: that, and its own on top.

    Everybody learns from what is nobody's; shared, from all, of whom each counts as much as the
    others however much it says.
    """
    said: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        said.setdefault(outcome.owner, []).append(outcome)
    weights = _voices(said) if shared else {"": 1.0}
    common = [o for owner in sorted(weights) for o in said.get(owner, ())]
    lessons = {"": Lesson(common, weights)}
    for owner, own in said.items():
        if owner and len(own) >= MIN_RECORDS:
            lessons[owner] = Lesson(
                common if owner in weights else common + own,
                weights | {owner: weights.get(owner, 0.0) + 1},
            )
    return lessons


def _voices(said: Mapping[str, list[Outcome]]) -> dict[str, float]:
    """What a prompt of each tenant counts, 1 on average; those that do not are left out.

    From :data:`MIN_RECORDS` prompts on each tenant has one voice, which its prompts share, and none
    a louder one than all others together; what that takes from it is given to nobody.
    """
    prompts = {owner: len({o.input for o in found}) for owner, found in said.items()}
    voices = {owner: min(1.0, count / MIN_RECORDS) for owner, count in prompts.items()}
    if not voices:
        return {}
    scale = sum(prompts.values()) / sum(voices.values())
    loudest = max(voices, key=lambda owner: voices[owner])
    if loudest:
        voices[loudest] = min(voices[loudest], sum(voices.values()) - voices[loudest])
    return {owner: scale * voice / prompts[owner] for owner, voice in voices.items() if voice > 0}


def table_of(outcomes: Iterable[Outcome]) -> tuple[list[str], dict[str, np.ndarray]]:
    """Distinct inputs, and per candidate its mean score on each (NaN: not tried)."""
    outcomes = list(outcomes)
    texts, scores, _ = weighed_table(Lesson(outcomes, {o.owner: 1.0 for o in outcomes}))
    return texts, scores


def weighed_table(lesson: Lesson) -> tuple[list[str], dict[str, np.ndarray], np.ndarray]:
    """Distinct inputs, per candidate its mean score on each (NaN: not tried), and what each counts.

    Of several tenants, the mean of what each says: to say it again does not make it count more.
    """
    rows: dict[str, int] = {}
    owners: list[set[str]] = []
    cells: dict[str, dict[int, dict[str, list[float]]]] = {}
    for outcome in lesson.outcomes:
        row = rows.setdefault(outcome.input, len(rows))
        if row == len(owners):
            owners.append(set())
        owners[row].add(outcome.owner)
        said = cells.setdefault(outcome.candidate, {}).setdefault(row, {})
        said.setdefault(outcome.owner, []).append(outcome.score)
    scores = {name: np.full(len(rows), np.nan) for name in cells}
    for name, found in cells.items():
        for row, by_owner in found.items():
            scores[name][row] = np.average(
                [np.mean(values) for values in by_owner.values()],
                weights=[lesson.weights[owner] for owner in by_owner],
            )
    weights = np.array([sum(lesson.weights[owner] for owner in spoke) for spoke in owners])
    return list(rows), scores, weights


def _total(weights: np.ndarray, scores: np.ndarray) -> float:
    """Of the prompts that a candidate was tried on. A little is no less than it is for rounding."""
    return round(float(weights[~np.isnan(scores)].sum()), 6)


def _fit(
    between: np.ndarray, likeness: np.ndarray, targets: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """(m, c) under the noise with which left-out scores (n, c) are best foretold."""
    fits = []
    some = slice(_SAMPLE)
    for level in _NOISES:
        noise = level / weights
        ridge = Ridge.fit(between, [Examples(likeness, targets, noise)])
        coefficients = ridge.coefficients()
        left_out = without_own(
            likeness[some] @ coefficients,
            targets[some],
            ridge.leverage(likeness[some], noise[some]),
        )
        errors = ((left_out - targets[some]) ** 2).mean(axis=1)
        fits.append((float(np.average(errors, weights=weights[some])), level, coefficients))
    return min(fits, key=lambda f: f[:2])[2]
