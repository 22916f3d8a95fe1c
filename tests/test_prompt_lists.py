"""Lists of prompts: with `auto` each goes to its own adapter, and the answers come back as one."""

import asyncio
import json

import pytest

from deployments.ingress.answering.merging import Events, Places, merged, summed
from tests.conftest import until
from tests.test_http import error

pytestmark = pytest.mark.redis

CRON = ["every weekday at half past nine", "each hour", "sundays at midnight"]
SQL = ["orders from Paris", "customers older than 30", "average price of all products"]
PROMPTS = ["every friday at ten in the morning", "tell me a joke", "orders from Rome", "each day"]
LONG = {"cron": "every friday at eight in the morning", "sql": "orders from Oslo"}
ANSWERS = ["0 10 * * 5", "tell me a joke", "SELECT one", "0 0 * * *"]


@pytest.fixture
async def rh(make_world, make_adapter):
    async with make_world(engine_args={"token_s": 0.001}) as it:
        knows = {"cron": (PROMPTS[0], PROMPTS[3]), "sql": (PROMPTS[2],)}
        for name, examples in (("cron", CRON), ("sql", SQL)):
            said = {p: ANSWERS[PROMPTS.index(p)] for p in knows[name]}
            said[LONG[name]] = "word " * 3000
            folder = make_adapter(name, examples=examples, config={"echo_answers": said})
            added = await it.client.post("/v1/adapters", json={"source": str(folder)})
            assert added.status_code == 201, added.text
        yield it


async def complete(rh, prompt, model="auto", headers=None, **fields):
    body = {"model": model, "prompt": prompt} | fields
    return await rh.client.post("/v1/completions", json=body, headers=headers or {})


def chunks_of(answer) -> list[dict]:
    events = [line[6:] for line in answer.text.splitlines() if line]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


async def test_each_prompt_of_a_list_goes_to_its_own_adapter(rh):
    answer = await complete(rh, PROMPTS, headers={"x-request-id": "many"})
    body = answer.json()
    assert [c["text"] for c in body["choices"]] == ANSWERS
    assert [c["index"] for c in body["choices"]] == [0, 1, 2, 3]
    assert (body["id"], body["model"]) == ("cmpl-many", "cron,echo,sql")
    words = sum(len(text.split()) for text in ANSWERS)
    assert body["usage"]["completion_tokens"] == words
    assert answer.headers["x-roundhouse-adapter"] == "cron,base,sql"
    assert answer.headers["x-roundhouse-version"] == "1,,1"
    assert answer.headers["x-roundhouse-route"] == "auto"
    assert sorted(terms.sequences for terms in rh.pool.terms[-3:]) == [1, 1, 2], "each counts"
    kept = [await until_kept(rh, f"many-{i}") for i in range(4)]
    assert [one["answered_by"] for one in kept] == ["cron", "echo", "sql", "cron"]
    assert [one["input"] for one in kept] == PROMPTS
    assert not any(one["decision"]["decided_by"] for one in kept), "where prompts are not kept, too"


async def until_kept(rh, request_id: str) -> dict:
    async def found():
        answer = await rh.client.get(f"/v1/decisions/{request_id}")
        return answer.status_code == 200

    await until(found)
    return (await rh.client.get(f"/v1/decisions/{request_id}")).json()


async def test_several_answers_to_each_keep_their_order(rh):
    body = (await complete(rh, PROMPTS, n=2)).json()
    assert [c["text"] for c in body["choices"]] == [a for a in ANSWERS for _ in range(2)]
    assert [c["index"] for c in body["choices"]] == list(range(8))


async def test_streams_keep_their_indices_and_end_once(rh):
    options = {"include_usage": True}
    answer = await complete(rh, PROMPTS, stream=True, stream_options=options)
    *chunks, last = chunks_of(answer)
    texts = [""] * 4
    for chunk in chunks:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == ANSWERS
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["model"] for chunk in chunks} == {"cron", "echo", "sql"}
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == sum(len(text.split()) for text in ANSWERS)


async def test_a_list_for_one_adapter_is_one_call(rh):
    before = len(rh.pool.terms)
    named = (await complete(rh, PROMPTS, model="cron")).json()
    alike = await complete(rh, [PROMPTS[0], PROMPTS[3]])
    assert [c["text"] for c in named["choices"]] == [ANSWERS[0], *PROMPTS[1:3], ANSWERS[3]]
    assert [c["text"] for c in alike.json()["choices"]] == [ANSWERS[0], ANSWERS[3]]
    assert alike.headers["x-roundhouse-adapter"] == "cron"
    assert [terms.sequences for terms in rh.pool.terms[before:]] == [4, 2]


async def test_tokens_are_read_by_nobody_and_go_to_the_base_model(rh):
    for prompt in ([1, 2, 3], [[1, 2], [3]], ["every friday at ten", 5], [[1], "x"]):
        answer = await complete(rh, prompt)
        assert answer.headers["x-roundhouse-adapter"] == "base", prompt


async def test_too_many_are_refused_by_the_name_of_the_field(rh):
    assert error(await complete(rh, ["a"] * 1025), 400)["param"] == "prompt"
    assert (await complete(rh, ["a"] * 1025, model="echo")).status_code == 200


async def test_one_that_fails_is_the_answer_to_all(rh):
    rh.pool.deaths_left = 4
    assert error(await complete(rh, PROMPTS), 503)["code"] == "replica_lost"
    await until(lambda: rh.pool.open_answers == 0)
    rh.pool.deaths_left = 0
    refused = await complete(rh, PROMPTS, max_tokens=-1)
    assert error(refused, 400)["param"] == "max_tokens"
    await until(lambda: rh.pool.open_answers == 0)


async def test_one_that_dies_in_mid_stream_ends_all_with_one_error(rh):
    rh.pool.dies_after = 1
    answer = await complete(rh, PROMPTS, stream=True)
    events = [line[6:] for line in answer.text.splitlines() if line]
    assert json.loads(events[-1])["error"]["code"] == "replica_lost"
    assert sum("error" in json.loads(event) for event in events) == 1
    rh.pool.dies_after = 0
    assert error(await complete(rh, PROMPTS), 503)["code"] == "replica_lost"
    await until(lambda: rh.pool.open_answers == 0)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_hangs_up_frees_all_places(rh, stream):
    body = {"model": "auto", "prompt": [*LONG.values()], "stream": stream}
    request = rh.client.build_request("POST", "/v1/completions", json=body)
    task = asyncio.create_task(rh.client.send(request))
    await until(lambda: rh.pool.open_answers == 2)
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert rh.pool.open_answers == 0


# -- pure ---------------------------------------------------------------------------------------


def test_choices_find_their_places_and_usage_is_added_up():
    logprobs = {"tokens": ["a"], "top_logprobs": [None]}
    first = {
        "object": "text_completion",
        "choices": [{"index": i, "text": f"b{i}", "logprobs": logprobs} for i in range(2)],
        "usage": {"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": 1}},
    }
    second = {
        "choices": [{"index": i, "text": f"a{i}"} for i in range(4)],
        "usage": {"prompt_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}},
    }
    whole = merged([(Places((1,), 2), first), (Places((2, 0), 2), second)], {"id": "x"})
    assert [c["text"] for c in whole["choices"]] == ["a2", "a3", "b0", "b1", "a0", "a1"]
    assert whole["choices"][2]["logprobs"] == logprobs
    assert (whole["id"], whole["object"]) == ("x", "text_completion")
    details = {"cached_tokens": 4}
    assert whole["usage"] == {"prompt_tokens": 3, "prompt_tokens_details": details}


def test_usage_without_numbers_stays_as_the_first_says():
    first, second = {"a": None, "b": True, "c": 1}, {"a": 2, "b": False, "d": 3}
    assert summed([first, second]) == {"a": 2, "b": True, "c": 1, "d": 3}


def test_events_are_found_however_they_are_cut():
    sent = b'data: {"a":1}\n\n: a comment\n\ndata: [DONE]\n\n'
    for size in (1, 3, 7, len(sent)):
        events = Events()
        pieces = [sent[i : i + size] for i in range(0, len(sent), size)]
        assert [e for p in pieces for e in events.of(p)] == [b'{"a":1}', b"[DONE]"], size
