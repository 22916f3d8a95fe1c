"""How the body of each call says what is asked: what is checked, what decides, what is counted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.calls import Shape
from cluster.errors import InvalidRequest
from router.adapters.constraints import take_flags

Body = Mapping[str, Any]
# Fields of a body without their flags, and the cost weights that they ask for.
Unflagged = tuple[dict[str, Any], dict[str, float]]


@dataclass(frozen=True)
class Reading:
    """How one shape of body is read.

    Only what the ingress needs is looked at: the engine checks all the rest.

    Attributes:
        fields: where the prompt may be, in the order in which a model reads it.
        check: raises InvalidRequest for a body that cannot be one.
        asked: what decides: a string, or messages.
        unflag: takes flags out of where users write.
        prompts: how many there are.
    """

    fields: tuple[str, ...]
    check: Callable[[Body], None]
    asked: Callable[[Body], Any] = lambda _: ""
    unflag: Callable[[Body], Unflagged] = lambda _: ({}, {})
    prompts: Callable[[Body], int] = lambda _: 1

    def prompt(self, body: Body) -> Any:
        """All of it that a model reads."""
        found = [body[name] for name in self.fields if body.get(name) is not None]
        return found[0] if len(found) == 1 else found


# -- chats, and what is worded like one ---------------------------------------------------------


def _check_messages(body: Body) -> None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a list with at least one message", param="messages")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidRequest(
                f"messages[{i}] must be an object with a role and a content",
                param=f"messages[{i}]",
            )


def _unflag_messages(body: Body) -> Unflagged:
    return _unflag_turns("messages", body["messages"])


def _unflag_turns(field: str, turns: Sequence[dict[str, Any]]) -> Unflagged:
    """Users write flags into their last turn."""
    of_user = [i for i, turn in enumerate(turns) if turn.get("role") == "user"]
    last = (of_user or [len(turns) - 1])[-1]
    content, weights = _unflag_text(turns[last].get("content"))
    if not weights:
        return {}, {}
    changed = turns[last] | {"content": content}
    return {field: [*turns[:last], changed, *turns[last + 1 :]]}, weights


def _unflag_text(text: Any) -> tuple[Any, dict[str, float]]:
    return take_flags(text) if isinstance(text, str) else (text, {})


def _unflag_field(field: str) -> Callable[[Body], Unflagged]:
    def unflag(body: Body) -> Unflagged:
        text, weights = _unflag_text(body[field])
        return ({field: text}, weights) if weights else ({}, {})

    return unflag


# -- text completions ---------------------------------------------------------------------------


def _check_prompt(body: Body) -> None:
    prompt = body.get("prompt")
    if not isinstance(prompt, str | list) or not prompt:
        raise InvalidRequest("prompt must be a string, or a list of them", param="prompt")


def _several(value: Any) -> int:
    """How many prompts a value is; a list of numbers is one, in tokens, a list of messages, too."""
    is_list = isinstance(value, list) and bool(value)
    return len(value) if is_list and not isinstance(value[0], int | dict) else 1


# -- responses ----------------------------------------------------------------------------------

# What would need answers to be kept, where any replica finds them.
_KEPT_NOWHERE = {
    "previous_response_id": "send the earlier items in input",
    "conversation": "send the earlier items in input",
    "background": "leave it out, and read the answer as it comes (stream)",
    "store": "leave it out, or send false",
}


def _check_response(body: Body) -> None:
    for name, instead in _KEPT_NOWHERE.items():
        if body.get(name):
            raise InvalidRequest(f"{name}: responses are not kept here; {instead}", param=name)
    items = body.get("input")
    if not isinstance(items, str | list) or not items:
        raise InvalidRequest("input must be a string, or a list of items", param="input")
    for i, item in enumerate(items if isinstance(items, list) else ()):
        if not isinstance(item, dict):
            raise InvalidRequest(f"input[{i}] must be an object", param=f"input[{i}]")


def _messages_of_response(body: Body) -> list[dict[str, Any]]:
    items = body["input"]
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    return _after(body.get("instructions"), map(_turn_of_item, items))


def _turn_of_item(item: dict[str, Any]) -> dict[str, Any]:
    """A message as it is; what tools and models have said in other items is no user's turn."""
    if isinstance(item.get("role"), str):
        return {"role": item["role"], "content": item.get("content")}
    return {"role": "tool", "content": item}


def _unflag_response(body: Body) -> Unflagged:
    items = body["input"]
    return _unflag_field("input")(body) if isinstance(items, str) else _unflag_turns("input", items)


# -- Anthropic's messages -----------------------------------------------------------------------


def _messages_of_anthropic(body: Body) -> list[dict[str, Any]]:
    return _after(body.get("system"), map(_turn_of_message, body["messages"]))


def _turn_of_message(message: dict[str, Any]) -> dict[str, Any]:
    """What tools have answered comes as a user's message, and is no user's turn."""
    parts = message.get("content")
    is_tools = isinstance(parts, list) and bool(parts) and all(map(_is_tool, parts))
    return message | {"role": "tool"} if is_tools else message


def _is_tool(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "tool_result"


def _after(system: Any, turns: Any) -> list[dict[str, Any]]:
    first = [{"role": "system", "content": system}] if system else []
    return [*first, *turns]


# -- what is not generated ----------------------------------------------------------------------


def _check_tokenized(body: Body) -> None:
    if body.get("messages") is not None:
        _check_messages(body)
    elif not isinstance(body.get("prompt"), str):
        raise InvalidRequest("send a prompt (a string), or messages", param="prompt")


def _asked_tokenized(body: Body) -> Any:
    return body["prompt"] if body.get("messages") is None else body["messages"]


def _unflag_tokenized(body: Body) -> Unflagged:
    return _unflag_field("prompt")(body) if "prompt" in body else _unflag_messages(body)


def _needs(*names: str) -> Callable[[Body], None]:
    """Checks that one of the fields is there."""

    def check(body: Body) -> None:
        if all(body.get(name) in (None, "", []) for name in names):
            raise InvalidRequest(f"{' or '.join(names)} is missing, or empty", param=names[0])

    return check


def _inputs(body: Body) -> int:
    return _several(body.get("input") or body.get("messages"))


_FIRST, _SECOND = ("queries", "text_1", "data_1"), ("documents", "items", "text_2", "data_2")


def _pairs(body: Body) -> int:
    return max(_several(body.get(name)) for name in (*_FIRST, *_SECOND))


READINGS: dict[Shape, Reading] = {
    Shape.CHAT: Reading(
        ("messages",), _check_messages, lambda body: body["messages"], _unflag_messages
    ),
    Shape.COMPLETION: Reading(
        ("prompt",),
        _check_prompt,
        lambda body: body["prompt"],
        _unflag_field("prompt"),
        lambda body: _several(body["prompt"]),
    ),
    Shape.RESPONSE: Reading(
        ("instructions", "input"), _check_response, _messages_of_response, _unflag_response
    ),
    Shape.MESSAGE: Reading(
        ("system", "messages"), _check_messages, _messages_of_anthropic, _unflag_messages
    ),
    Shape.MESSAGE_COUNT: Reading(
        ("system", "messages"), _check_messages, _messages_of_anthropic, _unflag_messages
    ),
    Shape.TOKENIZE: Reading(
        ("prompt", "messages"), _check_tokenized, _asked_tokenized, _unflag_tokenized
    ),
    Shape.DETOKENIZE: Reading(("tokens",), _needs("tokens")),
    Shape.INPUT: Reading(
        ("input", "messages", "data"), _needs("input", "messages", "data"), prompts=_inputs
    ),
    Shape.SCORE: Reading((*_FIRST, *_SECOND), _needs(*_FIRST), prompts=_pairs),
    Shape.RERANK: Reading(
        ("query", "documents"),
        _needs("query"),
        prompts=lambda body: _several(body.get("documents")),
    ),
    Shape.AUDIO: Reading(("prompt",), _needs("file")),
}
