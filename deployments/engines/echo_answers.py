"""What the fake engine answers: the words of the prompt, as each call words an answer."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import BaseModel, Field

from cluster.calls import Shape

# Where the text to repeat is, by the fields of all calls, the last one first.
_TEXTS = ("query", "queries", "text_1", "data_1", "input", "messages", "prompt", "tokens")


class _StreamOptions(BaseModel):
    include_usage: bool | None = None


class _Function(BaseModel):
    name: str


class _Tool(BaseModel):
    # Of a chat; other calls have the name beside it.
    function: _Function | None = None


class EchoRequest(BaseModel):
    """Of a request, what the answer depends on; checked, as engines do."""

    shape: Shape
    model: str
    messages: list[dict[str, Any]] | None = None
    prompt: str | list[Any] | None = None
    input: str | list[Any] | None = None
    tokens: list[int] | None = None
    query: str | None = None
    queries: str | list[str] | None = None
    documents: list[str] = []
    n: int | None = Field(None, ge=1)
    tools: list[_Tool] | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_output_tokens: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    cache_salt: str | None = None
    request_id: str | None = None

    @classmethod
    def read(cls, shape: Shape, body: bytes, headers: Mapping[str, str]) -> "EchoRequest":
        """Raises pydantic's ValidationError. Of a form, the file is the prompt."""
        if shape is not Shape.AUDIO:
            return cls.model_validate({**json.loads(body), "shape": shape})
        boundary = headers["content-type"].partition("boundary=")[2].encode()
        parts = (part.partition(b"\r\n\r\n") for part in body.split(b"--" + boundary))
        named = {head: value.removesuffix(b"\r\n").decode() for head, _, value in parts}
        found = {n: v for head, v in named.items() for n in _FORM if b'name="%s"' % n in head}
        model, prompt = (found[name] for name in _FORM)
        return cls.model_validate({"shape": shape, "model": model, "prompt": prompt})

    @property
    def longest(self) -> int | None:
        return self.max_output_tokens if self.shape is Shape.RESPONSE else self.max_tokens

    @property
    def tool(self) -> str | None:
        """That a chat calls: the first of those that it is offered."""
        if self.shape is not Shape.CHAT or not self.tools or self.tools[0].function is None:
            return None
        return self.tools[0].function.name

    @property
    def texts(self) -> list[str]:
        """What is repeated: each prompt of a list, of a conversation its last message."""
        value = next((v for n in _TEXTS if (v := getattr(self, n, None)) is not None), "")
        if self.shape is Shape.COMPLETION:
            is_list = isinstance(value, list) and all(isinstance(v, str | list) for v in value)
            return [*map(str, value)] if is_list else [str(value)]
        if isinstance(value, list) and value and isinstance(value[-1], dict):
            value = value[-1].get("content") or ""
            return [value if isinstance(value, str) else json.dumps(value)]
        return [value if isinstance(value, str) else " ".join(map(str, value))]


_FORM = (b"model", b"file")


class Event(NamedTuple):
    """Of a stream."""

    data: bytes
    is_token: bool = False


@dataclass(frozen=True)
class Said:
    """An answer; each shape words it in its own way.

    Attributes:
        answers: the words of each: one to each prompt of a list, or `n`.
        cached: words of the prompts that were; None where that is not told.
    """

    id: str
    model: str
    answers: list[list[str]]
    cached: int | None
    request: EchoRequest
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self) -> bytes:
        raise NotImplementedError

    def events(self) -> Iterator[Event]:
        raise NotImplementedError

    @property
    def words(self) -> list[str]:
        """Of all of it."""
        return [word for answer in self.answers for word in answer]

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def counts(self, asked: str = "prompt_tokens", answered: str = "completion_tokens") -> Any:
        """Its usage, under the names that the call has."""
        count = len(self.words)
        counts: dict[str, Any] = {asked: count, answered: count, "total_tokens": 2 * count}
        if self.cached is not None:
            counts["prompt_tokens_details"] = {"cached_tokens": self.cached}
        return counts


class _Chosen(Said):
    """OpenAI's choices: a message of a chat, a call of a tool that it is offered, or a text."""

    def _content(self, name: str, text: str) -> dict[str, Any]:
        if self.request.shape is Shape.COMPLETION:
            return {"text": text}
        role = {"role": "assistant"} if name == "message" else {}
        return {name: {"content": text} | role}

    def _called(self, name: str, arguments: str) -> dict[str, Any]:
        function = {"name": self.request.tool, "arguments": arguments}
        call = {"index": 0, "id": "call_0", "type": "function", "function": function}
        return {name: {"role": "assistant", "content": None, "tool_calls": [call]}}

    def whole(self) -> bytes:
        choices = [self._choice(i, " ".join(words)) for i, words in enumerate(self.answers)]
        return self._json("chat.completion", choices, usage=self.counts())

    def _choice(self, index: int, text: str) -> dict[str, Any]:
        if self.request.tool is not None:
            said = {"finish_reason": "tool_calls", **self._called("message", text)}
        else:
            said = {"finish_reason": "stop", **self._content("message", text)}
        return {"index": index, "logprobs": None, **said}

    def events(self) -> Iterator[Event]:
        for index, words in enumerate(self.answers):
            for said in self._pieces(words):
                yield Event(self._chunk([{"index": index, **said}]), is_token=True)
        options = self.request.stream_options
        if options and options.include_usage:
            yield Event(self._chunk([], usage=self.counts()))
        yield Event(_data(b"[DONE]"))

    def _pieces(self, words: list[str]) -> Iterator[dict[str, Any]]:
        if self.request.tool is not None:
            yield {"finish_reason": "tool_calls", **self._called("delta", " ".join(words))}
            return
        for i, text in enumerate(_spaced(words)):
            reason = "stop" if i == len(words) - 1 else None
            yield {"finish_reason": reason, **self._content("delta", text)}

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return _data(self._json("chat.completion.chunk", choices, **more))

    def _json(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> bytes:
        named = "text_completion" if self.request.shape is Shape.COMPLETION else kind
        head = {"id": self.id, "created": self.created, "model": self.model}
        return json.dumps({**head, "object": named, "choices": choices, **more}).encode()


class _Response(Said):
    """OpenAI's responses."""

    def _object(self, status: str, **more: Any) -> dict[str, Any]:
        head = {"id": self.id, "object": "response", "created_at": self.created, "output": []}
        usual = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
        return {**head, **usual, "model": self.model, "status": status, **more}

    def _done(self) -> dict[str, Any]:
        part = {"type": "output_text", "text": self.text, "annotations": []}
        message = {"id": "msg", "type": "message", "role": "assistant", "status": "completed"}
        usage = self.counts("input_tokens", "output_tokens")
        return self._object("completed", output=[message | {"content": [part]}], usage=usage)

    def whole(self) -> bytes:
        return json.dumps(self._done()).encode()

    def events(self) -> Iterator[Event]:
        yield Event(self._event(0, "response.created", response=self._object("in_progress")))
        at = {"item_id": "msg", "output_index": 0, "content_index": 0, "logprobs": []}
        for i, text in enumerate(_spaced(self.words), 1):
            event = self._event(i, "response.output_text.delta", delta=text, **at)
            yield Event(event, is_token=True)
        last = len(self.words) + 1
        yield Event(self._event(last, "response.output_text.done", text=self.text, **at))
        yield Event(self._event(last + 1, "response.completed", response=self._done()))

    def _event(self, number: int, name: str, **fields: Any) -> bytes:
        return _named(name, {"sequence_number": number, **fields})


class _Message(Said):
    """Anthropic's messages."""

    def _object(self, words: list[str], **more: Any) -> dict[str, Any]:
        content = [{"type": "text", "text": self.text}] if words else []
        head = {"id": self.id, "type": "message", "role": "assistant", "model": self.model}
        usage = {"input_tokens": len(self.words), "output_tokens": len(words)}
        return {**head, "content": content, "stop_reason": None, "usage": usage, **more}

    def whole(self) -> bytes:
        return json.dumps(self._object(self.words, stop_reason="end_turn")).encode()

    def events(self) -> Iterator[Event]:
        yield Event(_named("message_start", {"message": self._object([])}))
        block = {"type": "text", "text": ""}
        yield Event(_named("content_block_start", {"index": 0, "content_block": block}))
        for text in _spaced(self.words):
            delta = {"type": "text_delta", "text": text}
            yield Event(_named("content_block_delta", {"index": 0, "delta": delta}), is_token=True)
        yield Event(_named("content_block_stop", {"index": 0}))
        usage = {"output_tokens": len(self.words)}
        ended = {"stop_reason": "end_turn", "stop_sequence": None}
        yield Event(_named("message_delta", {"delta": ended, "usage": usage}))
        yield Event(_named("message_stop", {}))


class _Plain(Said):
    """What is generated by no call: counts, vectors, scores, and texts as they came."""

    def whole(self) -> bytes:
        asked, words = self.request, self.words
        found: dict[str, Any] = {"model": self.model, "usage": {"prompt_tokens": len(words)}}
        match asked.shape:
            case Shape.MESSAGE_COUNT:
                found = {"input_tokens": len(words)}
            case Shape.TOKENIZE:
                numbers = list(range(len(words)))
                found = {"count": len(words), "tokens": numbers, "max_model_len": len(words)}
            case Shape.DETOKENIZE:
                found = {"prompt": self.text}
            case Shape.AUDIO:
                found = {"text": self.text}
            case Shape.INPUT:
                texts = asked.input if isinstance(asked.input, list) else [self.text]
                vectors = [[float(len(str(text))), 1.0] for text in texts]
                data = [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]
                found |= {"object": "list", "data": data}
            case _:
                scores = [float(len(set(d.split()) & set(words))) for d in asked.documents]
                found["data"] = [{"index": i, "score": score} for i, score in enumerate(scores)]
        return json.dumps(found).encode()


def _spaced(words: list[str]) -> Iterator[str]:
    """A text, a word at a time."""
    for i, word in enumerate(words):
        yield word if i == 0 else f" {word}"


def _data(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def _named(name: str, fields: dict[str, Any]) -> bytes:
    return f"event: {name}\n".encode() + _data(json.dumps({"type": name, **fields}).encode())


WORDINGS: dict[Shape, type[Said]] = {
    **dict.fromkeys(Shape, _Plain),
    Shape.CHAT: _Chosen,
    Shape.COMPLETION: _Chosen,
    Shape.RESPONSE: _Response,
    Shape.MESSAGE: _Message,
}
