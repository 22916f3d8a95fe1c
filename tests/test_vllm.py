"""The main job on real engines: two vLLM replicas, trained adapters, driven by the openai SDK."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anthropic
import httpx
import openai
import pytest

from docs import console
from tests.collector import collecting
from tests.conftest import CACHE, COMMAND, Running, free_port, running_cluster, wait_until
from tests.test_serve import replicas

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

BASE = "smollm2-135m"
ADAPTERS = Path(__file__).parent.parent / "examples" / "adapters"
LOADED = ("cron", "git", "sql", "triage")
LATER = "kubectl"
# Room for bfloat16 against the float32 reference; a wrong adapter is off by whole units.
LOGIT_TOLERANCE = 0.5

PROMPTS = {
    None: ["What is the capital of France?", "Name three colours."],
    "cron": ["every weekday at half past nine", "at noon on sundays"],
    "git": ["undo my last commit but keep the changes staged", "list all my branches"],
}


@pytest.fixture(scope="module")
def collector():
    """Of the cluster's traces."""
    port = free_port()
    with collecting(port) as collector:
        yield port, collector


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, collector):
    model = {
        "id": BASE,
        "path": str(CACHE / "smollm2-135m-instruct"),
        "replicas": 2,
        "cpus_per_replica": 0.5,
        "lora": {"slots": 3, "host_entries": 8, "max_rank": 8},
        "engine_args": {
            "dtype": "bfloat16",
            "max_model_len": 1024,
            "max_num_seqs": 16,
            "enforce_eager": True,
        },
        "env": {
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "HF_HUB_OFFLINE": "1",
        },
    }
    preload = [str(ADAPTERS / name) for name in LOADED]
    folder = tmp_path_factory.mktemp("vllm")
    telemetry = {"otlp_endpoint": f"http://127.0.0.1:{collector[0]}"}
    settings = {"models": [model], "preload": preload, "telemetry": telemetry}
    with running_cluster(folder, settings, 300) as running:
        yield running


@pytest.fixture(scope="module")
def sdk(cluster: Running):
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def http(cluster: Running):
    with cluster.http() as client:
        yield client


def ask(sdk, model: str, prompt: str, **fields):
    return sdk.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        temperature=0,
        max_tokens=24,
        **fields,
    )


def text(raw) -> str:
    return raw.parse().choices[0].message.content


@pytest.fixture(scope="module")
def reference():
    """transformers and peft in float32, on the same checkpoint and adapters."""
    return Reference()


class Reference:
    def __init__(self) -> None:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        path = CACHE / "smollm2-135m-instruct"
        self.torch = torch
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self.model = PeftModel.from_pretrained(base, ADAPTERS / "cron", adapter_name="cron")
        self.model.load_adapter(ADAPTERS / "git", adapter_name="git")
        self.model.eval()

    def shortfall(self, adapter: str | None, prompt: str, answer: str) -> float:
        """How far the answer's tokens stay below the best ones, at the worst position (logits)."""
        messages = [{"role": "user", "content": prompt}]
        start = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        answered = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        ids = self.torch.tensor([[*start, *answered]])
        if adapter is None:
            with self.torch.no_grad(), self.model.disable_adapter():
                logits = self.model(input_ids=ids).logits[0]
        else:
            self.model.set_adapter(adapter)
            with self.torch.no_grad():
                logits = self.model(input_ids=ids).logits[0]
        scored = logits[len(start) - 1 : -1]
        chosen = scored[self.torch.arange(len(answered)), answered]
        return float((scored.max(dim=1).values - chosen).max())


def test_auto_answers_with_the_right_adapter(sdk):
    raw = ask(sdk, "auto", "every weekday at half past nine")
    assert text(raw) == "30 9 * * 1-5"
    assert raw.parse().model == "cron"
    assert raw.headers["x-roundhouse-adapter"] == "cron"
    assert raw.headers["x-roundhouse-route"] == "auto"


def test_auto_leaves_a_general_question_to_the_base_model(sdk):
    raw = ask(sdk, "auto", "What is the capital of France?")
    assert "Paris" in text(raw)
    assert raw.headers["x-roundhouse-adapter"] == "base"


def test_mixed_batches_match_the_reference_row_by_row(sdk, reference):
    """Base and adapter requests at once, again and again: each answer is its own model's."""
    work = [(a, p) for a, prompts in PROMPTS.items() for p in prompts] * 4
    with ThreadPoolExecutor(len(work)) as pool:
        answers = list(pool.map(lambda w: text(ask(sdk, w[0] or BASE, w[1])), work))
    for (adapter, prompt), answer in set(zip(work, answers, strict=True)):
        shortfall = reference.shortfall(adapter, prompt, answer)
        assert shortfall < LOGIT_TOLERANCE, (adapter, prompt, answer)


def test_the_reference_tells_a_wrong_adapter(sdk, reference):
    """The check above has power: the same answers held against another model fail it."""
    for right, wrong in (("cron", None), ("git", "cron"), (None, "git")):
        prompt = PROMPTS[right][0]
        answer = text(ask(sdk, right or BASE, prompt))
        assert reference.shortfall(wrong, prompt, answer) > 4 * LOGIT_TOLERANCE


def test_a_stream_says_the_same_and_ends_with_usage(sdk):
    whole = ask(sdk, "cron", "at noon on sundays").parse()
    chunks = list(
        sdk.chat.completions.create(
            model="cron",
            messages=[{"role": "user", "content": "at noon on sundays"}],
            temperature=0,
            max_tokens=24,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len([p for p in pieces if p]) > 1
    assert {c.model for c in chunks} == {"cron"}
    assert chunks[-1].usage == whole.usage


def test_completions_and_models(sdk):
    done = sdk.completions.create(model=BASE, prompt="The capital of France is", max_tokens=3)
    assert done.choices[0].text
    listed = [m.id for m in sdk.models.list()]
    assert listed[:2] == ["auto", BASE]
    assert set(LOADED) <= set(listed)


def test_responses_are_answered_as_chats_are(sdk):
    prompt = "every weekday at half past nine"
    asked = {"model": "auto", "input": prompt, "temperature": 0, "max_output_tokens": 24}
    raw = sdk.responses.with_raw_response.create(**asked)
    assert raw.parse().output_text == "30 9 * * 1-5"
    assert raw.parse().model == raw.headers["x-roundhouse-adapter"] == "cron"
    assert raw.parse().id == f"resp_{raw.headers['x-request-id']}"
    with sdk.responses.create(**asked, stream=True) as events:
        *_, last = said = list(events)
    assert "".join(e.delta for e in said if e.type == "response.output_text.delta") == (
        "30 9 * * 1-5"
    )
    assert last.response.usage.output_tokens == raw.parse().usage.output_tokens
    with pytest.raises(openai.BadRequestError, match="not kept here"):
        sdk.responses.create(**asked, previous_response_id=raw.parse().id)
    with pytest.raises(openai.BadRequestError, match="no base model here can"):
        sdk.embeddings.create(model=BASE, input="x")


def test_anthropics_clients_are_answered(cluster, http):
    asked = {"model": "auto", "messages": [{"role": "user", "content": "list all my branches"}]}
    with anthropic.Anthropic(base_url=cluster.url, api_key="none", max_retries=0) as sdk:
        greedy = {"max_tokens": 24, "extra_body": {"temperature": 0}}
        whole = sdk.messages.create(**asked, **greedy)
        assert whole.model == "git"
        with sdk.messages.stream(**asked, **greedy) as stream:
            streamed = stream.get_final_message()
        assert streamed.content[0].text == whole.content[0].text
        assert streamed.usage.output_tokens == whole.usage.output_tokens
        count = sdk.messages.count_tokens(**asked).input_tokens
        with pytest.raises(anthropic.BadRequestError) as refused:
            sdk.messages.create(**asked, max_tokens=5000)
    assert refused.value.body["error"]["type"] == "invalid_request_error"
    assert count == whole.usage.input_tokens
    told = http.post("/tokenize", json=asked).json()
    assert told["count"] == count
    text = http.post("/detokenize", json={"model": BASE, "tokens": told["tokens"]}).json()
    assert "list all my branches" in text["prompt"]


def test_more_adapters_than_slots_all_answer_and_residency_is_the_engines_own(sdk, http):
    expected = {}
    for name in LOADED:
        line = (ADAPTERS / name / "eval.jsonl").read_text().splitlines()[0]
        expected[name] = json.loads(line)["prompt"]
    work = list(expected.items()) * 4
    with ThreadPoolExecutor(8) as pool:
        raws = list(pool.map(lambda w: ask(sdk, *w), work))
    assert [r.headers["x-roundhouse-adapter"] for r in raws] == [name for name, _ in work]
    for replica in replicas(http):
        held = replica["residency"]
        assert len(held["slots"]) == 3
        assert set(held["slots"]) | set(held["host"]) >= {f"{n}@1" for n in LOADED}


def test_an_adapter_added_while_it_runs_is_found_by_auto(cluster, sdk):
    prompt = "show me the pods in the staging namespace"
    cluster.command("adapters", "add", str(ADAPTERS / LATER))
    raw = ask(sdk, "auto", prompt)
    assert raw.headers["x-roundhouse-adapter"] == LATER
    cluster.command("adapters", "rm", LATER)
    assert ask(sdk, "auto", prompt).headers["x-roundhouse-adapter"] != LATER


def test_errors_are_openais(sdk):
    with pytest.raises(openai.NotFoundError, match="Did you mean 'cron'"):
        ask(sdk, "corn", "x")
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        ask(sdk, "cron", "word " * 3000)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        sdk.chat.completions.create(
            model=BASE, messages=[{"role": "user", "content": "x"}], temperature=-3
        )


@pytest.mark.hostile
@pytest.mark.parametrize(
    "wrong",
    [
        {"stream": True, "stream_options": [{"include_usage": True}]},
        {"stream": "perhaps"},
        {"max_tokens": "many"},
        {"max_tokens": -1},
        {"temperature": {"a": 1}},
        {"logit_bias": [1]},
        {"response_format": [1]},
        {"tools": "x"},
        {"stop": {"a": 1}},
        {"user": [1]},
        {"messages": [{"role": 7, "content": "x"}]},
    ],
    ids=str,
)
def test_wrong_types_are_refused_in_openais_shape(http, wrong):
    turn = {"role": "user", "content": "hello"}
    body = {"model": BASE, "messages": [turn], "max_tokens": 2} | wrong
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code in (200, 400, 422), answer.text
    if answer.is_error:
        assert answer.headers["content-type"] == "application/json"
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def schema(value) -> dict:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}
    return {"response_format": wanted}


SCHEMA = "response_format.json_schema.schema"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        (schema({"type": "nope"}), SCHEMA),
        (schema({"type": "array", "minItems": 10**9}), SCHEMA),
        ({"structured_outputs": {"grammar": "x"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        ({"structured_outputs": 5}, "structured_outputs"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, "messages"),
        ({"temperature": "x"}, "temperature"),
        ({"chat_template": "{{"}, "chat_template"),
        ({"chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_the_engine_cannot_serve_is_its_clients_to_mend(http, wrong, param, stream):
    turn = {"role": "user", "content": "hello"}
    body = {"model": BASE, "messages": [turn], "max_tokens": 2, "stream": stream} | wrong
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["code"] == ("context_length_exceeded" if param == "messages" else None)


@pytest.mark.parametrize(
    "wrong",
    [
        # Which of vLLM's libraries its core has is whatever the first request wanted.
        schema({"type": "array", "items": [{"type": "string"}]}),
        schema({"type": "string", "minLength": -1}),
        {"structured_outputs": {"grammar": "root ::= "}},
        {"structured_outputs": {"choice": ["a"]}, "min_tokens": 4, "max_tokens": 6},
        {"structured_outputs": {"choice": ["a"]}, "bad_words": ["a"]},
        {"structured_outputs": {"regex": r"[^\s\S]"}},
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_grammar_that_only_some_libraries_know_is_no_fault_of_the_engine(http, wrong):
    body = {"model": BASE, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    answer = http.post("/v1/chat/completions", json=body | wrong)
    assert answer.status_code in (200, 400), answer.text
    if answer.is_error:
        assert answer.json()["error"]["param"].startswith(("response_format", "structured_outputs"))


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_place_in_the_engine(http, stream):
    """`ongoing` is the engine's own count of unfinished requests."""
    body = {
        "model": BASE,
        "messages": [{"role": "user", "content": "Write a very long story."}],
        "max_tokens": 900,
        "ignore_eos": True,
        "stream": stream,
    }
    wait_until(lambda: ongoing(http) == 0)
    # A stream yields at once; it is left as soon as the replica has reported the request.
    with (
        pytest.raises(httpx.ReadTimeout),
        http.stream("POST", "/v1/chat/completions", json=body, timeout=5) as answer,
    ):
        for _ in answer.iter_lines():
            if ongoing(http) == 1:
                raise httpx.ReadTimeout("hung up")
    wait_until(lambda: ongoing(http) == 0, timeout_s=8)


def ongoing(http: httpx.Client) -> int:
    return sum(r["ongoing"] for r in replicas(http))


PAGE = Path(__file__).parent.parent / "docs" / "adapters.md"


def test_the_page_on_adapters_shows_what_its_commands_print(cluster, tmp_path):
    """In order, on this cluster: what is shown is true, whatever else is registered."""
    shutil.copytree(ADAPTERS.parent, tmp_path / "examples")
    environment = {
        "ROUNDHOUSE_URL": cluster.url,
        "ROUNDHOUSE_CONFIG": str(cluster.config),
        "PATH": f"{COMMAND.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(PAGE.parent.parent),
        "PWD": str(tmp_path),
    }
    # What other tests have left is not the page's.
    console.run("roundhouse store gc --delete", **environment)
    for step in console.page_steps(PAGE.read_text()):
        printed = console.run(f"cd {tmp_path}; {step.command}", **environment)
        assert console.settled(printed) == console.settled(step.output), step.command


def test_vllms_own_span_is_within_the_replicas(http, collector):
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    body = {"model": LOADED[0], "prompt": "hello", "max_tokens": 4, "stream": True}
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    assert http.post("/v1/completions", json=body, headers=headers).status_code == 200
    spans = collector[1].of_trace(trace, "replica", "llm_request", "decode", "load")
    assert spans["llm_request"].parent == spans["replica"].id
    assert spans["llm_request"].attributes["gen_ai.usage.completion_tokens"] >= 1
    (card,) = (m for m in http.get("/v1/models").json()["data"] if m["id"] == BASE)
    assert card["max_model_len"] == 1024
