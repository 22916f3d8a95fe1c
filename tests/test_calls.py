"""Every call that models answer: read, routed, counted and refused in its own words."""

import json
from contextlib import asynccontextmanager

import anthropic
import httpx2
import openai
import pytest

from cluster.adapters import Viewer
from cluster.calls import CALLS, Shape, Task
from cluster.errors import InvalidRequest
from cluster.members import Replica
from cluster.settings import ApiKey, PlacementSettings, parse_settings
from deployments.engines.first_token import with_first_token
from deployments.ingress.calls.answers import Meter
from deployments.ingress.completion import Completion
from deployments.ingress.fleet import Fleet
from deployments.process import metrics
from deployments.process.call import Reply, ResponseStart
from tests.test_http import CLIENT_HASH, CLIENT_KEY, CRON, add, error

pytestmark = pytest.mark.redis

# Beside `echo`, which generates: one for all that is not generated.
EMBEDS = {
    "id": "vectors",
    "path": "none",
    "engine": "echo",
    "engine_args": {"tasks": ["tokenize", "embed", "score", "classify", "pool", "transcription"]},
}
TURN = [{"role": "user", "content": "every friday at ten"}]
# A body of each shape that says the same.
BODIES = {
    Shape.CHAT: {"messages": TURN},
    Shape.COMPLETION: {"prompt": "every friday at ten"},
    Shape.RESPONSE: {"input": "every friday at ten"},
    Shape.MESSAGE: {"messages": TURN, "max_tokens": 9},
    Shape.MESSAGE_COUNT: {"messages": TURN},
    Shape.TOKENIZE: {"prompt": "every friday at ten"},
    Shape.DETOKENIZE: {"tokens": [1, 2, 3]},
    Shape.INPUT: {"input": ["every friday", "at ten"]},
    Shape.SCORE: {"queries": "every friday", "documents": ["friday", "monday"]},
    Shape.RERANK: {"query": "every friday", "documents": ["friday", "monday"]},
}
STREAMED = (Shape.CHAT, Shape.COMPLETION, Shape.RESPONSE, Shape.MESSAGE)
GENERATED = [path for path, kind in CALLS.items() if kind.shape in STREAMED]


@pytest.fixture
async def both(make_world):
    """A world with a model that generates, and one that does all the rest."""
    async with make_world(others=[EMBEDS]) as rh:
        yield rh


async def post(rh, path: str, model: str, **fields):
    shape = CALLS[path].shape
    if shape is Shape.AUDIO:
        file = {"file": ("said.wav", b"one two", "audio/wav")}
        return await rh.client.post(path, data={"model": model, **fields}, files=file)
    return await rh.client.post(path, json=BODIES[shape] | {"model": model} | fields)


def clients(rh):
    """The SDKs of OpenAI and Anthropic, on the application itself."""
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=rh.app))
    told = {"base_url": "http://localhost/v1", "api_key": CLIENT_KEY, "max_retries": 0}
    return (
        openai.AsyncOpenAI(**told, http_client=http),
        anthropic.AsyncAnthropic(**told | {"base_url": "http://localhost"}, http_client=http),
    )


# -- who answers --------------------------------------------------------------------------------


async def test_each_call_is_answered_by_a_model_that_can(both):
    for path in CALLS:
        await _is_answered(both, path)


async def _is_answered(both, path: str) -> None:
    able = "echo" if CALLS[path].task in (Task.CHAT, Task.GENERATE) else "vectors"
    answer = await post(both, path, able)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-roundhouse-model"] == able
    assert answer.headers["x-roundhouse-route"] == "explicit"
    auto = await post(both, path, "auto")
    assert auto.status_code == 200, auto.text
    # The tokens that `auto` counts are those of the model that would answer.
    assert auto.headers["x-roundhouse-model"] == ("echo" if CALLS[path].by_prompt else
        "echo" if CALLS[path].task is Task.TOKENIZE else able)  # fmt: skip


async def test_a_model_that_cannot_says_which_can(both):
    for path, model, able in (
        ("/v1/embeddings", "echo", "vectors"),
        ("/v1/responses", "vectors", "echo"),
    ):
        found = error(await post(both, path, model), 400)
        assert (found["param"], found["code"]) == ("model", "model_not_supported")
        assert model in found["message"]
        assert f"{able} can" in found["message"]


async def test_where_no_model_can_that_is_said(make_world):
    async with make_world() as rh:
        for model in ("auto", "echo"):
            found = error(await post(rh, "/v1/embeddings", model), 400)
            assert "no base model here can" in found["message"]


async def test_auto_leaves_out_models_that_cannot_and_their_adapters(make_world, make_adapter):
    """Though one is the default, or has the adapter that fits best."""
    async with make_world(others=[EMBEDS], default_model="vectors", fallback=["vectors"]) as rh:
        await add(rh, make_adapter("cron", base_model="vectors", examples=CRON))
        answer = await post(rh, "/v1/messages", "auto")
        assert answer.headers["x-roundhouse-model"] == "echo"
        assert answer.headers["x-roundhouse-adapter"] == "base"
        rh.pools["echo"].is_full = True
        assert (await post(rh, "/v1/responses", "echo")).status_code == 429
        assert (await post(rh, "/v1/embeddings", "cron")).headers["x-roundhouse-adapter"] == "cron"


async def test_vectors_of_another_model_are_no_fallback(make_world):
    far = EMBEDS | {"id": "others"}
    async with make_world(others=[EMBEDS | {"fallback": ["others"]}, far]) as rh:
        rh.pools["vectors"].is_full = True
        assert (await post(rh, "/v1/embeddings", "auto")).status_code == 429


async def test_what_replicas_can_do_is_known_from_their_reports(store):
    fleet = Fleet(store.members, PlacementSettings())
    assert not fleet.tasks("echo")
    fleet.take(
        [
            Replica(id="a", model="echo"),
            Replica(id="b", model="vectors", tasks=("tokenize", "embed")),
            Replica(id="c", model="vectors", tasks=("tokenize",)),
        ]
    )
    assert fleet.tasks("echo") == {"chat", "generate", "tokenize"}
    assert fleet.tasks("vectors") == {"tokenize", "embed"}
    # The release before refuses fields that it does not know.
    assert "tasks" not in Replica(id="a", model="echo").model_dump()


async def test_what_a_caller_must_not_set_is_no_constraint(both):
    answer = await post(both, "/v1/responses", "auto", constraints={"unable": ["echo"]})
    assert error(answer, 400)["param"] == "constraints.unable"


async def test_adapters_and_auto_are_everywhere_the_same(both, make_adapter):
    await add(both, make_adapter("cron", examples=CRON))
    named = [(path, "cron", "explicit") for path in GENERATED]
    for path, model, route in (*named, *((path, "auto", "auto") for path in GENERATED)):
        answer = await post(both, path, model)
        assert answer.headers["x-roundhouse-adapter"] == "cron"
        assert answer.headers["x-roundhouse-route"] == route
        assert answer.json()["model"] == "cron"
    count = await post(both, "/v1/messages/count_tokens", "cron")
    assert count.headers["x-roundhouse-adapter"] == "base", "it changes nothing there"


WEATHER = {"role": "user", "content": "what is the weather in Paris"}
CALLED = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "1", "output": "tell me a joke"}
OF_TOOL = {"type": "tool_result", "tool_use_id": "1", "content": "tell me a joke"}


TURNS = [
    ("/v1/responses", {"input": [WEATHER, {"role": "assistant", "content": "?"}, *TURN]}),
    ("/v1/responses", {"input": [*TURN, CALLED, RESULT], "instructions": "be brief"}),
    (
        "/v1/responses",
        {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "every friday at ten"}]}
            ]
        },
    ),
    ("/v1/messages", {"messages": TURN, "system": "be brief", "max_tokens": 5}),
    (
        "/v1/messages",
        {
            "max_tokens": 5,
            "messages": [
                *TURN,
                {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f"}]},
                {"role": "user", "content": [OF_TOOL]},
            ],
        },
    ),
    (
        "/v1/messages",
        {
            "max_tokens": 5,
            "messages": [
                {"role": "user", "content": [OF_TOOL, {"type": "text", "text": TURN[0]["content"]}]}
            ],
        },
    ),
]


async def test_the_last_turn_of_the_user_decides(both, make_adapter):
    await add(both, make_adapter("cron", examples=CRON))
    for path, fields in TURNS:
        answer = await both.client.post(path, json={"model": "auto"} | fields)
        assert answer.headers["x-roundhouse-adapter"] == "cron", fields


# -- what cannot be -----------------------------------------------------------------------------


WRONG = [
    ("/v1/responses", {"previous_response_id": "resp_1"}, "previous_response_id"),
    ("/v1/responses", {"background": True}, "background"),
    ("/v1/responses", {"store": True}, "store"),
    ("/v1/responses", {"conversation": "conv_1"}, "conversation"),
    ("/v1/responses", {"input": []}, "input"),
    ("/v1/responses", {"input": ["x"]}, "input[0]"),
    ("/v1/responses", {"max_output_tokens": "many"}, "max_output_tokens"),
    ("/v1/embeddings", {"input": ""}, "input"),
    ("/v1/rerank", {"query": None}, "query"),
    ("/tokenize", {"prompt": 3}, "prompt"),
    ("/detokenize", {"tokens": None}, "tokens"),
]


async def test_what_cannot_be_is_400_and_names_the_field(both):
    for path, fields, param in WRONG:
        model = "vectors" if CALLS[path].task in (Task.EMBED, Task.SCORE) else "echo"
        assert error(await post(both, path, model, **fields), 400)["param"] == param


async def test_store_false_and_what_is_left_out_pass(both):
    for fields in ({"store": False}, {"store": None}, {"background": False}):
        assert (await post(both, "/v1/responses", "echo", **fields)).status_code == 200


async def test_a_call_that_is_not_there_says_what_is(both):
    for path in ("/v1/images/generations", "/v1/responses/resp_1/cancel"):
        found = error(await both.client.post(path, json={}), 404)
        assert "/v1/chat/completions" in found["message"]
        assert "/v1/embeddings" in found["message"]


async def test_audio_wants_a_form(both):
    answer = await both.client.post("/v1/audio/transcriptions", json={"model": "vectors"})
    assert "multipart/form-data" in error(answer, 415)["message"]
    form = {"model": "vectors", "n": "many"}
    assert error(await post(both, "/v1/audio/transcriptions", **form), 400)["param"] == "n"
    missing = await both.client.post("/v1/audio/transcriptions", files={"model": (None, "vectors")})
    assert error(missing, 400)["param"] == "file"
    broken = {"content-type": "multipart/form-data; boundary=x"}
    answer = await both.client.post("/v1/audio/translations", content=b"--y", headers=broken)
    error(answer, 400)


# -- Anthropic's words --------------------------------------------------------------------------


async def test_errors_of_messages_are_worded_as_anthropics(both):
    both.pool.is_full = True
    for answer, status, kind in (
        (await post(both, "/v1/messages", "nobody"), 404, "not_found_error"),
        (await post(both, "/v1/messages", "echo"), 429, "rate_limit_error"),
        (await post(both, "/v1/messages", "vectors"), 400, "invalid_request_error"),
        (await both.client.get("/v1/messages"), 405, "invalid_request_error"),
    ):
        assert answer.status_code == status
        told = answer.json()
        assert (told["type"], told["error"]["type"]) == ("error", kind)
        assert told["error"]["message"]


async def test_what_the_engine_refuses_is_worded_so_too(both):
    answer = await post(both, "/v1/messages", "echo", max_tokens=0)
    assert answer.status_code == 400
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert "max_tokens" in answer.json()["error"]["message"]


async def test_anthropics_header_has_the_key_too(make_world):
    key = {"name": "alice", "sha256": CLIENT_HASH, "scope": "client"}
    async with make_world(auth={"enabled": True, "keys": [key]}) as rh:
        for headers, status in (
            ({"x-api-key": CLIENT_KEY}, 200),
            ({"authorization": f"Bearer {CLIENT_KEY}", "x-api-key": "other"}, 200),
            ({"x-api-key": "rh-other"}, 401),
            ({"x-api-key": " "}, 401),
            ({}, 401),
        ):
            body = {"model": "echo"} | BODIES[Shape.MESSAGE]
            answer = await rh.client.post("/v1/messages", json=body, headers=headers)
            assert answer.status_code == status, headers
        assert answer.json()["error"]["type"] == "authentication_error"
        _, sdk = clients(rh)
        said = await sdk.messages.create(model="echo", max_tokens=5, messages=TURN)
        assert said.content[0].text == "every friday at ten"


# -- streams ------------------------------------------------------------------------------------


async def test_the_sdks_read_what_is_streamed(both):
    oai, ant = clients(both)
    stream = await oai.responses.create(model="echo", input="one two three", stream=True)
    events = [event async for event in stream]
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == (
        "one two three"
    )
    assert events[-1].response.usage.output_tokens == 3
    whole = await oai.responses.create(model="echo", input="one two three", max_output_tokens=2)
    assert whole.output_text == "one two"
    async with ant.messages.stream(model="echo", max_tokens=9, messages=TURN) as messages:
        said = await messages.get_final_message()
    assert said.content[0].text == "every friday at ten"
    assert said.usage.output_tokens == 4
    assert (await ant.messages.count_tokens(model="echo", messages=TURN)).input_tokens == 4
    vectors = await oai.embeddings.create(
        model="auto", input=["one", "three"], encoding_format="float"
    )
    assert [v.embedding[0] for v in vectors.data] == [3.0, 5.0]
    heard = await oai.audio.transcriptions.create(model="vectors", file=("a.wav", b"one two"))
    assert heard.text == "one two"


async def test_a_stream_is_counted_by_its_own_events(both):
    for path in GENERATED:
        await _is_counted(both, path)


async def _is_counted(both, path: str) -> None:
    labels = {"model": "echo", "adapter": ""}

    def counted() -> list[float]:
        names = (
            "roundhouse_output_tokens_total",
            "roundhouse_time_to_first_token_seconds_count",
        )
        return [metrics.REGISTRY.get_sample_value(name, labels) or 0 for name in names]

    before = counted()
    answer = await post(both, path, "echo", stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    words = len(TURN[0]["content"].split())
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [words, 1]
    before = counted()
    await post(both, path, "echo")
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [words, 0]


async def test_a_stream_that_fails_ends_with_an_error_event_of_its_call(both):
    both.pool.dies_after = 3
    for path in GENERATED:
        await _fails(both, path)


async def _fails(both, path: str) -> None:
    answer = await post(both, path, "echo", stream=True)
    *_, last = answer.text.strip().split("\n\n")
    told = json.loads(last.rpartition("data: ")[2])
    assert told["error"]["code"] == "replica_lost"
    is_named = CALLS[path].shape in (Shape.RESPONSE, Shape.MESSAGE)
    assert last.startswith("event: error\n") == is_named
    assert told.get("type") == ("error" if is_named else None)
    oai, ant = clients(both)
    if CALLS[path].shape is Shape.RESPONSE:
        with pytest.raises(openai.APIError, match="killed by the test"):
            async for _ in await oai.responses.create(model="echo", input="a b c d", stream=True):
                pass
    if CALLS[path].shape is Shape.MESSAGE:
        with pytest.raises(anthropic.APIError, match="killed by the test"):
            async for _ in await ant.messages.create(
                model="echo", max_tokens=9, messages=TURN, stream=True
            ):
                pass


EVENT = b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'
USED = b'data: {"choices": [], "usage": {"completion_tokens": 7}}\n\n'
DELTA = b'event: response.output_text.delta\ndata: {"delta": "x"}\n\n'
DONE = b'event: response.output_text.done\ndata: {"text": "x"}\n\n'
COMPLETED = (
    b'event: response.completed\ndata: {"response": {"output": [{"text": "x"}], '
    b'"usage": {"input_tokens": 3, "output_tokens": 7, "output_tokens_details": {}}}}\n\n'
)
BLOCK = b'event: content_block_delta\ndata: {"delta": {"text": "event: message_stop"}}\n\n'
MESSAGE = b'event: message_delta\ndata: {"usage": {"input_tokens": 2, "output_tokens": 7}}\n\n'
STOP = b'event: message_stop\ndata: {"type": "message_stop"}\n\n'


@pytest.mark.parametrize(
    ("path", "chunks", "tokens", "is_whole"),
    [
        (GENERATED[0], [EVENT], 1, False),
        (GENERATED[0], [EVENT + EVENT, EVENT], 3, False),
        (GENERATED[0], [b'data: {"choices": [{"delta": {"content": ""}}]}\n\n'], 0, False),
        (GENERATED[0], [EVENT, USED], 7, False),
        (GENERATED[0], [b'data: {"choices": [{"delta": {"content": "\\"text\\": \\"y\\""}}]}\n\n'],
         1, False),
        (GENERATED[0], [EVENT, b"data: [DONE]\n\n"], 1, True),
        ("/v1/responses", [b"event: response.created\ndata: {}\n\n"], 0, False),
        ("/v1/responses", [DELTA + DELTA, DONE], 2, False),
        ("/v1/responses", [DELTA, DONE + COMPLETED], 7, True),
        ("/v1/messages", [BLOCK, BLOCK], 2, False),
        ("/v1/messages", [BLOCK + BLOCK + MESSAGE], 7, False),
        ("/v1/messages", [BLOCK, MESSAGE + STOP], 7, True),
    ],
)  # fmt: skip
def test_tokens_of_a_stream(path, chunks, tokens, is_whole):
    meter = Meter(CALLS[path], is_stream=True)
    for chunk in chunks:
        meter.take(chunk)
    assert (meter.tokens, meter.is_whole) == (tokens, is_whole)


CREATED = b"event: response.created\ndata: {}\n\n"
STARTED = b"event: response.in_progress\ndata: {}\n\n"


@pytest.mark.parametrize(
    ("path", "sent", "passed"),
    [
        ("/v1/responses", [CREATED, STARTED, DELTA, DELTA], [CREATED + STARTED + DELTA, DELTA]),
        ("/v1/responses", [CREATED], [CREATED]),
        ("/v1/messages", [STOP, STOP], [STOP, STOP]),
    ],
)
async def test_a_stream_begins_with_its_first_token(path, sent, passed):
    @asynccontextmanager
    async def answering():
        async def body():
            for event in sent:
                yield event

        yield Reply(ResponseStart(200, {"content-type": "text/event-stream"}), body())

    async with with_first_token(path, answering()) as reply:
        assert [chunk async for chunk in reply.body] == passed


@pytest.mark.parametrize(
    ("path", "body", "tokens"),
    [
        (GENERATED[0], {"usage": {"completion_tokens": 7, "prompt_tokens": 1}}, 7),
        (GENERATED[0], {"error": {"message": "no"}}, 0),
        ("/v1/responses", {"metadata": {"output_tokens": 3}, "usage": {"output_tokens": 7}}, 7),
        ("/v1/messages", {"content": [{"input": {"output_tokens": 3}}],
                          "usage": {"output_tokens": 7}}, 7),
        ("/v1/embeddings", {"usage": {"prompt_tokens": 4}}, 0),
    ],
)  # fmt: skip
def test_tokens_of_an_answer_in_one_piece(path, body, tokens):
    meter = Meter(CALLS[path], is_stream=False)
    meter.take(json.dumps(body).encode())
    assert meter.tokens == tokens


# -- what the queue and the engine are told -----------------------------------------------------

KEYS = [ApiKey(name="alice", sha256="0" * 64)]


def read(path: str, **fields) -> Completion:
    settings = parse_settings(
        {
            "models": [{"id": "echo", "path": "none", "engine": "echo"}],
            "auth": {"enabled": True, "keys": [k.model_dump(mode="json") for k in KEYS]},
        }
    )
    body = BODIES[CALLS[path].shape] | {"model": "echo"} | fields
    return Completion.read(path, body, Viewer(owner="alice"), {}, settings)


@pytest.mark.parametrize(
    ("path", "fields", "sequences"),
    [
        ("/v1/completions", {"prompt": ["one", "two", "three"], "n": 2}, 6),
        ("/v1/completions", {"prompt": [1, 2, 3]}, 1),
        ("/v1/completions", {"prompt": [[1, 2], [3]]}, 2),
        ("/v1/chat/completions", {"n": 3}, 3),
        ("/v1/responses", {"input": TURN * 5}, 1),
        ("/v1/embeddings", {"input": ["a", "b", "c"]}, 3),
        ("/v1/embeddings", {"input": [1, 2, 3]}, 1),
        ("/v1/embeddings", {"input": None, "messages": TURN}, 1),
        ("/v1/rerank", {"documents": ["a", "b"]}, 2),
        ("/v1/score", {"queries": "a", "documents": ["a", "b"]}, 2),
    ],
)
def test_every_prompt_counts(path, fields, sequences):
    assert read(path, **fields).terms.sequences == sequences


def test_an_answer_is_as_long_as_its_call_says():
    for path, name in (("/v1/responses", "max_output_tokens"), ("/v1/messages", "max_tokens")):
        terms = read(path, **{name: 50}).terms
        assert terms.tokens == terms.prompt_tokens + 50
    terms = read("/v1/embeddings", max_tokens=50).terms
    assert terms.tokens == terms.prompt_tokens, "nothing is generated"


@pytest.mark.parametrize("path", [p for p, kind in CALLS.items() if kind.is_cached])
def test_every_call_with_a_cache_is_kept_apart(path):
    assert read(path).fields["cache_salt"] != read(path, cache_salt="x").fields["cache_salt"]


def test_names_of_pictures_are_the_tenants_own_wherever_they_are():
    picture = {"type": "image_url", "uuid": "secret"}
    for path, name in (
        ("/v1/chat/completions", "messages"),
        ("/v1/responses", "input"),
        ("/v1/messages", "messages"),
        ("/v1/embeddings", "messages"),
        ("/v1/score", "documents"),
    ):
        value = [{"role": "user", "content": [picture]}]
        assert "secret" not in json.dumps(read(path, **{name: value}).fields[name])


def test_what_is_nested_too_deeply_is_refused():
    nested: list = []
    for _ in range(600):
        nested = [nested]
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        read("/v1/embeddings", input=nested)


def test_the_id_of_a_response_is_the_requests_and_nothing_is_kept():
    sent = json.loads(read("/v1/responses", request_id="mine").for_engine("echo", "r1").body)
    assert (sent["request_id"], sent["store"]) == ("resp_r1", False)
