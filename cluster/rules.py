"""Rules: what must be so of a prompt, and who may answer it then, whatever it resembles."""

import re
from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, field_validator, model_validator

from cluster.foreign.patterns import search_of, searched
from cluster.names import AdapterName
from cluster.values import Value

MOST_RULES = 100
_MOST_OF_WORDS = 10_000
# Of a header's value.
ANY = "*"
# What these say is a secret, and rules are shown.
_SECRETS = frozenset({"authorization", "proxy-authorization", "cookie"})
_HEADER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 ._-]{0,62}[A-Za-z0-9])?")
_SCRIPT = re.compile(r"[A-Za-z_]{1,40}")


def _is_pattern(pattern: str) -> str:
    searched(pattern)
    return pattern


def _is_script(name: str) -> str:
    try:
        if _SCRIPT.fullmatch(name):
            search_of(rf"\p{{Script={name}}}")
            return name
    except ValueError:
        pass
    raise ValueError("no script of Unicode's; Latin, Cyrillic, Han and Arabic are some")


def _is_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            "up to 64 letters, digits, blanks, '.', '_' and '-' are allowed, with a letter or "
            "digit at both ends"
        )
    return name


Word = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100)]
Script = Annotated[str, AfterValidator(_is_script)]


class When(Value):
    """Conditions on a prompt and on its request: all that are given must hold."""

    pattern: Annotated[str, AfterValidator(_is_pattern)] | None = Field(
        None,
        min_length=1,
        max_length=2000,
        description="A regular expression in Rust's syntax, found somewhere in it; (?i): in any "
        "case.",
    )
    words: tuple[Word, ...] = Field(
        (), max_length=1000, description="One of these words or phrases is in it, in any case."
    )
    script: tuple[Script, ...] = Field(
        (), max_length=20, description="More than half of its letters are of these scripts."
    )
    header: dict[str, str] = Field(
        default_factory=dict,
        max_length=20,
        description="Headers that the request has, each with its value; `*` for any.",
    )
    tenant: tuple[str, ...] = Field(
        (), max_length=1000, description="One of these tenants asks (`auth.keys[].owner`)."
    )
    min_chars: int | None = Field(None, ge=0, description="It has so many characters at least.")
    max_chars: int | None = Field(None, ge=0, description="It has so many characters at most.")
    within: Literal["question", "turn", "conversation"] = Field(
        "turn",
        description="What is read: the last turn of the user, all messages, or only what the user "
        "asked, without what programs put around it (`router.wrappers`) and long pasted matter.",
    )

    @field_validator("words")
    @classmethod
    def _can_be_looked_for(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        if (size := sum(map(len, words))) > _MOST_OF_WORDS:
            raise ValueError(f"{size} characters in all, {_MOST_OF_WORDS} are allowed")
        return words

    @field_validator("header")
    @classmethod
    def _tells_no_secret(cls, header: dict[str, str]) -> dict[str, str]:
        for name in header:
            if not _HEADER.fullmatch(name):
                raise ValueError(f"{name!r} is not the name of a header")
            if name.lower() in _SECRETS:
                raise ValueError(f"what {name} holds is secret, and rules are shown; use tenant")
        return {name.lower(): value for name, value in header.items()}

    @model_validator(mode="after")
    def _some_length_fits(self) -> Self:
        if self.max_chars is not None and self.max_chars < (self.min_chars or 0):
            raise ValueError("max_chars: it must be at least min_chars")
        return self


class Rule(Value):
    """Who may answer such a prompt; one of `adapter`, `only`, `never` and `base_model`."""

    name: Annotated[str, AfterValidator(_is_name)] = Field(
        description="Told with the decisions that it makes, and counted."
    )
    when: When = Field(default_factory=When, description="Of which prompts. Default: of all.")
    adapter: AdapterName | None = Field(None, description="This adapter answers.")
    only: tuple[AdapterName, ...] | None = Field(
        None, min_length=1, max_length=1000, description="No other adapters may be chosen."
    )
    never: tuple[AdapterName, ...] | None = Field(
        None, min_length=1, max_length=1000, description="These adapters may not be chosen."
    )
    base_model: str | Literal[True] | None = Field(
        None, description="This base model answers; `true`: the default one."
    )

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        said = (self.adapter, self.only, self.never, self.base_model)
        if sum(one is not None for one in said) != 1:
            raise ValueError("it must say one of adapter, only, never and base_model")
        return self

    @property
    def adapters(self) -> tuple[str, ...]:
        """All that it names."""
        return (*((self.adapter,) if self.adapter else ()), *(self.only or ()), *(self.never or ()))


def _are_told_apart(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    for name, times in Counter(rule.name for rule in rules).items():
        if times > 1:
            raise ValueError(f"{times} rules are named {name!r}")
    return rules


Rules = Annotated[tuple[Rule, ...], Field(max_length=MOST_RULES), AfterValidator(_are_told_apart)]


class RuleSet(Value):
    """What `PUT /v1/rules` takes, and what the store keeps of it."""

    rules: Rules
    revision: int | None = Field(None, ge=0, description="of the rules as the client read them")


def strange_base_model(rules: tuple[Rule, ...], known: tuple[str, ...]) -> str | None:
    """What names a base model that there is not, in words; None when nothing does."""
    for i, rule in enumerate(rules):
        if isinstance(rule.base_model, str) and rule.base_model not in known:
            return f"rules.{i}.base_model: {rule.base_model!r} is not one of {list(known)}"
    return None
