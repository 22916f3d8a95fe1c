"""What the Kubernetes controllers of others send, and what they read of the answers.

LoRA syncer sidecar: gateway-api-inference-extension, tools/dynamic-lora-sidecar. ModelAdapter:
aibrix, pkg/controller/modeladapter. LoraAdapter: vLLM production-stack, operator.
"""

import time
from importlib.metadata import version

import pytest

from cluster.members import Replica, Router
from tests.conftest import ECHO_FACTS
from tests.test_http import add, error

pytestmark = pytest.mark.redis

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


@pytest.fixture
async def rh(make_world):
    async with make_world() as it:
        yield it


async def models(rh) -> dict[str, dict]:
    listed = (await rh.client.get("/v1/models")).json()
    assert listed["object"] == "list"
    return {card["id"]: card for card in listed["data"]}


@pytest.mark.parametrize("base", ["", "meta-llama/Llama-3.1-8B-Instruct", "echo", "none"])
async def test_the_lora_syncer_loads_and_unloads(rh, make_adapter, base):
    """It names a base model as its ConfigMap does, or "" where that has none."""
    folder = make_adapter("cron")
    (folder / "card.json").unlink()
    body = {"lora_name": "cron", "lora_path": str(folder), "base_model_name": base}
    assert (await rh.client.post(LOAD, json=body)).status_code == 200
    assert (await models(rh))["cron"]["parent"] == "echo"
    assert (await rh.client.post(UNLOAD, json={"lora_name": "cron"})).status_code == 200
    assert "cron" not in await models(rh)


async def test_with_several_base_models_the_one_that_is_named_gets_it(make_world, make_adapter):
    other = {"id": "second", "path": "org/Second", "engine": "echo"}
    async with make_world(others=[other]) as rh:
        folder = make_adapter("cron")
        (folder / "card.json").unlink()
        body = {"lora_name": "cron", "lora_path": str(folder)}
        refused = await rh.client.post(LOAD, json=body | {"base_model_name": "third"})
        assert error(refused, 404)["param"] == "base_model_name"
        for i, name in enumerate(("second", "org/Second")):
            sent = body | {"lora_name": f"cron{i}", "base_model_name": name}
            assert (await rh.client.post(LOAD, json=sent)).status_code == 200
            assert (await models(rh))[f"cron{i}"]["parent"] == "second"


async def test_fields_that_vllm_ignores_are_ignored(rh, make_adapter):
    more = {"additional_config": {"api-key": "k"}, "cleanup_local": True, "pinned": 1}
    body = {"lora_name": "cron", "lora_path": str(make_adapter("cron"))}
    assert (await rh.client.post(LOAD, json=body | more)).status_code == 200
    gone = await rh.client.post(UNLOAD, json={"lora_name": "cron", "lora_int_id": 7} | more)
    assert gone.status_code == 200


async def test_model_cards_are_vllms(rh, make_adapter, store):
    began = time.time()
    facts = ECHO_FACTS.model_copy(update={"max_model_len": 2048, "name": "org/Echo"})
    await store.registry.put_base_model(facts)
    first = (await models(rh))["echo"]
    await add(rh, make_adapter("cron"))
    cards = await models(rh)
    base, adapter, auto = cards["echo"], cards["cron"], cards["auto"]
    assert (base["root"], base["parent"], base["max_model_len"]) == ("org/Echo", None, 2048)
    assert adapter["root"]
    assert (adapter["parent"], adapter["max_model_len"]) == ("echo", 2048)
    assert began - 60 < base["created"] == auto["created"] <= adapter["created"] <= time.time()
    assert first["created"] == base["created"], "since when it is known stays"
    assert (await rh.client.get("/v1/models/cron")).json() == adapter
    assert (await rh.client.get("/v1/models/echo")).json() == base


async def test_health_is_told_as_vllm_tells_it(rh, store):
    """It is the whole cluster's: the syncer waits for it before it loads anything."""
    ways = [("GET", "/health"), ("GET", "/ping"), ("POST", "/ping"), ("HEAD", "/health")]
    for method, path in ways:
        assert (await rh.client.request(method, path)).status_code == 503
    await store.members.renew(Replica(id="r", model="echo"))
    await store.members.renew(Router(id="q"))
    for method, path in ways:
        assert (await rh.client.request(method, path)).status_code == 200
    assert (await rh.client.get("/version")).json() == {"version": version("roundhouse")}


READ = ["/", "/healthz", "/version", "/v1/models", "/v1/models/echo", "/v1/adapters", "/v1/cluster"]
READ += ["/v1/adapters/org/cron", "/v1/adapters/org/cron/versions", "/v1/dashboard", "/metrics"]
READ += ["/v1/decisions", "/v1/rules", "/v1/history"]


async def test_head_is_answered_where_get_is(rh, make_adapter):
    await add(rh, make_adapter("cron"), name="org/cron")
    for path in READ:
        got = await rh.client.get(path)
        head = await rh.client.head(path)
        assert (got.status_code, head.status_code, head.content) == (200, 200, b""), path
        assert head.headers["content-type"] == got.headers["content-type"]
    missing = await rh.client.head("/v1/models/nothing")
    assert (missing.status_code, missing.content) == (404, b"")
    assert (await rh.client.head("/v1/chat/completions")).status_code == 405
