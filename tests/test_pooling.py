"""A real base model that makes vectors, beside one that chats: its calls, and its adapters."""

import json

import pytest

from benchmarks.adapters import write_adapter
from tests.engine_bench import ENVIRONMENT
from tests.test_http import add, error
from tests.tiny_model import write_tiny_model

pytestmark = [pytest.mark.vllm, pytest.mark.redis, pytest.mark.timeout(400)]

TEXTS = ["w3 w4 w5", "w3 w4 w6", "w400 w17"]


@pytest.fixture
async def rh(make_world, tmp_path, monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    shapes = write_tiny_model(tmp_path / "tiny")
    model = {
        "id": "tiny",
        "path": str(tmp_path / "tiny"),
        "lora": {"slots": 2, "host_entries": 4, "max_rank": 8},
        "engine_args": {
            "runner": "pooling",
            "dtype": "float32",
            "max_model_len": 64,
            "max_num_seqs": 4,
            "enforce_eager": True,
        },
    }
    write_adapter(tmp_path / "near", shapes, 8, ("q_proj", "o_proj"), seed=1, spread=0.3)
    card = {"name": "near", "base_model": "tiny", "description": "vectors of another kind"}
    (tmp_path / "near" / "card.json").write_text(json.dumps(card))
    async with make_world(others=[model]) as it:
        yield it


async def test_a_model_that_makes_vectors_takes_its_calls_and_adapters(rh, tmp_path):
    async def post(path: str, model: str, status: int = 200, **fields):
        answer = await rh.client.post(path, json={"model": model, **fields})
        assert answer.status_code == status, answer.text
        return answer

    async def vectors(model: str, **fields) -> list[list[float]]:
        answer = await post("/v1/embeddings", model, input=TEXTS, **fields)
        assert answer.json()["model"] == answer.headers["x-roundhouse-model"] == "tiny"
        return [row["embedding"] for row in answer.json()["data"]]

    def likeness(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))  # they have length 1

    plain = await vectors("auto")
    assert await vectors("tiny") == plain
    assert [len(vector) for vector in plain] == [128] * 3
    assert likeness(plain[0], plain[1]) > likeness(plain[0], plain[2])

    scored = (await post("/v1/score", "auto", queries=TEXTS[0], documents=TEXTS[1:])).json()
    expected = [likeness(plain[0], vector) for vector in plain[1:]]
    assert [row["score"] for row in scored["data"]] == pytest.approx(expected, abs=1e-4)
    ranked = await post("/rerank", "tiny", query=TEXTS[0], documents=[TEXTS[2], TEXTS[1]])
    assert [row["index"] for row in ranked.json()["results"]] == [1, 0]
    pooled = (await post("/pooling", "tiny", input=TEXTS[0])).json()["data"][0]["data"]
    assert pooled == pytest.approx(plain[0], abs=1e-5)
    assert (await post("/tokenize", "tiny", prompt=TEXTS[0])).json()["tokens"] == [3, 4, 5]
    assert (await post("/detokenize", "tiny", tokens=[3, 4])).json()["prompt"] == "w3 w4"

    added = await add(rh, tmp_path / "near")
    assert added.status_code == 201, added.text
    answer = await post("/v1/embeddings", "near", input=TEXTS)
    assert answer.headers["x-roundhouse-adapter"] == answer.json()["model"] == "near"
    adapted = [row["embedding"] for row in answer.json()["data"]]
    assert likeness(adapted[0], plain[0]) < 0.99
    assert await vectors("auto") == plain, "of one space, whatever adapters there are"

    for path, model, able in (
        ("/v1/chat/completions", "near", "echo"),
        ("/classify", "tiny", "no base model here"),
        ("/v1/embeddings", "echo", "tiny"),
    ):
        body = {"messages": [{"role": "user", "content": "w3"}], "input": "w3"}
        assert f"{able} can" in error(await post(path, model, 400, **body), 400)["message"]
    too_long = await post("/v1/embeddings", "tiny", 400, input="w3 " * 100)
    assert too_long.json()["error"]["message"]
