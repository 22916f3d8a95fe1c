"""Which adapter a prompt goes to, and why; and how well it was answered."""

from enum import StrEnum

from pydantic import Field

from cluster.adapters import Share, Tier
from cluster.values import Record, Value


class Route(StrEnum):
    """Who chose the adapter."""

    EXPLICIT = "explicit"
    AUTO = "auto"
    FALLBACK = "fallback"


class Conversation(StrEnum):
    """What became of a conversation with the turn that was decided on."""

    STAYED = "stayed"
    SWITCHED = "switched"


class Held(Record):
    """What answered a turn of a conversation."""

    adapter: str | None = Field(description="None: a base model")
    model: str = Field("", description="the base model, where it was one")
    at: float = Field(description="Unix time in seconds")


class Prompt(Value):
    """What the choice is made by."""

    text: str = Field(description="what the user asked, in the last turn that asks something")
    context: str = Field(
        "", description="with the turns before it and what is pasted into it, where there is any"
    )
    setting: str = Field("", description="the system's message, where it is short")
    left_out: tuple[str, ...] = Field((), description="what of the turn the user did not ask")
    mark: str = Field("", description="of the conversation up to this turn")
    marks: tuple[str, ...] = Field((), description="of its earlier turns, the newest first")
    held: Held | None = Field(None, description="what answered the conversation so far, if known")


class Candidate(Record):
    """An adapter or a base model as the prompt router sees it for a prompt."""

    adapter: str | None = Field(description="None is the base model")
    model: str = Field("", description="the base model")
    score: float = Field(description="predicted quality, between 0 and 1")
    cost: float = Field(0.0, description="sum of the weighed costs, in the unit of the score")
    costs: dict[str, float] = Field(
        default_factory=dict, description="latency_s, price, size_gb and load, not weighed"
    )
    residency: Tier | None = Field(None, description="the nearest place where it is now")


class Evidence(Record):
    """An example that made the score of the chosen adapter."""

    example: str
    share: float = Field(description="of the score")
    wording: float = Field(description="how much of the likeness is shared wording, 0 to 1")
    kernels: dict[str, float] = Field(
        default_factory=dict,
        description="by kind of likeness, its share of all of it, 0 to 1",
        exclude_if=lambda kernels: not kernels,
    )


class Decision(Record):
    """Which adapter a prompt goes to, and why."""

    adapter: str | None
    version: int | None = None
    model: str | None = Field(None, description="the base model; None: the default one")
    confidence: float = Field(ge=0, le=1, description="that the adapter is the right one")
    in_scope: float = Field(0.0, ge=0, le=1, description="that any adapter is")
    threshold: float = Field(0.0, ge=0, le=1, description="of in_scope; below, it abstains")
    route: Route
    reason: str
    decided_by: str = Field("", description="the text that decided; in the log it is the input")
    left_out: tuple[str, ...] = Field(
        (), description="what of the turn was not read: names of wrappers, kinds of pasted matter"
    )
    rule: str = Field("", description="that said who answers, before anything else was asked")
    narrowed_by: tuple[str, ...] = Field((), description="rules that left fewer adapters")
    conversation: Conversation | None = Field(
        None, description="whether what answered its conversation answers again; None: it is new"
    )
    candidates: tuple[Candidate, ...] = ()
    excluded: dict[str, str] = Field(
        default_factory=dict, description="better adapters, and the constraint that excluded each"
    )
    evidence: tuple[Evidence, ...] = ()
    has_read: bool = Field(False, description="the reader was asked about the prompt")
    explored: bool = Field(
        False, description="not what is expected to be best: chosen to learn how well it answers"
    )
    # Not told where there is none: the release before refuses fields that it does not know.
    fallback: dict[str, str] = Field(
        default_factory=dict,
        description="models that could not answer before, and why",
        exclude_if=lambda fallback: not fallback,
    )
    versions: dict[str, str] = Field(
        default_factory=dict, description="of the features and of the cards that it was made with"
    )


class RoutedRequest(Record):
    """A request and where it went, as it is kept for a while."""

    request_id: str
    at: float = Field(description="Unix time in seconds")
    owner: str = Field("", description="of the key that asked")
    input: str | None = Field(None, description="the deciding text, when prompts are kept")
    answered_by: str = Field(description="adapter or base model")
    decision: Decision
    conversation: str = Field("", description="mark by which its next turn finds what answered")

    @property
    def held(self) -> Held:
        """What the next turn of its conversation may stay with."""
        is_adapter = self.answered_by == self.decision.adapter
        if is_adapter:
            return Held(adapter=self.answered_by, at=self.at)
        return Held(adapter=None, model=self.answered_by, at=self.at)


class Outcome(Record):
    """How well a candidate answered a prompt."""

    input: str
    candidate: str = Field(description="name of an adapter or of a base model")
    score: Share
    owner: str = Field("", description="tenant whose request it was; empty: it teaches everybody")
    at: float = Field(0.0, description="when it was kept: Unix time in seconds")
