"""One reading of a request for tokens: all that the ingress needs of it, as one frozen value."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from cluster.adapters import Viewer
from cluster.errors import InvalidRequest, parse
from cluster.settings import DispatchSettings, Settings
from deployments.ingress.apart import kept_apart
from deployments.ingress.directory import AUTO
from deployments.ingress.terms import Terms, terms_of
from router.adapters.constraints import (
    Constraints,
    asks_local_only,
    constraints_in_headers,
    merged,
    take_flags,
)
from router.adapters.question.wrappers import Wrappers, wrappers_of
from router.rules.matching import Asked

# Of one request, prompts that are chosen for.
MOST_PROMPTS = 1024

# A body's prompt without its flags, and the cost weights that they ask for.
Unflagged = tuple[Any, dict[str, float]]


@dataclass(frozen=True)
class Form:
    """How the bodies of an endpoint say what is asked.

    Attributes:
        field: where the prompt is.
        check: raises InvalidRequest for what cannot be one.
        unflag: takes flags out of where users write.
    """

    field: str
    check: Callable[[Any], None]
    unflag: Callable[[Any], Unflagged]


@dataclass(frozen=True)
class Completion:
    """A request for tokens.

    Attributes:
        fields: the body for the engine: without what is ours, without flags, and apart from
            other tenants'.
        prompt_json: what is asked, as JSON.
        constraints: on the choice, where there is one.
        sticky_key: what tells one end user or conversation from another, or None.
    """

    path: str
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
        form = FORMS[path]
        model = body.get("model")
        if not isinstance(model, str) or not model:
            raise InvalidRequest(
                "model must be a string: 'auto', a base model, an adapter or name@version",
                param="model",
            )
        form.check(body.get(form.field))
        constraints = parse_constraints(body.get("constraints"), viewer, headers)
        fields = {name: value for name, value in body.items() if name != "constraints"}
        if model == AUTO and settings.router.prompt_flags:
            # First of all: a flag is no part of the prompt for anybody.
            fields[form.field], weights = form.unflag(fields[form.field])
            asked = constraints.weights.model_copy(update=weights)
            constraints = constraints.model_copy(update={"weights": asked})
        prompt_json = encode_json(fields[form.field])
        fields = dict(kept_apart(fields, viewer, settings.auth))
        return cls(
            path,
            model,
            fields,
            prompt_json,
            constraints,
            terms_of(fields, prompt_json, viewer, headers, settings.dispatch),
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
        value = self.fields[FORMS[self.path].field]
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
        name = FORMS[self.path].field
        fields = {**self.fields, name: [self.fields[name][place] for place in places]}
        prompt_json = encode_json(fields[name])
        terms = terms_of(fields, prompt_json, self.viewer, self.headers, dispatch)
        terms = replace(terms, since=self.terms.since)
        return replace(self, fields=fields, prompt_json=prompt_json, terms=terms)

    def for_engine(self, model: str) -> bytes:
        """The body, with the engine's name of the model in it."""
        return encode_json({**self.fields, "model": model})


def parse_constraints(value: Any, viewer: Viewer, headers: Mapping[str, str]) -> Constraints:
    """Constraints of the body, and of headers where the body has none."""
    if isinstance(value, dict) and "viewer" in value:
        raise InvalidRequest("constraints.viewer: no such constraint", param="constraints.viewer")
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


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a list with at least one message", param="messages")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidRequest(
                f"messages[{i}] must be an object with a role and a content",
                param=f"messages[{i}]",
            )


def _check_prompt(prompt: Any) -> None:
    if not isinstance(prompt, str | list) or not prompt:
        raise InvalidRequest("prompt must be a string, or a list of them", param="prompt")


def _is_list_of_prompts(value: Any) -> bool:
    """Texts, or lists of tokens. What is neither is for an engine to refuse, whole."""
    if not isinstance(value, list):
        return False
    are_texts = all(isinstance(prompt, str) for prompt in value)
    return are_texts or all(isinstance(prompt, list) for prompt in value)


def _unflag_messages(messages: list[dict[str, Any]]) -> Unflagged:
    """Users write flags into their last turn."""
    turns = [i for i, m in enumerate(messages) if m.get("role") == "user"]
    last = (turns or [len(messages) - 1])[-1]
    content, weights = _unflag_text(messages[last].get("content"))
    turn = messages[last] | {"content": content} if weights else messages[last]
    return [*messages[:last], turn, *messages[last + 1 :]], weights


def _unflag_text(text: Any) -> Unflagged:
    return take_flags(text) if isinstance(text, str) else (text, {})


CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"
# A new endpoint is one more way to read a body.
FORMS = {
    CHAT_PATH: Form("messages", _check_messages, _unflag_messages),
    COMPLETIONS_PATH: Form("prompt", _check_prompt, _unflag_text),
}
