"""Requests that no client should send: each is answered, in OpenAI's shape, and breaks nothing."""

import asyncio
import json
import random
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import pytest

from tests.hostile import rounds
from tests.test_http import World, add, ask

pytestmark = [pytest.mark.redis, pytest.mark.hostile]

POSTS = ["/v1/chat/completions", "/v1/completions", "/v1/route", "/v1/feedback", "/v1/adapters"]
PATHS = [
    *POSTS,
    *(f"/v1/adapters/cron{rest}" for rest in ("", "/versions", "/versions/1", "/aliases/x")),
    *("/v1/adapters/cron/rollout", "/v1/adapters/cron/rollback"),
    *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/uploads", "/v1/uploads/x"),
    *("/v1/models", "/v1/models/x", "/v1/decisions", "/v1/decisions/x", "/v1/cluster"),
    *("/v1/history", "/v1/dashboard", "/metrics", "/", "/page/app.js", "/plotly/x"),
    *("/healthz", "/readyz", "/nothing"),
]
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
ODD_METHODS = ["HEAD", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "X"]
# Parts of a path: null, dots, overlong and broken UTF-8, halves of characters, other directions.
PARTS = ["%00", "%2e%2e", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "..", "//", "%c0%ae%c0%ae", "%ff"]
PARTS += ["%ed%a0%80", "%F0%9F%98%80", "%", "%zz", "%2f", "%0a%0d", "%25", "#", "@", "a@b@c"]
PARTS += ["x@%00", "%E2%80%AE", "a" * 9000]
NUMBERS = ["-1", "x", "", "nan", "1e400", "9" * 30, "%00", "%ff", "1e9", "5&limit=6"]
QUERIES = [
    *(f"{name}={n}" for name in ("limit", "step", "history_at", "revision") for n in NUMBERS),
    *(f"{name}=%00%ff%ed%a0%80" for name in ("cursor", "search", "tag", "owner", "adapter")),
    *(
        "base_model=%00",
        "adapters_at=x",
        "wait=perhaps",
        "replace=7",
        "a=%",
        "search=" + "a" * 9000,
    ),
]
HEADERS = ["accept", "authorization", "x-request-id", "upload-length", "upload-offset"]
HEADERS += ["upload-metadata", "range", "if-none-match", "if-modified-since", "accept-encoding"]
HEADERS += [f"x-roundhouse-{name}" for name in ("priority", "first-token-s", "adapters", "exclude")]
HEADERS += [f"x-roundhouse-{name}" for name in ("tags", "base-model", "min-confidence")]
HEADERS += [f"x-roundhouse-{name}" for name in ("max-latency-s", "weight-latency", "weight-size")]
HEADER_VALUES = [
    b"",
    b"\xff\xfe",
    b"nan",
    b"inf",
    b"1e999",
    b"-1",
    b"9" * 5000,
    b"a,b,,c",
    b"%ff%00",
]
HEADER_VALUES += [b"bytes=0-1,5-9", b"bytes=a-b", b"filename !!!", b"text/event-stream", b"1_0"]
HEADER_VALUES += ["٣".encode(), b"Bearer \xff"]
FIELDS = ["stream", "stream_options", "n", "max_tokens", "max_completion_tokens", "user", "model"]
FIELDS += ["messages", "prompt", "constraints", "input", "temperature", "request_id", "score"]
FIELDS += ["name", "source", "tags", "metadata", "percent", "version", "revision", "examples"]
FIELDS += ["lora_name", "lora_path", "safety_identifier", "base_model", "sha256", "lineage"]
FIELDS += ["evaluation", "gate", "step_s", "replicas", "pinned", "description", "owner"]
TURN = {"role": "user", "content": "hi there"}
USUAL = {"prompt": "hello", "messages": [TURN], "input": "x", "request_id": "r", "score": 1}
VALUES = [None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, -(10**30), 0.5, -0.0, 1e308, "", "x"]
VALUES += ["auto", "echo", "cron", "cron@1", "a" * 5000, "\0", "\ud800", "é☃\U0001f600", [], [[]]]
VALUES += [[1], [None], {}, {"a": 1}, {"include_usage": []}, [TURN], [{"role": "user"}]]
VALUES += [[TURN | {"content": [{"type": "text", "text": 5}]}], [TURN | {"content": None}]]
VALUES += [[TURN | {"role": 7}], "[Flag: best]", {"adapters": "x"}, {"weights": {"latency": "x"}}]
VALUES += [{"weights": []}, {"viewer": {}}, {"min_confidence": True}]
# JSON that no library writes.
TEXTS = [b"1e999", b"-1e999", b"NaN", b"Infinity", b"9" * 5000, b"1." + b"1" * 4000]
TEXTS += [b'"\\udc00\\ud800"', b'"\xff"', b'"\xed\xa0\x80"', b'{"a":1,"a":2}']
TEXTS += [
    b"[" * 900 + b"]" * 900,
    b'{"a":' * 900 + b"1" + b"}" * 900,
    b"[" * 60_000 + b"]" * 60_000,
]
BODIES = [b"", b"{", b"[]", b"null", b"\xff", b"7", b'"x"', b"\xef\xbb\xbf{}", b"{}{}", b"{}"]


def body(chance: random.Random) -> bytes:
    if chance.random() < 0.2:
        return chance.choice(BODIES)
    fields: dict[str, Any] = {"model": chance.choice(["echo", "auto", "cron"])} | USUAL
    parts = {name: json.dumps(value).encode() for name, value in fields.items()}
    for name in chance.choices(FIELDS, k=chance.choice([1, 1, 2, 3])):
        is_text = chance.random() < 0.3
        value = json.dumps(chance.choice(VALUES)).encode()
        parts[name] = chance.choice(TEXTS) if is_text else value
    whole = b"{" + b",".join(b'"%s":%s' % (n.encode(), v) for n, v in parts.items()) + b"}"
    return whole if chance.random() < 0.95 else whole[: len(whole) // 2]


def target(chance: random.Random) -> str:
    found, part = chance.choice(chance.choice([POSTS, PATHS])), chance.choice(PARTS)
    match chance.randrange(10):
        case 0 | 1:
            found = f"{found.rstrip('/')}/{part}"
        case 2:
            found = part + found
    if chance.random() < 0.3:
        found += "?" + "&".join(chance.choices(QUERIES, k=2))
    return found


def scope(chance: random.Random) -> dict[str, Any]:
    path, _, query = target(chance).partition("?")
    kind = "offset+octet-stream" if "uploads/" in path else "json"
    headers = [(b"host", b"localhost"), (b"content-type", f"application/{kind}".encode())]
    names = chance.choices(HEADERS, k=chance.choice([0, 0, 1, 2]))
    headers += [(name.encode(), chance.choice(HEADER_VALUES)) for name in names]
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": chance.choice(METHODS if chance.random() < 0.9 else ODD_METHODS),
        "scheme": "http",
        # As servers make it of what came.
        "path": unquote(path),
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }


class Answer:
    """What the application sends, and whether it raises after it."""

    def __init__(self) -> None:
        self.status = 0
        self.kind = ""
        self.body = b""

    @classmethod
    async def to(cls, app: Any, asked: dict[str, Any], content: bytes) -> "Answer":
        it, sent = cls(), [{"type": "http.request", "body": content, "more_body": False}]

        async def receive() -> dict[str, Any]:
            return sent.pop() if sent else await asyncio.Event().wait()  # type: ignore[return-value]

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                it.status = message["status"]
                it.kind = dict(message["headers"]).get(b"content-type", b"").decode()
            it.body += message.get("body", b"")

        async with asyncio.timeout(20):
            await app(asked, receive, send)
        return it

    def wrongs(self, method: str) -> Iterator[str]:
        if not self.status or (self.status >= 500 and self.status not in (503, 504, 507)):
            yield "the server has failed"
        if self.status >= 400 and method != "HEAD":
            if self.kind != "application/json":
                yield f"an error is {self.kind}"
            elif set(json.loads(self.body)["error"]) != {"message", "type", "param", "code"}:
                yield "an error has another shape"
        if self.kind.startswith("text/event-stream") and not self.body.endswith(b"\n\n"):
            yield "a stream breaks off"


@pytest.mark.timeout(600)
async def test_no_request_breaks_the_server_or_is_refused_in_another_shape(
    make_world, make_adapter
):
    async with make_world() as rh:
        await add(rh, make_adapter("cron"))
        for seed in range(rounds(500, 20_000)):
            await _check(rh, seed)
        assert (await ask(rh, "echo")).status_code == 200


async def _check(rh: World, seed: int) -> None:
    chance = random.Random(seed)
    asked, content = scope(chance), body(chance)
    what = (seed, asked["method"], asked["raw_path"][:200], asked["headers"], content[:400])
    try:
        answer = await Answer.to(rh.app, dict(asked), content)
    except Exception as e:
        raise AssertionError(f"{what} raised {e!r}") from e
    assert list(answer.wrongs(asked["method"])) == [], (what, answer.status, answer.body[:400])
