"""One reading of a request for a model: all that the ingress needs of it, as one frozen value."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from cluster.adapters import Viewer
from cluster.calls import CALLS, CallKind, Shape
from cluster.errors import InvalidRequest, parse
from cluster.settings import DispatchSettings, Settings
from deployments.ingress.apart import kept_apart
from deployments.ingress.calls.form import Sent, packed_form
from deployments.ingress.calls.reading import READINGS
from deployments.ingress.directory import AUTO
from deployments.ingress.terms import Terms, terms_of
from router.adapters.constraints import (
    OURS,
    Constraints,
    asks_local_only,
    constraints_in_headers,
    merged,
)
from router.adapters.question.wrappers import Wrappers, wrappers_of
from router.rules.matching import Asked

# Of one request, prompts that are chosen for.
MOST_PROMPTS = 1024


@dataclass(frozen=True)
class Completion:
    """A request that a model answers.

    Attributes:
        fields: the body for the engine: without what is ours, without flags, and apart from
            other tenants'.
        prompt_json: what is asked, as JSON.
        constraints: on the choice, where there is one.
        sticky_key: what tells one end user or conversation from another, or None.
    """

    kind: CallKind
    model: str
    fields: Mapping[str, Any]
    prompt_json: bytes
    constraints: Constraints
    terms: Terms
    sticky_key: str | None
    headers: Mapping[str, str]
    wrappers: Wrappers

    @classmethod
    def read(
        cls,
        path: str,
        body: Mapping[str, Any],
        viewer: Viewer,
        headers: Mapping[str, str],
        settings: Settings,
    ) -> "Completion":
        """Read a body, and the headers that say how it wants to be served.

        Only what the ingress needs is checked: the engine checks all the rest.

        Raises:
            InvalidRequest: names the field.
        """
        kind = CALLS[path]
        reading = READINGS[kind.shape]
        model = body.get("model")
        if not isinstance(model, str) or not model:
            raise InvalidRequest(
                "model must be a string: 'auto', a base model, an adapter or name@version",
                param="model",
            )
        reading.check(body)
        constraints = parse_constraints(body.get("constraints"), viewer, headers)
        fields = {name: value for name, value in body.items() if name != "constraints"}
        if model == AUTO and kind.by_prompt and settings.router.prompt_flags:
            # First of all: a flag is no part of the prompt for anybody.
            changed, weights = reading.unflag(fields)
            fields |= changed
            asked = constraints.weights.model_copy(update=weights)
            constraints = constraints.model_copy(update={"weights": asked})
        prompt_json = encode_json(reading.prompt(fields))
        if kind.is_cached:
            fields = dict(kept_apart(fields, viewer, settings.auth, reading.fields))
        return cls(
            kind,
            model,
            fields,
            prompt_json,
            constraints,
            terms_of(
                fields,
                prompt_json,
                viewer,
                headers,
                settings.dispatch,
                kind.spends,
                reading.prompts(body),
            ),
            constraints.conversation or _sticky_key(fields),
            headers,
            wrappers_of(settings.router.wrappers),
        )

    @property
    def viewer(self) -> Viewer:
        """Who asks."""
        return self.constraints.viewer

    @cached_property
    def prompts(self) -> list[Asked]:
        """What decides, where there is a choice: each prompt of a list by itself.

        Raises:
            InvalidRequest: there are too many.
        """
        value = READINGS[self.kind.shape].asked(self.fields)
        listed = value if _is_list_of_prompts(value) else [value]
        if len(listed) > MOST_PROMPTS:
            raise InvalidRequest(
                f"prompt: {len(listed)} prompts, and an adapter is chosen for {MOST_PROMPTS} of a "
                "request at most; send several requests, or name a model",
                param="prompt",
            )
        return [Asked(prompt, self.headers, self.wrappers) for prompt in listed]

    def only(self, places: Sequence[int], dispatch: DispatchSettings) -> "Completion":
        """A request for some of its prompts."""
        (name,) = READINGS[self.kind.shape].fields
        fields = {**self.fields, name: [self.fields[name][place] for place in places]}
        prompt_json = encode_json(fields[name])
        terms = terms_of(
            fields,
            prompt_json,
            self.viewer,
            self.headers,
            dispatch,
            self.kind.spends,
            len(places),
        )
        terms = replace(terms, since=self.terms.since)
        return replace(self, fields=fields, prompt_json=prompt_json, terms=terms)

    def for_engine(self, model: str, request_id: str) -> Sent:
        """The body, with the engine's name of the model in it."""
        fields = {**self.fields, "model": model}
        if self.kind.shape is Shape.AUDIO:
            return packed_form(fields)
        if self.kind.shape is Shape.RESPONSE:
            # Its id is the request's. What an engine could keep would be in one replica alone.
            fields |= {"request_id": f"resp_{request_id}", "store": False}
        return Sent(encode_json(fields))


def parse_constraints(value: Any, viewer: Viewer, headers: Mapping[str, str]) -> Constraints:
    """Constraints of the body, and of headers where the body has none."""
    if isinstance(value, dict) and (ours := next(filter(value.__contains__, OURS), None)):
        named = f"constraints.{ours}"
        raise InvalidRequest(f"{named}: no such constraint", param=named)
    if value is None or isinstance(value, dict):
        value = merged(constraints_in_headers(headers), value or {})
    sent = parse(Constraints, value, "constraints")
    # Whoever says that nothing may leave is right: body, header (of a proxy, maybe) or key.
    local_only = sent.local_only or viewer.local_only or asks_local_only(headers)
    return sent.model_copy(update={"viewer": viewer, "local_only": local_only})


def encode_json(value: Any) -> bytes:
    """Raises InvalidRequest for what is nested too deeply, and for numbers that JSON has not."""
    try:
        return json.dumps(value, allow_nan=False).encode()
    except RecursionError as e:
        raise InvalidRequest("the body is nested too deeply") from e
    except ValueError as e:
        raise InvalidRequest(f"the body has a number that is too large: {e}") from e


def _sticky_key(body: Mapping[str, Any]) -> str | None:
    for name in ("user", "safety_identifier", "prompt_cache_key"):
        if isinstance(body.get(name), str) and body[name]:
            return str(body[name])
    return None


def _is_list_of_prompts(value: Any) -> bool:
    """Texts, or lists of tokens. What is neither is for an engine to refuse, whole."""
    if not isinstance(value, list):
        return False
    are_texts = all(isinstance(prompt, str) for prompt in value)
    return are_texts or all(isinstance(prompt, list) for prompt in value)
