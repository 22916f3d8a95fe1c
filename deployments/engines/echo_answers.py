"""What the echo engine says, in OpenAI's protocol."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Said:
    """An answer, as OpenAI's protocol words it: a message of a chat, or a text; one for each prompt
    of a list, or `n`.

    Attributes:
        answers: the words of each.
        cached: words of the prompts that were; None where that is not told.
        tool: that is called with the words as arguments, in place of an answer.
    """

    id: str
    model: str
    answers: list[list[str]]
    is_chat: bool
    cached: int | None = None
    tool: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def words(self) -> list[str]:
        """Of all of it."""
        return [word for answer in self.answers for word in answer]

    def whole(self) -> bytes:
        choices = [self._choice(i, " ".join(words)) for i, words in enumerate(self.answers)]
        kind = "chat.completion" if self.is_chat else "text_completion"
        return self._json(kind, choices, usage=self._counts())

    def _choice(self, index: int, text: str) -> dict[str, Any]:
        said = {"content": text} if self.tool is None else {"content": None, **self._call(text)}
        content = {"message": {"role": "assistant", **said}} if self.is_chat else {"text": text}
        return {"index": index, "finish_reason": self._end, "logprobs": None, **content}

    def chunks(self) -> Iterator[bytes]:
        """Of a stream, one for each word."""
        for index, words in enumerate(self.answers):
            if self.tool is not None:
                delta = {"role": "assistant", **self._call(" ".join(words))}
                yield self._chunk([{"index": index, "finish_reason": self._end, "delta": delta}])
                continue
            for i, word in enumerate(words):
                text = word if i == 0 else f" {word}"
                content = {"delta": {"content": text}} if self.is_chat else {"text": text}
                reason = self._end if i == len(words) - 1 else None
                yield self._chunk([{"index": index, "finish_reason": reason, **content}])

    @property
    def _end(self) -> str:
        return "stop" if self.tool is None else "tool_calls"

    def _call(self, arguments: str) -> dict[str, Any]:
        called = {"name": self.tool, "arguments": arguments}
        return {
            "tool_calls": [{"index": 0, "id": "call_0", "type": "function", "function": called}]
        }

    def usage(self) -> bytes:
        """Of a stream, the last chunk."""
        return self._chunk([], usage=self._counts())

    def _counts(self) -> dict[str, Any]:
        count = len(self.words)
        counts = {"prompt_tokens": count, "completion_tokens": count, "total_tokens": 2 * count}
        if self.cached is None:
            return counts
        return counts | {"prompt_tokens_details": {"cached_tokens": self.cached}}

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return self._json(kind, choices, **more)

    def _json(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> bytes:
        head = {"id": self.id, "created": self.created, "model": self.model}
        return json.dumps({**head, "object": kind, "choices": choices, **more}).encode()


def event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
