"""From an OpenAI request to the text that decides."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.decisions import Prompt
from router.adapters.constraints import take_flags

# What decides sits at the ends of a long prompt: the instruction first, the question last.
HEAD_CHARS = 2000
TAIL_CHARS = 1000
# So many earlier turns of a conversation are looked for; the newest that is found counts.
_MOST_EARLIER = 8
_MARK_BYTES = 16


def prompt_of(value: Any) -> Prompt:
    """The deciding text of a prompt: a string, token-free list of strings, or chat messages.

    Of a conversation that is the last user turn; without one, the last message. The system's
    message and all the user's turns are its context, for when the last turn says little by itself.
    """
    if isinstance(value, str):
        return Prompt(text=clip(value))
    if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        return Prompt(text=clip(value[0]))
    messages = [m for m in value if isinstance(m, dict)] if isinstance(value, list) else []
    turns = [m for m in messages if m.get("role") == "user"] or messages[-1:]
    if not turns:
        return Prompt(text="")
    told = [m for m in messages if m.get("role") in ("system", "developer")] + turns
    context = "\n".join(_content(m.get("content")) for m in told) if len(told) > 1 else ""
    mark, marks = _marks(messages)
    text = clip(_content(turns[-1].get("content")))
    return Prompt(text=text, context=clip(context), mark=mark, marks=marks)


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
    return ends_of(text.encode("utf-8", "replace").decode(), HEAD_CHARS, TAIL_CHARS)


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


def _marks(messages: Sequence[Mapping[str, Any]]) -> tuple[str, tuple[str, ...]]:
    """The mark of the last turn of the user, and of those that were answered before, the newest
    first: each a hash of all messages up to it. What follows the last turn, as of tools, says that
    it was answered itself.
    """
    chain, marks = hashlib.blake2b(digest_size=_MARK_BYTES), []
    for message in messages:
        try:
            chain.update(_as_bytes(message))
        except RecursionError:  # nested too deeply: whoever answers will say so
            return "", ()
        if message.get("role") == "user":
            marks.append(chain.hexdigest())
    if not marks:
        return "", ()
    answered = marks if messages[-1].get("role") != "user" else marks[:-1]
    return marks[-1], tuple(answered[: -_MOST_EARLIER - 1 : -1])


def _as_bytes(message: Mapping[str, Any]) -> bytes:
    """A message the same at every turn: flags are taken out of the newest one alone."""
    content = message.get("content")
    if message.get("role") == "user" and isinstance(content, str):
        message = {**message, "content": take_flags(content)[0]}
    return json.dumps(message, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = (p.get("text") for p in parts if isinstance(p, dict))
    return "\n".join(text for text in texts if isinstance(text, str))
