"""What an adapter is: its card, its versions, what points to them, and who may see it."""

import json
import time
from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    Field,
    StrictBool,
    StrictInt,
    StringConstraints,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from cluster.names import AdapterName
from cluster.values import Record, Value

# The newest version, and the one that answers to the plain name.
LATEST, STABLE = "latest", "stable"

# Not a number: `name@3` is version 3.
AliasName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9._-]{0,62}$")]
Owner = Annotated[str, StringConstraints(pattern=r"^([a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?)?$")]
Example = Annotated[str, StringConstraints(min_length=1, max_length=8000)]
Tag = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Share = Annotated[float, Field(ge=0, le=1)]


def _plain_json(value: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: what cannot be read back must not be stored."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError as e:
        raise ValueError("numbers must be finite") from e
    return value


class AdapterKey(str):
    """``name@version``: unique for ever, so it can key caches.

    What comes from other processes is taken as it is: a newer release may have keys of other forms.
    """

    __slots__ = ()

    @classmethod
    def of(cls, name: str, version: int) -> Self:
        return cls(f"{name}@{version}")

    @property
    def name(self) -> str:
        """Of the adapter."""
        return self.partition("@")[0]

    @property
    def version(self) -> int:
        """Its number; raises ValueError for a key of another form."""
        return int(self.rpartition("@")[2])

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, __: Any) -> CoreSchema:
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema())


class Tier(StrEnum):
    """Where the weights of an adapter version are, seen from one replica; nearest first."""

    SLOT = "slot"
    HOST = "host"
    NODE = "node"
    REMOTE = "remote"


class EvaluationPrompt(Record):
    """A prompt with a known good answer; a rollout asks it of the old and of the new version."""

    prompt: Example
    expected: str = Field(max_length=8000)
    match: Literal["exact", "contains"] = Field("exact", description="white space is trimmed first")

    def accepts(self, answer: str) -> bool:
        expected, got = self.expected.strip(), answer.strip()
        return got == expected if self.match == "exact" else expected in got


class Card(Record):
    """What an adapter says of itself: the prompt router learns from it, the fleet obeys it."""

    name: AdapterName
    base_model: str
    description: str = Field("", max_length=4000)
    examples: tuple[Example, ...] = Field((), max_length=1000)
    evaluation: tuple[EvaluationPrompt, ...] = Field((), max_length=1000)
    license: str = Field("", max_length=200)
    tags: tuple[Tag, ...] = Field((), max_length=64)
    owner: Owner = Field("", description="the tenant that it belongs to")
    visibility: Literal["public", "private"] = Field(
        "public", description="private: only for keys of its owner, and admins"
    )
    pinned: StrictBool = Field(
        False, description="a replica that has loaded it keeps it in host memory"
    )
    replicas: Literal["auto"] | Annotated[StrictInt, Field(ge=1, le=10_000)] = Field(
        "auto", description="how many replicas are to hold it; auto: those with room"
    )
    resolved_from: str = Field(
        "",
        description="where it was fetched from because somebody asked for it (store.resolve); it "
        "leaves when nobody has for a while, unless this is emptied",
    )
    metadata: Annotated[dict[str, Any], AfterValidator(_plain_json)] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _private_to_someone(self) -> Self:
        if self.visibility == "private" and not self.owner:
            raise ValueError("owner: visibility 'private' needs one")
        return self


class Viewer(Value):
    """Who asks, as far as visibility goes."""

    owner: str = ""
    sees_all: bool = False
    local_only: bool = False

    def may_see(self, card: Card) -> bool:
        return self.sees_all or card.visibility == "public" or card.owner == self.owner


OPERATOR = Viewer(sees_all=True)


class Lineage(Record):
    """Where derived weights come from."""

    parents: tuple[str, ...] = Field(
        min_length=1, max_length=64, description="name@version of each"
    )
    transformation: str = Field(
        min_length=1, max_length=64, description="composed | truncated | quantised | ported | ..."
    )


class Version(Record):
    """One immutable set of weights."""

    number: int = Field(0, description="0: not numbered yet, which the store does")
    digest: str = Field(description="sha256 over the file names and contents")
    size_bytes: int
    rank: int
    target_modules: tuple[str, ...]
    created_at: float = Field(default_factory=time.time, description="Unix time in seconds")
    base_fingerprint: str = Field("", description="of the base model that it was checked against")
    signed_by: str = Field("", description="the trusted key whose signature was verified")
    lineage: Lineage | None = None
    notices: tuple[str, ...] = Field(
        (), description="what is odd about the files, and was served all the same"
    )

    def is_same(self, other: "Version") -> bool:
        """Whether both are the same files, checked against the same base model."""
        return (self.digest, self.base_fingerprint) == (other.digest, other.base_fingerprint)


class Gate(Record):
    """How much worse than the old version a new one may be."""

    max_accuracy_drop: Share = 0.02
    max_negative_flips: Share = Field(
        0.05, description="share of prompts right before and wrong now (MUSCLE's measure)"
    )


class Evaluation(Record):
    """Two versions on the same prompts, asked of one replica."""

    prompts: int
    accuracy_before: float
    accuracy_after: float
    negative_flips: float = Field(description="share of prompts right before and wrong now")
    replica: str
    at: float = Field(description="Unix time in seconds")


class Rollout(Record):
    """A version on its way to `stable`, step by step."""

    version: int
    percents: tuple[int, ...] = Field(description="share of the requests at each step")
    step: int = Field(-1, description="-1: being checked, before it gets any request")
    step_s: float
    next_at: float = Field(description="Unix time at which the gate is run again")
    gate: Gate | None
    evaluation: Evaluation | None = Field(None, description="the newest one")

    @property
    def percent(self) -> int:
        return self.percents[self.step] if self.step >= 0 else 0


class RolloutEnd(Record):
    """How the last rollout went."""

    version: int
    outcome: Literal["done", "rolled_back"]
    reason: str
    evaluation: Evaluation | None
    at: float


class Adapter(Record):
    """A card, its versions, and what points to them."""

    card: Card
    versions: dict[int, Version]
    aliases: dict[str, int]
    revision: int
    previous: tuple[int, ...] = Field((), description="what was `stable` before, oldest first")
    rollout: Rollout | None = None
    last_rollout: RolloutEnd | None = None

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def latest(self) -> Version:
        return self.versions[self.aliases[LATEST]]

    @property
    def stable(self) -> Version:
        return self.versions[self.aliases[STABLE]]

    @property
    def serving(self) -> tuple[Version, ...]:
        """The versions that requests for the plain name may get."""
        if self.rollout is None:
            return (self.stable,)
        return (self.stable, self.versions[self.rollout.version])

    def key(self, version: Version) -> AdapterKey:
        """Of one of its versions."""
        return AdapterKey.of(self.name, version.number)

    def resolve(self, selector: str = STABLE) -> Version | None:
        """The version behind a number or an alias, or None."""
        number = self.aliases.get(selector)
        if number is None and selector.isascii() and selector.isdecimal() and len(selector) < 10:
            number = int(selector)
        return self.versions.get(number) if number is not None else None


# In the place of a name, which none is.
_ON_TRIAL = "/trial"


class AdapterRef(Value):
    """Enough to load one version into an engine."""

    name: str
    version: int
    digest: str

    @property
    def key(self) -> AdapterKey:
        return AdapterKey.of(self.name, self.version)

    @property
    def is_on_trial(self) -> bool:
        return self.name == _ON_TRIAL

    @classmethod
    def of(cls, adapter: Adapter, version: Version) -> "AdapterRef":
        return cls(name=adapter.name, version=version.number, digest=version.digest)

    @classmethod
    def on_trial(cls, digest: str) -> "AdapterRef":
        """For files that are no version yet; the same files have the same key."""
        return cls(name=_ON_TRIAL, version=int(digest[:12], 16), digest=digest)


class Experts(Record):
    """The experts of one layer, whose weights transformers keeps in two stacked parameters.

    peft calls their pairs `PATH.base_layer` (gate and up together) and `PATH` (down): A has the
    rows of all experts, (count * rank, in), and B the columns, (out, count * rank).
    """

    count: int
    gate_up: tuple[int, int] = Field(description="(out_features, in_features) of one expert")
    down: tuple[int, int]
    each: str = Field("", description="path of single experts, as older files name them, or empty")
    parts: tuple[str, ...] = Field((), description="names of an expert's gate, up and down there")


class LayerShape(NamedTuple):
    """What a pair must have: A (experts * rank, columns), B (rows, experts * rank)."""

    rows: int
    columns: int
    experts: int = 1


class BaseModelFacts(Record):
    """What adapters must match, as the engine that serves the base model reports it."""

    id: str
    architecture: str
    fingerprint: str = Field(description="sha256 over architecture, shapes and tokenizer")
    max_rank: int
    linear_shapes: dict[str, tuple[int, int]] = Field(
        description="module path -> (out_features, in_features), where an adapter may attach"
    )
    embedding_shapes: dict[str, tuple[int, int]] = Field(
        default_factory=dict, description="module path -> (vocabulary, size), likewise"
    )
    experts: dict[str, Experts] = Field(
        default_factory=dict, description="module path -> its experts, where they may be adapted"
    )
    is_tied: bool = Field(False, description="whether the head is the embedding's matrix")
    closed_modules: tuple[str, ...] = Field(
        (), description="paths of layers that its engine cannot adapt"
    )
    name: str = Field("", description="as its makers call it")
    chat_template: str = Field("", description="sha256 of it; empty where there is none")
    vocabulary: str = Field("", description="sha256 over its tokens and their numbers")
    max_model_len: int | None = Field(
        None, description="tokens of a prompt and its answer at most; None: it does not say"
    )
    created_at: float = Field(0.0, description="Unix time at which a replica first told of it")

    @property
    def modules(self) -> frozenset[str]:
        """Paths of all layers that may be adapted, single experts aside."""
        stacked = {name for path in self.experts for name in (path, f"{path}.base_layer")}
        return frozenset(self.linear_shapes.keys() | self.embedding_shapes.keys() | stacked)

    def shape_of(self, module: str) -> LayerShape:
        """Of a layer that may be adapted; raises KeyError for any other."""
        if module in self.linear_shapes:
            return LayerShape(*self.linear_shapes[module])
        if module in self.embedding_shapes:
            vocabulary, size = self.embedding_shapes[module]
            return LayerShape(size, vocabulary)
        if (experts := self.experts.get(module.removesuffix(".base_layer"))) is not None:
            shape = experts.gate_up if module.endswith(".base_layer") else experts.down
            return LayerShape(*shape, experts.count)
        path, _, part = module.rpartition(".")
        single = next(e for e in self.experts.values() if e.each == path.rpartition(".")[0])
        if part == single.parts[2]:
            return LayerShape(*single.down)
        return LayerShape(single.gate_up[0] // 2, single.gate_up[1])
