"""From an OpenAI request to the text that decides."""

from typing import Any

from cluster.decisions import Prompt

# What decides sits at the ends of a long prompt: the instruction first, the question last.
HEAD_CHARS = 2000
TAIL_CHARS = 1000


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
    return Prompt(text=clip(_content(turns[-1].get("content"))), context=clip(context))


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


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = (p.get("text") for p in parts if isinstance(p, dict))
    return "\n".join(text for text in texts if isinstance(text, str))
