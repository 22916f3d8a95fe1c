"""What an engine refuses is told in OpenAI's shape, by the field that the client has sent."""

import json
from contextlib import asynccontextmanager

import pytest
from pydantic import BaseModel, ValidationError

from deployments.engines.refusals.bounds import MOST, check_bounds
from deployments.engines.refusals.problems import worst
from deployments.engines.refusals.told import CONTENT, GRAMMAR, TEMPLATE, error_of, in_our_shape
from deployments.process.call import Reply, ResponseStart

SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nope"}}}
CHAT = {"messages": [{"role": "user", "content": "hi"}]}
JSON = {"content-type": "application/json"}
EVENTS = {"content-type": "text/event-stream; charset=utf-8"}
CHUNK = b'data: {"choices": []}\n\n'


def told(status: int, said: dict, **fields) -> tuple[int, str, str | None, str | None]:
    error = error_of(status, said, json.dumps(CHAT | fields).encode())
    body = error.body()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    return error.status, body["type"], body["param"], body["code"]


@pytest.mark.parametrize(
    ("status", "said", "fields", "expected"),
    [
        (400, {"param": "body.temperature", "code": 400}, {}, (400, "temperature", None)),
        (400, {"param": "body.stop.1", "code": 400}, {}, (400, "stop[1]", None)),
        (400, {"message": "top_k must be 0"}, {}, (400, "top_k", None)),
        (400, {"message": "This model's maximum context length is 8"}, {}, (400, "messages", "L")),
        (400, {"message": "max_tokens=9 > max_model_len=8"}, {}, (400, "max_tokens", "L")),
        (400, {"param": GRAMMAR}, {"response_format": SCHEMA}, (400, "S", None)),
        (400, {"param": GRAMMAR}, {"structured_outputs": {"regex": "("}}, (400, "R", None)),
        (400, {"param": GRAMMAR}, {"tools": [{}]}, (400, "tools", None)),
        (400, {"param": CONTENT}, {}, (400, "messages", None)),
        (400, {"param": TEMPLATE}, {"chat_template": "{{"}, (400, "chat_template", None)),
        (400, {"message": 'tool_choice="x" requires y'}, {"tools": [{}]}, (400, "tools", None)),
        (400, {"message": "Token id 9 is out of vocabulary"}, {}, (400, "messages", None)),
        (501, {"message": "no beam search in streams"}, {}, (400, None, None)),
        (422, {"message": "the picture is not there"}, {}, (422, None, None)),
    ],
)
def test_a_clients_mistake_names_its_field(status, said, fields, expected):
    names = {
        "S": "response_format.json_schema.schema",
        "R": "structured_outputs.regex",
        "L": "context_length_exceeded",
    }
    found, kind, param, code = told(status, said, **fields)
    wanted, field, sort = expected
    assert (found, kind) == (wanted, "invalid_request_error")
    assert (param, code) == (names.get(field, field), names.get(sort, sort))


def test_an_engines_fault_stays_one():
    assert told(500, {"message": "EngineCore died", "code": 500}) == (
        500,
        "server_error",
        None,
        None,
    )
    assert told(503, {"message": "busy"})[0] == 503
    assert told(404, {"message": "The model `x` does not exist."})[2:] == (
        "model",
        "model_not_found",
    )


def test_the_words_of_an_exception_do_not_name_its_field_twice():
    said = {"message": "Too long. (parameter=input_tokens, value=[1, 2])", "param": "input_tokens"}
    assert "parameter=" not in error_of(400, said, json.dumps(CHAT).encode()).message
    said = {"message": "[17:34:09] <path>:2340: Check failed: (a >= 0) is false: Invalid range"}
    assert error_of(400, said, json.dumps(CHAT).encode()).message == "Invalid range"


@asynccontextmanager
async def answering(status: int, headers: dict, *chunks: bytes, then: Exception | None = None):
    async def body():
        for chunk in chunks:
            yield chunk
        if then is not None:
            raise then

    yield Reply(ResponseStart(status, headers), body())


FAULT = (
    b'data: {"error": {"message": "m", "type": "BadRequestError", "param": "body.n", "code": 400}}'
)


async def test_a_stream_that_begins_with_an_error_is_an_answer_with_its_status():
    answer = answering(200, EVENTS, FAULT + b"\n\n", b"data: [DONE]\n\n")
    async with in_our_shape(answer, b"{}") as reply:
        error = json.loads(await reply.read())["error"]
    assert (reply.start.status, reply.start.headers["content-type"]) == (400, "application/json")
    assert error == {
        "message": "n: m",
        "type": "invalid_request_error",
        "param": "n",
        "code": None,
    }


async def test_an_error_in_the_midst_of_a_stream_has_the_shape_too():
    answer = answering(200, EVENTS, CHUNK, FAULT + b"\n\n", b"data: [DONE]\n\n")
    async with in_our_shape(answer, b"{}") as reply:
        first, error, done = [chunk async for chunk in reply.body]
    assert (reply.start.status, first, done) == (200, CHUNK, b"data: [DONE]\n\n")
    assert json.loads(error.removeprefix(b"data: "))["error"]["type"] == "invalid_request_error"


async def test_what_an_application_raises_once_it_has_answered_is_its_answer():
    body = b'{"error": {"message": "boom", "code": 500}}'
    async with in_our_shape(answering(500, JSON, body, then=KeyError("x")), b"{}") as reply:
        assert json.loads(await reply.read())["error"]["message"] == "boom"


async def test_an_engine_that_dies_in_its_answer_is_not_hidden():
    with pytest.raises(KeyError):
        async with in_our_shape(answering(500, JSON, then=KeyError("x")), b"{}"):
            pass


class User(BaseModel):
    role: str
    content: str | list[str]


def problems(**wrong) -> list:
    from typing import Literal

    class System(BaseModel):
        role: Literal["system"]
        content: str

    class Asker(User):
        role: Literal["user"]

    class Chat(BaseModel):
        messages: list[System | Asker]

    with pytest.raises(ValidationError) as found:
        Chat(messages=[{"role": "user", "content": "x"} | wrong])
    return [{**p, "loc": ("body", *p["loc"])} for p in found.value.errors()]


def test_of_many_kinds_the_one_that_was_meant_is_told():
    param, message = worst(problems(content=5))
    assert param == "messages[0].content"
    assert message == "Input should be a valid string or Input should be a valid list"
    assert worst(problems(role="x"))[0] == "messages[0].role"


def test_counts_that_no_answer_comes_to_are_refused():
    within = {"properties": {"a": {"type": "array", "minItems": MOST + 1}}}
    for schema in (within, json.dumps(within)):
        with pytest.raises(ValueError, match="minItems"):
            check_bounds(schema)
    check_bounds({"type": "array", "minItems": MOST, "maxItems": 10**12})
    for odd in (None, "{", [], {"minItems": "x"}):
        check_bounds(odd)
