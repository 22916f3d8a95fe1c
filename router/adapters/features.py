"""What the chooser sees of a text, and how alike two texts are.

    k(x, y) = (exp(-a (1 - <m_x, m_y>) - b (1 - <f_x, f_y>) / s) + c <w_x, w_y>
               + d exp(-(1 - <r_x, r_y>) / s') + e exp(-(1 - <l_x, l_y>) / s'')) / (1 + c + d + e)

`m` is the meaning and `f` the form of a text (two depths of one encoder pass, `encoder.py`), `w`
its wording (tf-idf of character and word n-grams), `r` and `l` how the reader's first layers see it
(mean and last state, `reader.py`), less the mean of the catalogue; each `s` is how far apart
unrelated texts are. Gaussian kernels on the sphere. Of meaning and form it is their product:
examples count when they are near in both. The others count by themselves: a shared rare word, or
that the model is about to do the same.

Where there are more examples than landmarks to compare with, many a class has no landmark near. So
the regression sees, beside the likeness to the landmarks, where a text lies: its centred meaning
and form, as a linear kernel. With two landmarks per class (150 intents of CLINC150, 20 examples
each) that keeps 93 of 94 points of accuracy; without it, 85.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace

import numpy as np
import scipy.linalg
import scipy.sparse
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

from router.adapters.encoder import Encoder, unit_rows
from router.adapters.prompts import ends_of
from router.adapters.reader import Reader

# Part of the features' version: raise it when the n-grams or their window change.
_WORDING_VERSION = 2
# The ends of a longer text give its n-grams, as they give its embeddings.
_WORDING_HEAD_CHARS, _WORDING_TAIL_CHARS = 1200, 600
# Counts only: signed hashes could cancel out to 0, which tf-idf has no logarithm for.
_HASHING = {"n_features": 2**18, "norm": None, "alternate_sign": False, "dtype": np.float32}
# Weight of the linear kernel of meanings beside a likeness of 1; of its coordinates, the root.
_LINEAR_MEANING = 0.1
# Texts whose distances tell a scale, and what is no distance.
_APART, _NO_DISTANCE = 200, 1e-6
_CHARS = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 5), **_HASHING)
_WORDS = HashingVectorizer(analyzer="word", ngram_range=(1, 2), **_HASHING)


@dataclass(frozen=True)
class Features:
    """Of n texts.

    Attributes:
        meaning, form: (n, d) and (n, h) of unit rows.
        wording: (n, hashes) counts.
        states: (n, 2, r) the reader's mean and last state; None where it has not read them.
    """

    meaning: np.ndarray
    form: np.ndarray
    wording: scipy.sparse.csr_matrix
    states: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.meaning)

    def __getitem__(self, rows: np.ndarray | list[int] | slice) -> "Features":
        states = None if self.states is None else self.states[rows]
        return Features(self.meaning[rows], self.form[rows], self.wording[rows], states)

    @property
    def unread(self) -> "Features":
        """The same without what the reader says."""
        return replace(self, states=None)

    def compact(self) -> "Features":
        """Half the memory, for keeping: two hundred thousand examples fit in a gigabyte, in two
        with a reader of 576 dimensions."""
        return replace(
            self,
            meaning=self.meaning.astype(np.float16),
            form=self.form.astype(np.float16),
            states=None if self.states is None else self.states.astype(np.float16),
        )

    @classmethod
    def stack(cls, parts: list["Features"]) -> "Features":
        states = [p.states for p in parts if p.states is not None]
        return cls(
            np.concatenate([p.meaning for p in parts]).astype(np.float32),
            np.concatenate([p.form for p in parts]).astype(np.float32),
            scipy.sparse.vstack([p.wording for p in parts], format="csr"),
            np.concatenate(states).astype(np.float32) if len(states) == len(parts) else None,
        )


class FeatureExtractor:
    """Texts to features. `version` names everything that they depend on."""

    def __init__(self, encoder: Encoder, reader: Reader | None = None) -> None:
        self._encoder = encoder
        self._reader = reader
        self.version = f"{encoder.version}/ngrams-{_WORDING_VERSION}"
        if reader is not None:
            self.version += f"/{reader.version}"

    def __call__(self, texts: list[str]) -> Features:
        """All that can be told of texts."""
        return self.read(texts, self.glance(texts))

    def glance(self, texts: list[str]) -> Features:
        """What is told soonest: all but what the reader says."""
        embeddings = self._encoder.encode(texts)
        ends = [ends_of(text, _WORDING_HEAD_CHARS, _WORDING_TAIL_CHARS) for text in texts]
        wording = scipy.sparse.hstack([_CHARS.transform(ends), _WORDS.transform(ends)])
        return Features(embeddings.meaning, embeddings.form, wording.tocsr())

    def read(self, texts: list[str], glanced: Features) -> Features:
        """With what the reader says of the same texts, where there is one."""
        if self._reader is None:
            return glanced
        return replace(glanced, states=self._reader.read(texts))


class Glances:
    """Texts of which the reader's states are told when they are first asked for."""

    def __init__(self, extract: FeatureExtractor, texts: Sequence[str], glanced: Features) -> None:
        self._extract = extract
        self.texts = texts
        self.glanced = glanced
        self._states: dict[int, np.ndarray] = {}

    def read(self, rows: np.ndarray) -> Features:
        """Features of some of the texts, with what the reader says where there is one."""
        glanced = self.glanced[rows]
        if new := [i for i in rows.tolist() if i not in self._states]:
            states = self._extract.read([self.texts[i] for i in new], self.glanced[new]).states
            if states is None:
                return glanced
            self._states |= dict(zip(new, states, strict=True))
        return replace(glanced, states=np.stack([self._states[i] for i in rows.tolist()]))


@dataclass(frozen=True)
class KernelWeights:
    """How much each kind of likeness counts: a to e of the module's formula; `linear_form` is the
    weight of the linear kernel of forms beside it."""

    meaning: float = 1.0
    form: float = 0.8
    wording: float = 0.25
    mean: float = 0.0
    last: float = 0.0
    linear_form: float = 0.2

    @property
    def told(self) -> dict[str, float]:
        """By name, for people."""
        return {name: round(value, 3) for name, value in asdict(self).items()}

    @property
    def reads(self) -> bool:
        """Whether what the reader says counts."""
        return self.mean + self.last > 0


@dataclass(frozen=True)
class Parts:
    """What is alike of n texts and m landmarks, by kind, each (n, m).

    Attributes:
        meaning, form: exponents, (form - 1) / s.
        mean, last: of the reader; None where it has not read them.
    """

    meaning: np.ndarray
    form: np.ndarray
    wording: np.ndarray
    mean: np.ndarray | None = None
    last: np.ndarray | None = None

    def shares(self, weights: KernelWeights) -> dict[str, np.ndarray]:
        """What each kind adds to the likeness, by the kernel's name."""
        total = np.float32(1 + weights.wording + weights.mean + weights.last)
        found = {
            "meaning and form": np.exp(weights.meaning * self.meaning + weights.form * self.form),
            "wording": weights.wording * self.wording,
        }
        if self.mean is not None and self.last is not None and weights.reads:
            found |= {"reader": weights.mean * self.mean + weights.last * self.last}
        return {name: part / total for name, part in found.items()}

    def combine(self, weights: KernelWeights) -> np.ndarray:
        """The module's formula."""
        return total_of(self.shares(weights))


def total_of(shares: Mapping[str, np.ndarray]) -> np.ndarray:
    """(n, m) the likeness that these are shares of."""
    total: np.ndarray = np.add.reduce(list(shares.values()))
    return total


class _Sphere:
    """Directions from the mean of reference texts, and how far apart those are."""

    def __init__(self, rows: np.ndarray) -> None:
        self._centre = rows.mean(axis=0)
        some = self(rows[:_APART])
        apart = float((1 - some @ some.T).mean())
        self.per_distance = np.float32(1 / apart if apart > _NO_DISTANCE else 0)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return unit_rows(rows - self._centre)


class Kernel:
    """Likeness of texts, between 0 and 1; a text is 1 to itself.

    Args:
        reference: features of texts that stand for all others: the weight of an n-gram is how
            rare it is here, and the scales and centres are of these texts.
        landmarks: (m) the texts that others will be compared with.
    """

    def __init__(self, weights: KernelWeights, reference: Features, landmarks: Features) -> None:
        self.weights = weights
        self._tfidf = TfidfTransformer(sublinear_tf=True).fit(reference.wording)
        some = reference.form[:_APART]
        apart = 1 - (some @ some.T)
        # Encoders without layers have no form to tell texts apart by.
        has_form = reference.form.shape[1] > 0 and apart.mean() > _NO_DISTANCE
        self._per_form = np.float32(1 / apart.mean() if has_form else 0)
        self._centre = {name: getattr(reference, name).mean(axis=0) for name in ("meaning", "form")}
        states = reference.states
        self._spheres = () if states is None else tuple(_Sphere(states[:, i]) for i in (0, 1))
        self.landmarks, self.landmark_words = landmarks, self._weigh(landmarks).T.tocsr()
        self._landmark_states = self._directions(landmarks)

    def of(self, landmarks: Features) -> "Kernel":
        """The same kernel, to other landmarks."""
        other = copy(self)
        other.landmarks, other.landmark_words = landmarks, self._weigh(landmarks).T.tocsr()
        other._landmark_states = self._directions(landmarks)  # noqa: SLF001  (its own copy)
        return other

    def __call__(self, features: Features) -> np.ndarray:
        """Likeness of n texts to the landmarks: (n, m), float32."""
        return self.parts(features).combine(self.weights)

    def coordinates(self, features: Features) -> np.ndarray:
        """(n, d + h) where n texts lie; inner products are the linear kernel."""
        linear = {"meaning": _LINEAR_MEANING, "form": self.weights.linear_form}
        return np.concatenate(
            [
                np.sqrt(np.float32(weight)) * (getattr(features, name) - self._centre[name])
                for name, weight in linear.items()
            ],
            axis=1,
        )

    def regressors(self, features: Features) -> np.ndarray:
        """What the regression sees: likeness to the landmarks, and coordinates: (n, m + d + h)."""
        return np.concatenate([self(features), self.coordinates(features)], axis=1)

    def prior(self) -> np.ndarray:
        """(m + d + h,) squared: the kernel between what the regressors are."""
        between = self(self.landmarks)
        flat = len(self._centre["meaning"]) + len(self._centre["form"])
        both: np.ndarray = scipy.linalg.block_diag(between, np.eye(flat, dtype=between.dtype))
        return both

    def parts(self, features: Features) -> Parts:
        """What is alike of n texts and the landmarks, by kind."""
        pairs = zip(self._spheres, self._directions(features), self._landmark_states, strict=True)
        return Parts(
            features.meaning @ self.landmarks.meaning.T - 1,
            self._per_form * (features.form @ self.landmarks.form.T - 1),
            (self._weigh(features) @ self.landmark_words).toarray(),
            *(np.exp(sphere.per_distance * (own @ other.T - 1)) for sphere, own, other in pairs),
        )

    def _directions(self, features: Features) -> list[np.ndarray]:
        """Of the reader's mean and last states, where there are any."""
        states = features.states
        if states is None:
            return []
        return [sphere(states[:, i]) for i, sphere in enumerate(self._spheres)]

    def _weigh(self, features: Features) -> scipy.sparse.csr_matrix:
        return self._tfidf.transform(features.wording).astype(np.float32)
