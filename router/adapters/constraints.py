"""What a caller demands of the choice: in the body, in headers, or in the prompt itself."""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from cluster.adapters import OPERATOR, Card, Viewer
from cluster.errors import parse
from cluster.names import from_header
from cluster.values import Value

HEADER_PREFIX = "x-roundhouse-"


def _number(value: Any) -> Any:
    """Headers bring texts, which may be numbers; what is true or false is none."""
    if isinstance(value, bool):
        raise ValueError("a number is needed")
    return value


Amount = Annotated[float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False)]


class CostWeights(Value):
    """How much quality a unit of each cost is worth: the lambdas of Tryage (2023, eq. 3)."""

    latency: Amount | None = Field(None, description="per second until the first token")
    price: Amount | None = Field(None, description="per unit of the base model's price")
    size: Amount | None = Field(None, description="per GB of adapter")
    load: Amount | None = Field(None, description="for replicas that are full")


class Constraints(Value):
    """Hard limits, and the weights of the costs among what they leave."""

    adapters: tuple[str, ...] | None = Field(None, description="choose among these only")
    exclude: tuple[str, ...] = Field((), description="never choose these")
    base_model: str | None = Field(None, description="only adapters of this base model")
    tags: tuple[str, ...] = Field((), description="only adapters that carry all of these tags")
    min_confidence: Annotated[Amount, Field(le=1)] | None = Field(
        None, description="abstain below this"
    )
    max_latency_s: Amount | None = Field(None, description="expected until the first token")
    max_price: Amount | None = Field(None, description="of the base model")
    local_only: bool = Field(False, description="nothing may leave this cluster")
    weights: CostWeights = Field(CostWeights(), description="quality that a unit of cost is worth")
    conversation: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="the client's own name of the conversation that the request is a turn of",
    )
    viewer: Viewer = Field(OPERATOR, description="who asks; set by the endpoint, not by callers")
    unable: tuple[str, ...] = Field(
        (), description="base models that cannot answer such a call; set by the endpoint, too"
    )

    def objection(self, card: Card) -> str | None:
        """Why an adapter may not be chosen, or None."""
        if self.adapters is not None and card.name not in self.adapters:
            return "adapters"
        if card.name in self.exclude:
            return "exclude"
        if self.base_model not in (None, card.base_model) or card.base_model in self.unable:
            return "base_model"
        if not set(self.tags) <= set(card.tags):
            return "tags"
        return None

    def allows(self, card: Card) -> bool:
        """Whether an adapter may be chosen, as far as its card says."""
        return self.viewer.may_see(card) and self.objection(card) is None

    def renamed(self, meant: Callable[[str], str]) -> "Constraints":
        """With the names that the caller means by those that were sent."""
        adapters = None if self.adapters is None else tuple(meant(n) for n in self.adapters)
        exclude = tuple(meant(name) for name in self.exclude)
        return self.model_copy(update={"adapters": adapters, "exclude": exclude})

    @property
    def on_cards(self) -> "Constraints":
        """Only what is asked of cards: equal for requests that leave the same adapters."""
        return Constraints(
            adapters=self.adapters,
            exclude=self.exclude,
            base_model=self.base_model,
            tags=self.tags,
            viewer=self.viewer,
            unable=self.unable,
        )


# Not for callers to set.
OURS = ("viewer", "unable")
_NAMES = ("adapters", "exclude")
_LISTS = (*_NAMES, "tags")
_PLAIN = (
    *("conversation", "base_model", "min_confidence", "max_latency_s", "max_price", "local_only"),
)
_HEADERS = {f"{HEADER_PREFIX}{name.replace('_', '-')}": name for name in (*_LISTS, *_PLAIN)} | {
    f"{HEADER_PREFIX}weight-{name}": f"weights.{name}" for name in CostWeights.model_fields
}


def merged(headers: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    """Constraints of both; where both say something, the body's."""
    both = headers | body
    first, last = headers.get("weights"), body.get("weights")
    if isinstance(first, dict) and isinstance(last, dict):
        both["weights"] = first | last
    return both


def constraints_in_headers(headers: Mapping[str, str]) -> dict[str, Any]:
    """Constraints as ``x-roundhouse-…`` headers carry them, not yet checked.

    Names are percent-encoded where they are not plain, as answers have them.

    ``x-roundhouse-tags: fast,short``, ``x-roundhouse-max-latency-s: 0.5``,
    ``x-roundhouse-weight-latency: 0.1``.
    """
    found: dict[str, Any] = {}
    for header, field in _HEADERS.items():
        if header not in headers:
            continue
        value: Any = headers[header].strip()
        group, _, name = field.rpartition(".")
        if name in _LISTS:
            value = [part.strip() for part in value.split(",") if part.strip()]
        if name in _NAMES:
            value = [from_header(part) for part in value]
        (found.setdefault(group, {}) if group else found)[name] = value
    return found


def asks_local_only(headers: Mapping[str, str]) -> bool:
    """Whether the header says so, whatever the body says; what is neither yes nor no is refused.

    Of several, one is enough: what a proxy adds, a client's own cannot undo.
    """
    said = all_of(headers, f"{HEADER_PREFIX}local-only")
    asked = (parse(Constraints, {"local_only": s.strip()}, "constraints").local_only for s in said)
    return any([*asked])


def all_of(headers: Mapping[str, str], name: str) -> list[str]:
    """The values of a header, which a request may have more than once: Starlette's mapping gives
    the first alone, and has a method for all."""
    of_request: Callable[[str], list[str]] | None = getattr(headers, "getlist", None)
    if of_request is not None:
        return of_request(name)
    return [headers[name]] if name in headers else []


# Tryage's flags: a user writes "[Flag: fastest]" into the prompt (2023, section 3.2).
_FLAG = re.compile(r"\s*\[flag:\s*(fastest|cheapest|smallest|best)\s*\]\s*", re.IGNORECASE)
# A second, a price unit and a gigabyte each outweigh any difference in quality that is in doubt.
_FLAGS: dict[str, dict[str, float]] = {
    "fastest": {"latency": 1.0, "load": 1.0},
    "cheapest": {"price": 1.0},
    "smallest": {"size": 10.0},
    "best": {"latency": 0.0, "price": 0.0, "size": 0.0, "load": 0.0},
}


def take_flags(text: str) -> tuple[str, dict[str, float]]:
    """The prompt without its flags, and the cost weights that they ask for."""
    weights: dict[str, float] = {}
    for flag in _FLAG.findall(text):
        weights |= _FLAGS[flag.lower()]
    return (_FLAG.sub(" ", text).strip(), weights) if weights else (text, weights)
