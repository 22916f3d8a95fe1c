"""From an OpenAI request to the text that decides: what the user asked."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cluster.decisions import Prompt
from cluster.settings import WrapperSettings
from router.adapters.constraints import take_flags
from router.adapters.question.pasted import Beside, beside_pasted
from router.adapters.question.wrappers import Unwrapped, Wrappers, wrappers_of

# What decides sits at the ends of a long prompt: the instruction first, the question last.
HEAD_CHARS = 2000
TAIL_CHARS = 1000
# Of a longer one, what lies between is not looked through for matter that is pasted.
_ENDS_CHARS = 20_000
# A system's message of more is a program's manual, not what its users want.
_MOST_OF_SETTING = 1000
# So many earlier turns of a conversation are looked for; the newest that is found counts.
_MOST_EARLIER = 8
_MARK_BYTES = 16
_RESULTS = ("tool_result", "function_call_output")

SHIPPED = wrappers_of(WrapperSettings())


def prompt_of(value: Any, wrappers: Wrappers = SHIPPED) -> Prompt:
    """The deciding text of a prompt: a string, token-free list of strings, or chat messages.

    It is what the user asked: of a conversation, in the last turn that asks something; without one,
    in the last message. What programs put around it is left out, and long matter that is pasted
    beside it; where nothing is left, all of the turn decides.
    """
    if isinstance(value, str):
        return _of_turns([_read(value, wrappers)])
    if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        return _of_turns([_read(value[0], wrappers)])
    messages = [m for m in value if isinstance(m, dict)] if isinstance(value, list) else []
    turns = dict(_turns(messages, wrappers)) or {
        i: Unwrapped(_content(m.get("content"))) for i, m in [*enumerate(messages)][-1:]
    }
    if not turns:
        return Prompt(text="")
    mark, marks = _marks(messages, turns, wrappers)
    setting = "\n".join(_content(m.get("content")) for m in messages if _is_setting(m))
    prompt = _of_turns([*turns.values()])
    if len(setting) <= _MOST_OF_SETTING:
        prompt = prompt.model_copy(update={"setting": _legible(setting)})
    return prompt.model_copy(update={"mark": mark, "marks": marks})


def whole(value: Any) -> tuple[str, str]:
    """All that a client sent: the last turn of the user, and every message with it."""
    if isinstance(value, str):
        return value, value
    parts = value if isinstance(value, list) else []
    if strings := [part for part in parts if isinstance(part, str)]:
        return "\n".join(strings), "\n".join(strings)
    messages = [part for part in parts if isinstance(part, dict)]
    turns = [m for m in messages if m.get("role") == "user"] or messages
    said = "\n".join(_content(m.get("content")) for m in messages)
    return _content(turns[-1].get("content")) if turns else "", said


def clip(text: str) -> str:
    """Head and tail of a long text, in characters that every tokenizer takes."""
    return ends_of(_legible(text), HEAD_CHARS, TAIL_CHARS)


def ends_of(text: str, head_chars: int, tail_chars: int) -> str:
    """The text, or its head and its tail when it is longer than both."""
    if len(text) <= head_chars + tail_chars:
        return text
    return f"{text[:head_chars]}\n{text[-tail_chars:]}"


def in_conversation(prompt: Prompt, key: str | None) -> Prompt:
    """With the mark of the conversation that the client names, where it does, alone."""
    if key is None:
        return prompt
    hashed = hashlib.blake2b(key.encode(), digest_size=_MARK_BYTES, person=b"key")
    mark = hashed.hexdigest()
    return prompt.model_copy(update={"mark": mark, "marks": (mark,)})


def _read(text: str, wrappers: Wrappers) -> Unwrapped:
    """All of a text counts where nothing of it would be left."""
    found = wrappers.unwrapped(text)
    return found if _is_said(found.text) else Unwrapped(text)


def _turns(
    messages: Sequence[Mapping[str, Any]], wrappers: Wrappers
) -> Iterator[tuple[int, Unwrapped]]:
    """By their places, the turns in which the user asks something; the last one of the user, all of
    it, where there is none."""
    others: list[tuple[int, str]] = []
    is_asked = False
    for i, message in enumerate(messages):
        if message.get("role") != "user" or _is_result(message.get("content")):
            continue
        text = _content(message.get("content"))
        found = wrappers.unwrapped(text)
        if found.left_out and not _is_said(found.text):
            others.append((i, text))
            continue
        is_asked = True
        yield i, found
    if not is_asked and others:
        yield others[-1][0], Unwrapped(others[-1][1])


def _of_turns(turns: Sequence[Unwrapped]) -> Prompt:
    """What is asked in the last one; with what was before it and what is pasted as its context."""
    *earlier, last = (_beside(turn) for turn in turns[-_MOST_EARLIER - 1 :])
    context = ""
    if earlier or last.pasted:
        context = clip("\n".join([*(turn.text for turn in earlier), turns[-1].text]))
    left_out = (*turns[-1].left_out, *last.pasted)
    return Prompt(text=clip(last.text), context=context, left_out=left_out)


def _beside(turn: Unwrapped) -> Beside:
    return beside_pasted(ends_of(turn.text, _ENDS_CHARS, _ENDS_CHARS))


def _marks(
    messages: Sequence[Mapping[str, Any]], turns: Mapping[int, Unwrapped], wrappers: Wrappers
) -> tuple[str, tuple[str, ...]]:
    """The mark of the last turn of the user, and of those that were answered before, the newest
    first: each a hash of all messages up to it, without what programs put around the user's words,
    which is not the same at every turn. What follows the last turn, as of tools, says that it was
    answered itself.
    """
    chain, marks = hashlib.blake2b(digest_size=_MARK_BYTES), []
    for i, message in enumerate(messages):
        try:
            chain.update(_as_bytes(message, turns.get(i), wrappers))
        except RecursionError:  # nested too deeply: whoever answers will say so
            return "", ()
        if i in turns and message.get("role") == "user":
            marks.append(chain.hexdigest())
    if not marks:
        return "", ()
    answered = marks if max(turns) < len(messages) - 1 else marks[:-1]
    return marks[-1], tuple(answered[: -_MOST_EARLIER - 1 : -1])


def _as_bytes(message: Mapping[str, Any], turn: Unwrapped | None, wrappers: Wrappers) -> bytes:
    """A message the same at every turn: flags are taken out of the newest one alone; nothing, where
    it is but what a program says."""
    content = message.get("content")
    if message.get("role") == "user" and isinstance(content, str):
        if turn is None:
            return b""
        message = {**message, "content": take_flags(turn.text)[0]}
    elif message.get("role") == "user" and isinstance(content, list):
        message = {**message, "content": [_part(part, wrappers) for part in content]}
    return json.dumps(message, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def _part(part: Any, wrappers: Wrappers) -> Any:
    if not isinstance(part, dict) or not isinstance(part.get("text"), str):
        return part
    return {**part, "text": wrappers.unwrapped(part["text"]).text}


def _is_setting(message: Mapping[str, Any]) -> bool:
    return message.get("role") in ("system", "developer")


def _is_result(content: Any) -> bool:
    """Whether a message of the user's is but what tools have answered."""
    parts = [p for p in content if isinstance(p, dict)] if isinstance(content, list) else []
    return any(p.get("type") in _RESULTS for p in parts) and not _content(content).strip()


def _is_said(text: str) -> bool:
    return any(map(str.isalnum, text))


def _legible(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = (p.get("text") for p in parts if isinstance(p, dict))
    return "\n".join(text for text in texts if isinstance(text, str))
