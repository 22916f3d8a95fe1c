"""From an OpenAI request to the text that decides."""

from typing import Any

# What decides sits at the ends of a long prompt: the instruction first, the question last.
HEAD_CHARS = 2000
TAIL_CHARS = 1000


def text_of(value: Any) -> str:
    """The deciding text of a prompt: a string, token-free list of strings, or chat messages.

    Of a conversation that is the last user turn; without one, the last message.
    """
    if isinstance(value, str):
        return clip(value)
    if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        return clip(value[0])
    messages = [m for m in value if isinstance(m, dict)] if isinstance(value, list) else []
    turns = [m for m in messages if m.get("role") == "user"] or messages
    return clip(_content(turns[-1].get("content"))) if turns else ""


def clip(text: str) -> str:
    """Head and tail of a long text, in characters that every tokenizer takes."""
    text = text.encode("utf-8", "replace").decode()
    if len(text) <= HEAD_CHARS + TAIL_CHARS:
        return text
    return f"{text[:HEAD_CHARS]}\n{text[-TAIL_CHARS:]}"


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = (p.get("text") for p in parts if isinstance(p, dict))
    return "\n".join(text for text in texts if isinstance(text, str))
