"""What an answer brings, counted while it passes, and how errors of its call are worded.

Each shape streams events of its own. Quotes within generated text are escaped, and an event's data
is one line, so what is looked for here is never part of a text.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.calls import CALLS, CallKind, Shape
from cluster.errors import RoundhouseError

_COUNTED = rb'"(?:completion|output)_tokens":\s*(\d+)'
# Of an answer in one piece: what comes last is its own, not a tool's argument of that name.
_USAGE = re.compile(rb".*" + _COUNTED, re.DOTALL)


@dataclass(frozen=True)
class _Events:
    """What a stream is read by.

    Attributes:
        token: one for each token, or about.
        usage: the event that says how many there were.
        last: whether clients leave when they have read it.
    """

    token: re.Pattern[bytes]
    usage: re.Pattern[bytes]
    last: re.Pattern[bytes]


def _named(names: bytes) -> bytes:
    return rb"^event: (?:" + names + rb")\n"


# OpenAI's: an event with text in it.
_DATA = _Events(
    re.compile(rb'"(?:content|text|reasoning|reasoning_content)":\s*"(?!")'),
    # With `include_usage`, of no choice any more.
    re.compile(rb'^data: .*"choices":\s*\[\],.*' + _COUNTED, re.MULTILINE),
    re.compile(rb"data: \[DONE\]\n\n\Z"),
)
_RESPONSE_ENDS = rb"response\.(?:completed|incomplete|failed)"
_EVENTS = {
    Shape.RESPONSE: _Events(
        re.compile(_named(rb"response\.[a-z_.]+\.delta"), re.MULTILINE),
        re.compile(_named(_RESPONSE_ENDS) + rb"data: .*" + _COUNTED, re.MULTILINE),
        re.compile(_named(_RESPONSE_ENDS), re.MULTILINE),
    ),
    Shape.MESSAGE: _Events(
        re.compile(_named(rb"content_block_delta"), re.MULTILINE),
        re.compile(_named(rb"message_delta") + rb"data: .*" + _COUNTED, re.MULTILINE),
        re.compile(_named(rb"message_stop"), re.MULTILINE),
    ),
}


@dataclass
class Meter:
    """Counts one answer.

    Attributes:
        tokens: generated so far: one for each event with text, at the end as the usage says.
        is_whole: a stream has told that it ends; clients may leave as soon as they have read that.
    """

    kind: CallKind
    is_stream: bool
    tokens: int = 0
    is_whole: bool = False
    _events: _Events = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._events = _EVENTS.get(self.kind.shape, _DATA)

    def take(self, chunk: bytes) -> None:
        """A part of the answer: whole events of a stream, or all of what is none."""
        if not self.is_stream:
            found = _USAGE.match(chunk)
            self.tokens += int(found[1]) if found else 0
            return
        self.tokens += len(self._events.token.findall(chunk))
        if used := self._events.usage.findall(chunk):
            self.tokens = int(used[-1])
        self.is_whole = self._events.last.search(chunk) is not None


# -- errors -------------------------------------------------------------------------------------

# As Anthropic's clients know them.
_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_body(path: str, error: RoundhouseError) -> dict[str, Any]:
    """The error as clients of a call expect it."""
    return worded(CALLS.get(path), error.status, error.body())


def worded(kind: CallKind | None, status: int, body: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's error object as it is, or as Anthropic's where the call is theirs.

    All that ours says stays in it: other clients may read that.
    """
    if kind is None or not kind.is_anthropic:
        return dict(body)
    usual = "invalid_request_error" if 400 <= status < 500 else "api_error"
    error = dict(body["error"]) | {"type": _ANTHROPIC.get(status, usual)}
    return {"type": "error", "error": error}


def reworded(kind: CallKind, status: int, body: bytes) -> bytes:
    """An error of a replica or its engine, as clients of the call expect it."""
    if not kind.is_anthropic:
        return body
    try:
        said = json.loads(body)
        found = said if isinstance(said["error"], dict) else {"error": {"message": str(said)}}
    except (ValueError, KeyError, TypeError):
        found = {"error": {"message": body.decode(errors="replace")}}
    return json.dumps(worded(kind, status, found)).encode()


def error_event(path: str, error: RoundhouseError) -> bytes:
    """The last event of a stream that fails."""
    body = error_body(path, error)
    kind = CALLS.get(path)
    if kind is not None and kind.shape is Shape.RESPONSE:
        # Clients read either: OpenAI's documents have the one, its endpoint sends the other.
        body = {"type": "error", **body["error"], **body}
        body["type"] = "error"
    name = b"event: error\n" if "type" in body else b""
    return name + b"data: " + json.dumps(body).encode() + b"\n\n"
