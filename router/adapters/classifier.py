"""How well each adapter fits a prompt, and whether any does.

The choice: kernel ridge regression on the cards' texts (`features.py`, `ridge.py`), one target per
adapter, then a softmax with a fitted temperature (Guo et al., ICML 2017). The scope: a logistic
regression on three signals of how well the prompt is known - the best score, the likeness of the
nearest example, and the variance of the Gaussian process that has this regression for its mean
(Rasmussen & Williams 2006, eq. 2.26) - between the examples, each scored without itself, and a
shipped list of everyday prompts.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import scipy.linalg
import scipy.sparse
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logit, softmax
from sklearn.linear_model import LogisticRegression

from router.adapters.features import Features, Kernel, KernelWeights
from router.adapters.ridge import Examples, Ridge, without_own

_NOISE = 0.05
# An adapter with few examples has low scores even where it is right: k / n is what it lacks.
_FEW_EXAMPLES = 3.0
# That lends a score, but only so much counts as a sign that the prompt is known.
_SURE_GAIN = 1.5
# Of the posterior variance, which costs the square of them at each prompt.
_VARIANCE_LANDMARKS = 512
_BLOCK = 4096
# Mistakes are counted on this many examples at most.
_SAMPLE = 2000
# Up to this many adapters all are scored; of more, a shortlist.
_EXACT_CLASSES = 1024
_SHORTLIST = 256
# Fewer examples that can be left out say nothing.
_MIN_LEFT_OUT = 3
_TUNING_CLASSES, _TUNING_EXAMPLES = 40, 15
_TUNING_GRID = {
    "meaning": (0.5, 1.0, 2.0),
    "form": (0.4, 0.8, 1.6),
    "wording": (0.1, 0.25, 0.5, 1.0),
}
# Adapters that take each other's prompts this often (a coin would: half) cannot be told apart.
_TWINS = 0.35
# Likeness of a text and its copy, up to rounding.
_SAME = 0.999


@dataclass(frozen=True)
class Scope:
    """Probability that a prompt is one that some adapter was made for: logistic in the signals."""

    weights: np.ndarray
    intercept: float
    threshold: float
    auroc: float | None = None

    def __call__(self, signals: np.ndarray) -> np.ndarray:
        """(n,) of signals (n, 3)."""
        return expit(signals @ self.weights + self.intercept)


# Of a catalogue that has nothing to learn them from, such as descriptions alone: fitted to twelve
# catalogues of 3 to 100 descriptions of CLINC150's intents and its validation prompts. Such a text
# describes prompts rather than being one: it shares their meaning, less their form and wording.
_OF_DESCRIPTIONS = KernelWeights(meaning=2.0, form=0.2, wording=0.05, linear_form=0.05)
_DEFAULT_TEMPERATURE = 10.0
_DEFAULT_WEIGHTS, _DEFAULT_THRESHOLD = np.array([2.8, 18.8, 0.0]), 0.3
# Everyday prompts that must be told apart before prompts may be less alike than the examples.
_EVERYDAY_OUT = 0.8
_NEARER = 1 / 3
# How alike prompts and descriptions are differs between catalogues; how many everyday prompts may
# seem in scope does not.
_EVERYDAY_IN_SCOPE = 0.3


@dataclass(frozen=True)
class Report:
    """What leaving out one example at a time says of a catalogue.

    Attributes:
        top1: share of the examples whose own adapter comes first; None with nothing to leave out.
        ece: expected calibration error of the probabilities, 15 bins.
        scope_auroc: how well the scope tells examples from everyday prompts.
        twins: pairs of classes that cannot be told apart, and how often they are confused.
    """

    examples: int
    landmarks: int
    temperature: float
    threshold: float
    kernel: KernelWeights
    top1: float | None = None
    ece: float | None = None
    scope_auroc: float | None = None
    twins: tuple[tuple[int, int, float], ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Of one prompt; its classes are a shortlist where there are many.

    Attributes:
        classes: (s,) that are allowed, best first.
        before: classes with a better score than the first that are not allowed, best first.
        scores: (s,) about 1 for the right class, 0 for the others.
        probabilities: (s,) that the class is the right one, given that one is.
        scope: probability that one is.
        likeness: (m,) to the landmarks.
        wording: (m,) the share of the likeness that shared wording makes, 0 to 1.
    """

    classes: np.ndarray
    before: np.ndarray
    scores: np.ndarray
    probabilities: np.ndarray
    scope: float
    likeness: np.ndarray
    wording: np.ndarray


@dataclass(frozen=True)
class Classifier:
    """Never changed once made: `fit` makes one, `with_classes` and `without_class` make others.

    Attributes:
        landmarks: (m,) class of each landmark; -1 when its class is gone.
        counts: (c,) examples of each class.
        centroids: (c, d) mean meaning of each class; of many, the nearest are scored.
        rows: (m,) which example of its class each landmark is.
        typical: mean of the counts when it was fitted; the noise of an example is told by it.
    """

    kernel: Kernel
    ridge: Ridge
    landmarks: np.ndarray
    rows: np.ndarray
    counts: np.ndarray
    typical: float
    coefficients: np.ndarray
    variance: np.ndarray
    temperature: float
    scope: Scope
    report: Report
    centroids: np.ndarray
    late: tuple[Kernel, np.ndarray] | None = None

    @classmethod
    def fit(
        cls,
        features: Features,
        labels: np.ndarray,
        background: Features,
        *,
        accept_rate: float,
        in_scope_share: float,
        max_landmarks: int,
        seed: int = 0,
    ) -> "Classifier":
        """Learn a catalogue.

        Args:
            features: of n examples of c classes; every class has one at least.
            labels: (n,) class of each.
            background: of prompts that no adapter was made for.
            accept_rate: share of the examples that shall count as in scope.
            in_scope_share: share of the traffic that is expected to be.
            max_landmarks: time and memory grow with it: m^2 to learn, m per prompt.
        """
        rng = np.random.default_rng(seed)
        classes = int(labels.max()) + 1
        order = rng.permutation(len(labels))
        landmarks = order[:max_landmarks]
        weights = _tune(features, labels, rng)
        chosen = features[landmarks]
        kernel = Kernel(weights, chosen, chosen)
        counts = np.bincount(labels, minlength=classes)
        # A class speaks with the same total weight, however many examples it has.
        noise = _NOISE * counts[labels] / counts.mean()
        prior = kernel.prior()
        ridge = Ridge.fit(prior, _blocks(kernel, features, labels, noise, classes))
        near = min(len(landmarks), _VARIANCE_LANDMARKS)
        variance = _inverse(prior[:near, :near])
        blank = Report(
            len(labels), len(landmarks), _DEFAULT_TEMPERATURE, _DEFAULT_THRESHOLD, weights
        )
        made = cls(
            kernel,
            ridge,
            labels[landmarks],
            _place_in_class(labels)[landmarks],
            counts,
            float(counts.mean()),
            _coefficients(ridge, counts),
            variance,
            _DEFAULT_TEMPERATURE,
            Scope(_DEFAULT_WEIGHTS, 0.0, _DEFAULT_THRESHOLD),
            blank,
            _centroids(features, labels),
        )
        # From the end: what is no landmark comes nearest to a prompt never seen.
        held = np.flatnonzero(counts[labels[order]] > 1)[-_SAMPLE:]
        if len(held) < _MIN_LEFT_OUT:
            return replace(made, scope=_scope_without_examples(made._signals_of(background)))
        return made._calibrated(
            _LeftOut.of(made, features, labels, noise, order, held),
            made._signals_of(background),
            accept_rate,
            in_scope_share,
        )

    @property
    def classes(self) -> int:
        return len(self.counts)

    def judge(self, features: Features, seen: np.ndarray, allowed: np.ndarray) -> list[Verdict]:
        """Of each of n prompts.

        Args:
            seen: (c,) classes that exist for whoever asks.
            allowed: (c,) which of them may be chosen; one at least.
        """
        parts = self.kernel.parts(features)
        likeness = self.kernel.combine(parts, self.kernel.weights)
        wording = self.kernel.wording_share(parts, likeness)
        known = self._familiarity(features, likeness, allowed)
        regressors = np.concatenate([likeness, self.kernel.coordinates(features)], axis=1)
        thinkable = self._shortlists(features, seen, allowed)
        rows = zip(regressors, wording, known, thinkable, strict=True)
        return [self._verdict(*row, allowed) for row in rows]

    def _verdict(
        self,
        regressors: np.ndarray,
        wording: np.ndarray,
        known: np.ndarray,
        thinkable: np.ndarray,
        allowed: np.ndarray,
    ) -> Verdict:
        classes, scores = self._ranked(regressors, thinkable)
        usable = allowed[classes]
        chosen = scores[usable]
        best = self._sure(chosen[:1], classes[usable][:1])
        scope = float(self.scope(np.concatenate([best, known])))
        # Better known to a class that may not be chosen: so much less likely to be this one's.
        scope *= float(np.clip(chosen[0] / max(scores[0], 1e-6), 0, 1))
        return Verdict(
            classes[usable],
            classes[: int(usable.argmax())],
            chosen,
            softmax(self.temperature * chosen),
            scope,
            regressors[: len(wording)],
            wording,
        )

    def _shortlists(
        self, features: Features, seen: np.ndarray, allowed: np.ndarray
    ) -> list[np.ndarray]:
        """Per prompt the classes worth scoring: all, or of many the nearest by their centroids, of
        those that are seen and of those that are allowed."""
        if self.classes <= _EXACT_CLASSES:
            return [np.flatnonzero(seen)] * len(features)
        near = features.meaning @ self.centroids.T
        masks = [seen] if np.array_equal(seen, allowed) else [seen, allowed]
        lists = []
        for mask in masks:
            masked = np.where(mask, near, -np.inf)
            found = np.argpartition(-masked, _SHORTLIST, axis=1)[:, :_SHORTLIST]
            lists.append([row[mask[row]] for row in found])
        return [np.unique(np.concatenate(rows)) for rows in zip(*lists, strict=True)]

    def _ranked(self, regressors: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The classes, best first, and their scores."""
        if self.classes <= _EXACT_CLASSES:
            # All in one product: to pick rows would copy them.
            scores = self._score(regressors[None])[0][classes]
        else:
            scores = self._score(regressors[None], classes)[0]
        order = np.argsort(-scores, kind="stable")
        return classes[order], scores[order]

    def contributions(self, likeness: np.ndarray, label: int) -> np.ndarray:
        """(m,) what each landmark adds to the score of a class for one prompt (m,)."""
        return likeness * self.coefficients[label][: len(likeness)]

    # -- changes ----------------------------------------------------------------------------

    def with_classes(self, features: Features, labels: np.ndarray) -> "Classifier":
        """With more classes, numbered on from the last. What the others had learnt follows
        exactly; the landmarks, the temperature and the scope stay as they are."""
        added = np.bincount(labels - self.classes)
        targets = np.zeros((len(labels), self.classes + len(added)))
        targets[np.arange(len(labels)), labels] = 1
        noise = _NOISE * added[labels - self.classes] / self.typical
        ridge = self.ridge.with_examples(Examples(self.kernel.regressors(features), targets, noise))
        counts = np.concatenate([self.counts, added])
        return replace(
            self,
            ridge=ridge,
            counts=counts,
            coefficients=_coefficients(ridge, counts),
            centroids=np.concatenate([self.centroids, _centroids(features, labels - self.classes)]),
            late=self._later(features, labels),
        )

    def without_class(self, label: int, features: Features) -> "Classifier":
        """Without a class whose examples these are; the classes after it move up by one."""
        targets = np.zeros((len(features), self.classes))
        targets[:, label] = 1
        noise = np.full(len(features), -_NOISE * len(features) / self.typical)
        examples = Examples(self.kernel.regressors(features), targets, noise)
        ridge = self.ridge.with_examples(examples).without_target(label)
        counts = np.delete(self.counts, label)
        late = self.late and (self.late[0], _moved_up(self.late[1], label))
        return replace(
            self,
            ridge=ridge,
            counts=counts,
            coefficients=_coefficients(ridge, counts),
            landmarks=_moved_up(self.landmarks, label),
            centroids=np.delete(self.centroids, label, axis=0),
            late=late,
        )

    def _later(self, features: Features, labels: np.ndarray) -> tuple[Kernel, np.ndarray]:
        if self.late is None:
            return self.kernel.of(features), labels
        kernel, known = self.late
        both = Features.stack([kernel.landmarks, features])
        return self.kernel.of(both), np.concatenate([known, labels])

    # -- scores and signals -----------------------------------------------------------------

    def _score(self, regressors: np.ndarray, classes: np.ndarray | None = None) -> np.ndarray:
        """(n, c), of all classes or of some."""
        coefficients = self.coefficients if classes is None else self.coefficients[classes]
        counts = self.counts if classes is None else self.counts[classes]
        return regressors @ coefficients.T + _gain(counts) * _unknown(self.classes)

    def _sure(self, scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Scores as they count for the scope: what a single example lacks may be lent to it to win
        over others, but is no sign that the prompt is known."""
        gain = _gain(self.counts)[classes]
        return np.minimum(scores / gain * np.minimum(gain, _SURE_GAIN), 1)

    def _surest(self, scores: np.ndarray) -> np.ndarray:
        """(n,) of the best of the scores (n, c)."""
        return self._sure(scores.max(axis=1), scores.argmax(axis=1))

    def _signals_of(self, features: Features) -> np.ndarray:
        """(n, 3) best score, likeness of the nearest example, posterior variance."""
        regressors = self.kernel.regressors(features)
        likeness = regressors[:, : len(self.landmarks)]
        allowed = np.ones(self.classes, dtype=bool)
        best = self._surest(self._score(regressors))
        return np.column_stack([best, self._familiarity(features, likeness, allowed)])

    def _familiarity(
        self, features: Features, likeness: np.ndarray, allowed: np.ndarray
    ) -> np.ndarray:
        """(n, 2) likeness of the nearest example of an allowed class, posterior variance."""
        nearest = _nearest(likeness, self.landmarks, allowed)
        if self.late is not None:
            kernel, labels = self.late
            nearest = np.maximum(nearest, _nearest(kernel(features), labels, allowed))
        part = likeness[:, : len(self.variance)]
        variance = 1 - np.einsum("ij,ij->i", part @ self.variance, part)
        return np.column_stack([nearest, variance])

    def _calibrated(
        self,
        left_out: "_LeftOut",
        outside: np.ndarray,
        accept_rate: float,
        in_scope_share: float,
    ) -> "Classifier":
        twins = _twins(left_out.scores, left_out.labels)
        temperature = _fit_temperature(*left_out.without(twins))
        scope = _fit_scope(left_out.signals, outside, accept_rate, in_scope_share)
        probabilities = softmax(temperature * left_out.scores, axis=1)
        right = left_out.scores.argmax(axis=1) == left_out.labels
        report = replace(
            self.report,
            temperature=temperature,
            threshold=scope.threshold,
            top1=float(right.mean()),
            ece=calibration_error(probabilities.max(axis=1), right),
            scope_auroc=scope.auroc,
            twins=twins,
        )
        return replace(self, temperature=temperature, scope=scope, report=report)


@dataclass(frozen=True)
class _LeftOut:
    """Examples as they would be seen had they not been learnt from."""

    scores: np.ndarray
    signals: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(
        cls,
        made: Classifier,
        features: Features,
        labels: np.ndarray,
        noise: np.ndarray,
        order: np.ndarray,
        held: np.ndarray,
    ) -> "_LeftOut":
        """Args: held: positions in `order`, of which the first are the landmarks."""
        rows = order[held]
        own, regressors = labels[rows], made.kernel.regressors(features[rows])
        gain = _gain(made.counts)
        targets = np.eye(made.classes, dtype=np.float32)[own] - _unknown(made.classes)
        predicted = regressors @ (made.coefficients / gain[:, None]).T
        leverage = made.ridge.leverage(regressors, noise[rows])
        scores = (without_own(predicted, targets, leverage) + _unknown(made.classes)) * gain

        blind = regressors[:, : len(made.landmarks)].copy()
        is_landmark = held < len(made.landmarks)
        blind[is_landmark, held[is_landmark]] = 0
        # The same text on another card would be found again: of a prompt there is no copy.
        blind[blind > _SAME] = 0
        everything = np.ones(made.classes, dtype=bool)
        known = made._familiarity(features[rows], blind, everything)
        # Of an example that the variance is made from: 1 / Q_ii is what it has without itself.
        inside = held < len(made.variance)
        known[inside, 1] = 1 / np.diag(made.variance)[held[inside]] - _NOISE
        return cls(
            scores,
            np.column_stack([made._surest(scores), known]),
            own,
        )

    def without(self, twins: Iterable[tuple[int, int, float]]) -> tuple[np.ndarray, np.ndarray]:
        """Scores and labels of all but the twins: that one is as good as the other must not make
        the probabilities of everything else flat."""
        alone = ~np.isin(self.labels, [c for a, b, _ in twins for c in (a, b)])
        if alone.sum() < _MIN_LEFT_OUT:
            return self.scores, self.labels
        return self.scores[alone], self.labels[alone]


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Naeini et al., AAAI 2015): mean gap between the two, by bins."""
    edges = np.linspace(0, 1, bins + 1)
    inside = [(confidence > low) & (confidence <= high) for low, high in pairwise(edges)]
    gaps = [m.mean() * abs(confidence[m].mean() - right[m].mean()) for m in inside if m.any()]
    return float(sum(gaps))


def _gain(counts: np.ndarray) -> np.ndarray:
    return (1 + _FEW_EXAMPLES / counts).astype(np.float32)


def _unknown(classes: int) -> float:
    """Score of a text that is like no other: any of the classes, or none, alike."""
    return 1 / (classes + 1)


def _coefficients(ridge: Ridge, counts: np.ndarray) -> np.ndarray:
    """(c, m) float32, a class in one piece of memory."""
    solved = ridge.coefficients(_unknown(len(counts))).T
    return np.ascontiguousarray(solved * _gain(counts)[:, None], dtype=np.float32)


def _blocks(
    kernel: Kernel, features: Features, labels: np.ndarray, noise: np.ndarray, classes: int
):
    for start in range(0, len(labels), _BLOCK):
        rows = slice(start, start + _BLOCK)
        here = labels[rows]
        ones = np.ones(len(here))
        targets = scipy.sparse.csr_matrix(
            (ones, (np.arange(len(here)), here)), shape=(len(here), classes)
        )
        yield Examples(kernel.regressors(features[rows]), targets, noise[rows])


def _place_in_class(labels: np.ndarray) -> np.ndarray:
    """(n,) how many examples of the same class come before each."""
    places = np.empty(len(labels), dtype=int)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        places[members] = np.arange(len(members))
    return places


def _centroids(features: Features, labels: np.ndarray) -> np.ndarray:
    """(c, d) mean meaning of each class."""
    rows = np.arange(len(labels))
    members = scipy.sparse.csr_matrix((np.ones(len(rows)), (labels, rows)))
    return (members @ features.meaning / np.bincount(labels)[:, None]).astype(np.float32)


def _nearest(likeness: np.ndarray, labels: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """(n,) likeness of the nearest landmark of an allowed class; 0 when there is none."""
    usable = (labels >= 0) & allowed[labels]
    return likeness[:, usable].max(axis=1, initial=0.0)


def _moved_up(labels: np.ndarray, gone: int) -> np.ndarray:
    moved = labels - (labels > gone)
    moved[labels == gone] = -1
    return moved


def _inverse(between: np.ndarray) -> np.ndarray:
    system = between.astype(np.float64)
    system[np.diag_indices_from(system)] += _NOISE
    return scipy.linalg.inv(system, assume_a="pos").astype(np.float32)


def _fit_temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """The sharpness at which the probabilities of the right classes are largest."""

    def loss(log_temperature: float) -> float:
        return _log_loss(np.exp(log_temperature) * scores, labels)

    return float(np.exp(minimize_scalar(loss, bounds=(0.0, 5.0), method="bounded").x))


def _log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Of n examples, with Platt's targets (1999): n right ones do not prove that none is wrong."""
    logs = log_softmax(logits, axis=1)
    own = logs[np.arange(len(labels)), labels].mean()
    return -float(own + (logs.mean() - own) / (len(labels) + 2))


def _fit_scope(
    inside: np.ndarray, outside: np.ndarray, accept_rate: float, in_scope_share: float
) -> Scope:
    signals = np.concatenate([inside, outside])
    truth = np.repeat([True, False], [len(inside), len(outside)])
    mean, spread = signals.mean(axis=0), signals.std(axis=0) + 1e-6
    fitted = LogisticRegression(class_weight="balanced").fit((signals - mean) / spread, truth)
    weights = fitted.coef_[0] / spread
    # Balanced classes were a half each; the traffic is not.
    odds = np.log(in_scope_share / (1 - in_scope_share))
    intercept = float(fitted.intercept_[0] - mean @ weights + odds)
    known, unknown = inside @ weights + intercept, outside @ weights + intercept
    above = (known[:, None] > unknown).mean() + (known[:, None] == unknown).mean() / 2
    # As low as the examples need. Where most of the everyday prompts lie lower still, nearer to
    # them: prompts are less like the examples than these are like each other.
    least, most = np.quantile(known, 1 - accept_rate), np.quantile(unknown, _EVERYDAY_OUT)
    threshold = float(expit(min(least, most + _NEARER * (least - most))))
    return Scope(weights, intercept, threshold, float(above))


def _twins(scores: np.ndarray, labels: np.ndarray) -> tuple[tuple[int, int, float], ...]:
    """Pairs whose examples, left out, go to the other as often as to their own."""
    wrong = scores.argmax(axis=1)
    seen = np.bincount(labels, minlength=scores.shape[1])
    pairs: dict[tuple[int, int], int] = {}
    for own, taken in zip(labels.tolist(), wrong.tolist(), strict=True):
        if own != taken:
            pair = (min(own, taken), max(own, taken))
            pairs[pair] = pairs.get(pair, 0) + 1
    shares = ((a, b, n / (seen[a] + seen[b])) for (a, b), n in sorted(pairs.items()) if n > 3)
    return tuple((a, b, round(float(s), 3)) for a, b, s in shares if s >= _TWINS)


def _scope_without_examples(outside: np.ndarray) -> Scope:
    """The default weights, with the odds at which a set share of everyday prompts is in scope."""
    evidence = np.quantile(outside @ _DEFAULT_WEIGHTS, 1 - _EVERYDAY_IN_SCOPE)
    intercept = float(logit(_DEFAULT_THRESHOLD) - evidence)
    return Scope(_DEFAULT_WEIGHTS, intercept, _DEFAULT_THRESHOLD)


def _tune(features: Features, labels: np.ndarray, rng: np.random.Generator) -> KernelWeights:
    """The kernel weights under which left-out examples of some classes are best foretold."""
    if (np.bincount(labels)[labels] > 1).sum() < _MIN_LEFT_OUT:
        return _OF_DESCRIPTIONS
    default = KernelWeights()
    rows = _few_of_some(labels, rng)
    _, own = np.unique(labels[rows], return_inverse=True)
    counts = np.bincount(own)
    scored = counts[own] > 1
    if len(counts) < 2 or scored.sum() < 8 * _MIN_LEFT_OUT:
        return default
    chosen = features[rows]
    kernel = Kernel(default, chosen, chosen)
    parts, places = kernel.parts(chosen), kernel.coordinates(chosen)
    targets = np.eye(len(counts))[own] - _unknown(len(counts))
    beside = places @ places.T + np.diag(_NOISE * counts[own] / counts.mean())

    def loss(weights: KernelWeights) -> float:
        inverse = scipy.linalg.inv(Kernel.combine(parts, weights) + beside, assume_a="pos")
        left_out = targets - (inverse @ targets) / np.diag(inverse)[:, None]
        scores = (left_out + _unknown(len(counts))) * _gain(counts)
        temperature = _fit_temperature(scores[scored], own[scored])
        return _log_loss(temperature * scores[scored], own[scored])

    best, lowest = default, loss(default)
    for name, values in _TUNING_GRID.items():
        for weights in [replace(best, **{name: v}) for v in values if v != getattr(best, name)]:
            found = loss(weights)
            # A hair's breadth is luck: a few hundred examples say no more.
            if found < 0.98 * lowest:
                best, lowest = weights, found
    return best


def _few_of_some(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows of at most so many classes, and at most so many of each."""
    some = rng.permutation(np.unique(labels))[:_TUNING_CLASSES]
    rows = [rng.permutation(np.flatnonzero(labels == c))[:_TUNING_EXAMPLES] for c in some]
    return np.concatenate(rows)
