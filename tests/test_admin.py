"""Changing adapters over HTTP: cards, aliases, rollouts, uploads, and vLLM's own endpoints."""

import asyncio
import io
import json
import os
import shutil
import tarfile
import time

import pytest

from cluster.members import Replica, Residency, Router
from tests.conftest import until
from tests.test_http import ADMIN_KEY, CLIENT_HASH, CLIENT_KEY, add, ask, error

pytestmark = pytest.mark.redis

QUESTIONS = [{"prompt": f"question {i}", "expected": f"answer {i}"} for i in range(20)]


def answers(right: range) -> dict:
    """A config by which the echo engine knows some answers."""
    return {"echo_answers": {f"question {i}": f"answer {i}" for i in right}}


@pytest.fixture
async def rh(make_world):
    async with make_world() as it:
        yield it


async def call(rh, method: str, path: str, body=None, expect: int = 200, **params):
    answer = await rh.client.request(method, f"/v1/adapters/{path}", json=body, params=params)
    assert answer.status_code == expect, answer.text
    return answer.json()


async def put(rh, folder) -> None:
    answer = await rh.client.put("/v1/adapters/cron", json={"source": str(folder)})
    assert answer.status_code == 201, answer.text


async def two_versions(rh, make_adapter, *, before: range, after: range) -> None:
    """cron@1 is stable, cron@2 waits; each knows its share of the evaluation's answers."""
    first = make_adapter("cron", config=answers(before), evaluation=QUESTIONS)
    assert (await add(rh, first)).status_code == 201
    second = make_adapter("cron", seed=1, config=answers(after), evaluation=QUESTIONS)
    body = {"source": str(second), "promote": False}
    shown = await call(rh, "POST", "cron/versions", body, expect=201)
    assert shown["aliases"] == {"latest": 2, "stable": 1}


async def version_for(rh, user: str) -> str:
    return (await ask(rh, "cron", user=user)).headers["x-roundhouse-version"]


# -- cards, aliases, versions -------------------------------------------------------------------


async def test_a_card_is_changed_field_by_field(rh, make_adapter):
    await add(rh, make_adapter("cron", description="old", tags=["t"]))
    changes = {"description": "new", "pinned": True, "replicas": 2, "metadata": {"a": [1]}}
    shown = await call(rh, "PATCH", "cron", changes)
    assert {k: shown[k] for k in changes} == changes
    assert shown["tags"] == ["t"]


async def test_a_stale_writer_gets_409_and_changes_nothing(rh, make_adapter):
    revision = (await add(rh, make_adapter("cron"))).json()["revision"]
    mine = {"description": "mine", "revision": revision}
    await call(rh, "PATCH", "cron", mine)
    stale = await rh.client.patch("/v1/adapters/cron", json={**mine, "description": "late"})
    assert error(stale, 409)["param"] == "revision"
    assert (await call(rh, "GET", "cron"))["description"] == "mine"
    stale = await rh.client.delete("/v1/adapters/cron", params={"revision": revision})
    error(stale, 409)
    now = {"revision": (await call(rh, "GET", "cron"))["revision"]}
    assert (await rh.client.delete("/v1/adapters/cron", params=now)).status_code == 200
    # A revision of the old adapter does not fit the next one of the name.
    await add(rh, make_adapter("cron"))
    error(await rh.client.patch("/v1/adapters/cron", json=mine), 409)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"nme": "x"}, "nme"),
        ({"description": 3}, "description"),
        ({"replicas": 0}, "replicas"),
        ({"replicas": "many"}, "replicas"),
        ({"replicas": True}, "replicas"),
        ({"pinned": 0}, "pinned"),
        ({"visibility": "private"}, "owner"),
        ({"owner": "Not A Name"}, "owner"),
        ({"revision": -3}, "revision"),
        ({"description": "\ud800"}, "description"),
        ({"tags": [""]}, "tags[0]"),
        ({"evaluation": [{"prompt": "x"}]}, "evaluation[0].expected"),
        ({"name": "other"}, "name"),
        ({"revision": "x"}, "revision"),
    ],
)
async def test_a_wrong_change_is_named(rh, make_adapter, changes, param):
    await add(rh, make_adapter("cron"))
    before = await call(rh, "GET", "cron")
    refused = await rh.client.patch(
        "/v1/adapters/cron",
        content=json.dumps(changes),
        headers={"content-type": "application/json"},
    )
    found = error(refused, 400)["param"]
    assert found == param
    assert await call(rh, "GET", "cron") == before


async def test_a_value_that_may_be_this_or_that_is_refused_in_words(rh, make_adapter):
    await add(rh, make_adapter("cron"))
    refused = await rh.client.patch("/v1/adapters/cron", json={"replicas": 0})
    message = error(refused, 400)["message"]
    assert message.startswith("replicas: Input should be 'auto' or ")
    assert "greater than or equal to 1" in message
    refused = await add(rh, make_adapter("x"), owner="Über")
    assert "lower-case letters" in error(refused, 400)["message"]
    half = {"source": str(make_adapter("x")), "base_fingerprint": "\ud800"}
    refused = await rh.client.post(
        "/v1/adapters", content=json.dumps(half), headers={"content-type": "application/json"}
    )
    assert "half a character" in error(refused, 400)["message"]


async def test_numbers_that_json_has_not_are_refused(rh, make_adapter):
    await add(rh, make_adapter("cron"))
    refused = await rh.client.patch(
        "/v1/adapters/cron",
        content=b'{"metadata": {"x": [NaN]}}',
        headers={"content-type": "application/json"},
    )
    assert "finite" in error(refused, 400)["message"]


async def test_an_alias_of_ones_own_names_a_version(rh, make_adapter):
    for seed in (0, 1):
        await put(rh, make_adapter("cron", seed=seed))
    await call(rh, "PUT", "cron/aliases/blue", {"version": 1})
    assert (await ask(rh, "cron@blue")).headers["x-roundhouse-version"] == "1"
    error(await rh.client.put("/v1/adapters/cron/aliases/9", json={"version": 1}), 400)
    error(await rh.client.put("/v1/adapters/cron/aliases/stable", json={"version": 1}), 400)
    missing = await rh.client.put("/v1/adapters/cron/aliases/red", json={"version": 7})
    assert "it has 1, 2" in error(missing, 404)["message"]
    held = await rh.client.delete("/v1/adapters/cron/versions/1")
    assert "alias 'blue'" in error(held, 409)["message"]
    await call(rh, "DELETE", "cron/aliases/blue")
    error(await ask(rh, "cron@blue"), 404)
    shown = await call(rh, "DELETE", "cron/versions/1")
    assert [v["number"] for v in shown["versions"]] == [2]
    error(await ask(rh, "cron@1"), 404)


# -- listing ------------------------------------------------------------------------------------


async def test_a_listing_is_narrowed_and_paged(rh, make_adapter):
    for i in range(5):
        fields = {"tags": ["even"] if i % 2 == 0 else [], "description": f"Number {i}"}
        await add(rh, make_adapter(f"a{i}", seed=i, owner="me" if i < 2 else "", **fields))

    async def names(**params):
        page = (await rh.client.get("/v1/adapters", params=params)).json()
        return [a["name"] for a in page["data"]], page["next"]

    assert await names(tag="even") == (["a0", "a2", "a4"], None)
    assert await names(owner="me") == (["a0", "a1"], None)
    assert await names(search="number 3") == (["a3"], None)
    assert await names(search="nothing") == ([], None)
    assert await names(base_model="other") == ([], None)
    assert await names(tag="even", limit=2) == (["a0", "a2"], "a2")
    assert await names(tag="even", limit=2, cursor="a2") == (["a4"], None)
    listed = (await rh.client.get("/v1/adapters")).json()["data"][0]
    assert "examples" not in listed
    assert listed["prompts"] == {"examples": 1, "evaluation": 0}


# -- whose it is --------------------------------------------------------------------------------


async def test_a_private_adapter_is_there_for_its_owner_only(make_world, store, make_adapter):
    keys = [
        {"name": "a", "sha256": CLIENT_HASH, "owner": "team-a"},
        {"name": "ops", "sha256": _hash(ADMIN_KEY), "scope": "admin"},
        {"name": "b", "sha256": _hash("rh-b"), "owner": "team-b"},
    ]
    auth = {"enabled": True, "keys": keys}
    async with make_world(auth=auth) as it:
        ops, a, b = ({"authorization": f"Bearer {k}"} for k in (ADMIN_KEY, CLIENT_KEY, "rh-b"))
        examples = ["every weekday at half past nine", "each hour", "sundays at midnight"]
        folder = make_adapter("cron", examples=examples, owner="team-a", visibility="private")
        it.client.headers.update(ops)
        assert (await add(it, folder)).status_code == 201
        held = Residency(slots=("cron@1",), slot_capacity=1)
        failed = {"cron@1": "a tale of cron"}
        replica = Replica(id="r", model="echo", residency=held, problems=failed)
        for who, status, chosen in ((a, 200, "cron"), (b, 404, None), (ops, 200, "cron")):
            it.client.headers.update(who)
            assert (await ask(it, "cron")).status_code == status
            assert (await it.client.get("/v1/adapters/cron")).status_code == status
            ids = [m["id"] for m in (await it.client.get("/v1/models")).json()["data"]]
            assert ("cron" in ids) == (status == 200)
            listed = (await it.client.get("/v1/adapters")).json()["data"]
            assert len(listed) == (status == 200)
            await store.members.renew(replica)  # its lease is short
            cluster = await it.client.get("/v1/cluster")
            assert ("cron@1" in cluster.text) == (status == 200)
            assert cluster.json()["adapters"] == (status == 200)
            route = await it.client.post("/v1/route", json={"input": "every friday at ten"})
            assert route.json()["decisions"][0]["adapter"] == chosen
        it.client.headers.update(b)
        spoofed = {"input": "every friday at ten", "constraints": {"viewer": {"sees_all": True}}}
        error(await it.client.post("/v1/route", json=spoofed), 400)
        assert "'cron'" not in error(await ask(it, "crom"), 404)["message"]


def _hash(key: str) -> str:
    from deployments.ingress.auth import hash_key

    return hash_key(key)


# -- rollouts -----------------------------------------------------------------------------------


async def test_a_better_version_takes_over_at_once(rh, make_adapter):
    await two_versions(rh, make_adapter, before=range(18), after=range(20))
    shown = await call(rh, "POST", "cron/rollout", {}, wait=True)
    assert (shown["aliases"]["stable"], shown["rollout"]) == (2, None)
    ended = shown["last_rollout"]
    assert ended["outcome"] == "done"
    assert ended["evaluation"] | {"at": 0} == {
        "prompts": 20,
        "accuracy_before": 0.9,
        "accuracy_after": 1.0,
        "negative_flips": 0.0,
        "replica": "local",
        "at": 0,
    }
    assert await version_for(rh, "anyone") == "2"


@pytest.mark.parametrize(
    ("after", "why"),
    [(range(10), "accuracy fell from 1.000 to 0.500"), (range(18), "accuracy fell")],
)
async def test_a_worse_version_never_gets_a_request(rh, make_adapter, after, why):
    await two_versions(rh, make_adapter, before=range(20), after=after)
    rolling = call(rh, "POST", "cron/rollout", {"percent": [10, 100]}, wait=True)
    rolling = asyncio.create_task(rolling)
    while not rolling.done():
        assert await version_for(rh, f"user-{time.monotonic()}") == "1"
    shown = rolling.result()
    assert (shown["aliases"]["stable"], shown["rollout"]) == (1, None)
    assert shown["last_rollout"]["outcome"] == "rolled_back"
    assert why in shown["last_rollout"]["reason"]
    assert {await version_for(rh, str(i)) for i in range(20)} == {"1"}


async def test_a_version_that_is_right_on_other_prompts_is_stopped_by_its_flips(rh, make_adapter):
    await two_versions(rh, make_adapter, before=range(10), after=range(5, 15))
    shown = await call(rh, "POST", "cron/rollout", {}, wait=True)
    assert "0.250 of the prompts were right before" in shown["last_rollout"]["reason"]
    lax = {"gate": {"max_negative_flips": 0.3}}
    shown = await call(rh, "POST", "cron/rollout", lax, wait=True)
    assert shown["aliases"]["stable"] == 2


async def test_without_a_gate_it_is_done_unasked(rh, make_adapter):
    await two_versions(rh, make_adapter, before=range(20), after=range(0))
    shown = await call(rh, "POST", "cron/rollout", {"gate": False}, wait=True)
    assert shown["aliases"]["stable"] == 2
    assert shown["last_rollout"]["evaluation"] is None


async def test_a_canary_is_sticky_and_grows_by_itself(rh, make_adapter):
    await two_versions(rh, make_adapter, before=range(20), after=range(20))
    body = {"percent": [30, 100], "step_s": 3.0}
    await call(rh, "POST", "cron/rollout", body)
    users = [f"user-{i}" for i in range(60)]

    async def is_at_30() -> bool:
        return ((await call(rh, "GET", "cron"))["rollout"] or {}).get("step") == 0

    await until(is_at_30)
    first = [await version_for(rh, u) for u in users]
    assert first == [await version_for(rh, u) for u in users]
    assert 5 < first.count("2") < 35

    async def is_done() -> bool:
        return (await call(rh, "GET", "cron"))["rollout"] is None

    await until(is_done, timeout_s=10)
    assert {await version_for(rh, u) for u in users} == {"2"}


async def test_a_canary_that_goes_bad_is_rolled_back_during_its_run(rh, make_adapter):
    """The evaluation is run again at each step: here its prompts change meanwhile."""
    await two_versions(rh, make_adapter, before=range(20), after=range(10))
    await call(rh, "PATCH", "cron", {"evaluation": QUESTIONS[:10]})
    shown = await call(rh, "POST", "cron/rollout", {"percent": 20, "step_s": 1.0}, wait=True)
    assert shown["rollout"]["step"] == 0
    await call(rh, "PATCH", "cron", {"evaluation": QUESTIONS})

    async def is_back() -> bool:
        return (await call(rh, "GET", "cron"))["rollout"] is None

    await until(is_back, timeout_s=10)
    ended = (await call(rh, "GET", "cron"))["last_rollout"]
    assert ended["outcome"] == "rolled_back"
    assert ended["evaluation"]["accuracy_after"] == 0.5
    assert {await version_for(rh, str(i)) for i in range(20)} == {"1"}


def lose_files(tmp_path, digest: str) -> None:
    """A version's blob, and what the node has made of it."""
    for folder in (
        tmp_path / "data" / "blobs" / digest[:2],
        *(tmp_path / "node").glob(digest + "*"),
    ):
        shutil.rmtree(folder)


async def test_a_version_that_no_replica_can_load_is_rolled_back(rh, make_adapter, tmp_path):
    await two_versions(rh, make_adapter, before=range(20), after=range(20))
    lose_files(tmp_path, (await call(rh, "GET", "cron"))["versions"][1]["digest"])
    shown = await call(rh, "POST", "cron/rollout", {}, wait=True)
    assert shown["last_rollout"]["outcome"] == "rolled_back"
    assert "cron@2" in shown["last_rollout"]["reason"]


async def test_what_no_replica_can_load_is_refused_and_leaves_nothing(rh, make_adapter, tmp_path):
    await add(rh, make_adapter("cron"))
    before = await call(rh, "GET", "cron")
    blobs = sorted((tmp_path / "data" / "blobs").rglob("*.*"))
    torn = make_adapter("cron", seed=1, config={"echo_refuses": "its wheels are square"})
    for name, ways in {"cron": {"replace": True}, "new": {}}.items():
        refused = await rh.client.post(
            "/v1/adapters", json={"source": str(torn), "name": name}, params=ways
        )
        message = error(refused, 400)["message"]
        assert "its wheels are square" in message
        assert "trial" not in message
    assert await call(rh, "GET", "cron") == before
    assert sorted((tmp_path / "data" / "blobs").rglob("*.*")) == blobs
    assert (await rh.client.get("/v1/adapters/new")).status_code == 404
    assert (await ask(rh, "cron")).headers["x-roundhouse-version"] == "1"
    # Nothing of it stays on the replica.
    await until(lambda: rh.pool.cache.residency.host + rh.pool.cache.residency.slots == ("cron@1",))
    assert not rh.pool.cache.problems
    second = {"source": str(make_adapter("cron", seed=2))}
    added = await call(rh, "POST", "cron/versions", second, expect=201)
    assert added["aliases"]["stable"] == 2, "a refused one has no number"


async def test_a_gate_waits_for_loads_and_sees_one_that_fails_later(rh, store, make_adapter):
    await two_versions(rh, make_adapter, before=range(20), after=range(20))
    position, _ = await store.registry.position()
    replica = Replica(id="r", model="echo", position=position, loading=("cron@2",))

    async def report(member: Replica) -> None:
        position, _ = await store.registry.position()
        await store.members.renew(member.model_copy(update={"position": position}))

    await report(replica)
    rolling = asyncio.create_task(call(rh, "POST", "cron/rollout", {"gate": False}))
    for _ in range(5):
        await asyncio.sleep(0.1)
        await report(replica)
    await rolling
    assert (await call(rh, "GET", "cron"))["rollout"] is not None, "it is on its way in"
    torn = {"loading": (), "problems": {"cron@2": "its files are torn"}}
    await report(replica.model_copy(update=torn))

    async def has_ended() -> bool:
        return (await call(rh, "GET", "cron"))["rollout"] is None

    await until(has_ended)
    shown = await call(rh, "GET", "cron")
    assert shown["aliases"]["stable"] == 1
    assert shown["last_rollout"]["outcome"] == "rolled_back"
    assert "its files are torn" in shown["last_rollout"]["reason"]


async def test_another_driver_goes_on_when_one_dies(rh, store, make_adapter):
    """Its lease runs out, and all there is to know is in the record."""
    await two_versions(rh, make_adapter, before=range(20), after=range(20))
    assert await store.registry.drive("cron", "somebody-who-died", for_s=1.0)
    began = time.monotonic()
    shown = await call(rh, "POST", "cron/rollout", {}, wait=True)
    assert shown["aliases"]["stable"] == 2
    assert 0.5 < time.monotonic() - began < 10


async def test_a_stable_version_that_cannot_be_loaded_does_not_hold_its_cure_up(
    rh, make_adapter, tmp_path
):
    await two_versions(rh, make_adapter, before=range(20), after=range(20))
    lose_files(tmp_path, (await call(rh, "GET", "cron"))["versions"][0]["digest"])
    shown = await call(rh, "POST", "cron/rollout", {}, wait=True)
    assert shown["last_rollout"]["outcome"] == "done"
    assert shown["last_rollout"]["evaluation"]["accuracy_before"] == 0


async def test_a_rollback_is_one_call(rh, make_adapter):
    await two_versions(rh, make_adapter, before=range(20), after=range(20))
    await call(rh, "POST", "cron/rollout", {}, wait=True)
    elsewhere = {"origin": "http://elsewhere.example"}
    error(await rh.client.post("/v1/adapters/cron/rollback", headers=elsewhere), 403)
    back = await rh.client.post("/v1/adapters/cron/rollback")
    assert back.json()["aliases"]["stable"] == 1
    assert await version_for(rh, "x") == "1"
    error(await rh.client.post("/v1/adapters/cron/rollback"), 409)
    shown = await call(rh, "POST", "cron/rollback", {"version": 2})
    assert shown["aliases"]["stable"] == 2


async def test_a_registration_does_not_cut_into_a_rollout(rh, make_adapter):
    await two_versions(rh, make_adapter, before=range(20), after=range(20))
    await call(rh, "POST", "cron/rollout", {"percent": 10}, wait=True)
    third = {"source": str(make_adapter("cron", seed=2))}
    refused = await rh.client.put("/v1/adapters/cron", json=third)
    assert "rollout of 'cron' is under way" in error(refused, 409)["message"]
    await call(rh, "PUT", "cron", third | {"promote": False}, expect=201)
    error(await rh.client.post("/v1/adapters/cron/rollout", json={"version": 3}), 409)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"percent": 0}, "percent"),
        ({"percent": [50, 10]}, "percent"),
        ({"percent": "x"}, "percent"),
        ({"percent": True}, "percent"),
        ({"step_s": "9"}, "step_s"),
        ({"step_s": 0}, "step_s"),
        ({"gate": {"max_accuracy_drop": 2}}, "gate"),
        ({"version": 9}, "version"),
        ({"vresion": 1}, "vresion"),
    ],
)
async def test_a_wrong_rollout_is_named(rh, make_adapter, body, param):
    await add(rh, make_adapter("cron"))
    answer = await rh.client.post("/v1/adapters/cron/rollout", json=body)
    assert answer.json()["error"]["param"].startswith(param)
    assert answer.status_code in (400, 404)


# -- progress -----------------------------------------------------------------------------------


async def events_of(rh, method: str, path: str, body) -> list[dict]:
    headers = {"accept": "text/event-stream"}
    answer = await rh.client.request(
        method, path, json=body, params={"wait": True}, headers=headers
    )
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line]


async def test_progress_is_streamed_to_those_who_ask(rh, make_adapter):
    body = {"source": str(make_adapter("cron"))}
    events = await events_of(rh, "POST", "/v1/adapters", body)
    kinds = [e["event"] for e in events]
    assert kinds[0].startswith("fetching adapter_config.json")
    assert {"checking", "stored"} <= set(kinds)
    assert events[-1]["event"] == "result"
    assert (events[-1]["status"], events[-1]["adapter"]["name"]) == (201, "cron")
    refused = await events_of(rh, "POST", "/v1/adapters", body)
    assert refused[-1]["event"] == "error"
    assert (refused[-1]["status"], refused[-1]["error"]["param"]) == (409, "name")


# -- uploads ------------------------------------------------------------------------------------


def packed(folder) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for file in folder.iterdir():
            tar.add(file, f"{folder.name}/{file.name}")
    return data.getvalue()


async def upload(rh, data: bytes, *, piece: int) -> str:
    """By tus 1.0, in pieces, asking after each how far it is."""
    begun = await rh.client.post("/v1/uploads", headers={"upload-length": str(len(data))})
    assert begun.status_code == 201
    place = begun.headers["location"]
    offset = 0
    while offset < len(data):
        headers = {
            "upload-offset": str(offset),
            "content-type": "application/offset+octet-stream",
        }
        sent = await rh.client.patch(place, content=data[offset : offset + piece], headers=headers)
        assert sent.status_code == 204
        state = await rh.client.head(place)
        assert state.headers["upload-offset"] == sent.headers["upload-offset"]
        offset = int(state.headers["upload-offset"])
    return begun.json()["source"]


async def test_an_adapter_is_uploaded_in_pieces(rh, make_adapter):
    source = await upload(rh, packed(make_adapter("cron")), piece=500)
    created = await rh.client.post("/v1/adapters", json={"source": source})
    assert created.json()["name"] == "cron"
    assert (await ask(rh, "cron")).status_code == 200
    used = source.replace("upload://", "/v1/uploads/")
    error(await rh.client.delete(used), 404)


async def test_an_upload_can_be_given_up(rh):
    begun = await rh.client.post("/v1/uploads", headers={"upload-length": "10"})
    place = begun.headers["location"]
    assert (await rh.client.delete(place)).status_code == 204
    error(await rh.client.delete(place), 404)


async def test_a_piece_in_the_wrong_place_is_refused(rh):
    begun = await rh.client.post("/v1/uploads", headers={"upload-length": "10"})
    place = begun.headers["location"]
    kind = {"content-type": "application/offset+octet-stream"}
    wrong = await rh.client.patch(place, content=b"x", headers=kind | {"upload-offset": "5"})
    assert "has 0 bytes; go on from there" in error(wrong, 409)["message"]
    much = await rh.client.patch(place, content=b"x" * 11, headers=kind | {"upload-offset": "0"})
    error(much, 413)
    error(await rh.client.patch(place, content=b"x", headers={"upload-offset": "0"}), 400)
    error(await rh.client.post("/v1/uploads"), 400)
    error(await rh.client.post("/v1/uploads", headers={"upload-length": "9" * 15}), 413)


# -- vLLM's endpoints ---------------------------------------------------------------------------


async def test_a_client_of_vllm_loads_and_unloads(rh, make_adapter):
    folder = make_adapter("cron")
    (folder / "card.json").unlink()
    body = {"lora_name": "my-lora", "lora_path": str(folder)}
    loaded = await rh.client.post("/v1/load_lora_adapter", json=body)
    assert loaded.status_code == 200
    assert loaded.text == "Success: LoRA adapter 'my-lora' added successfully."
    assert (await ask(rh, "my-lora")).headers["x-roundhouse-adapter"] == "my-lora"
    again = await rh.client.post("/v1/load_lora_adapter", json=body)
    assert "has already been loaded" in error(again, 400)["message"]
    in_place = await rh.client.post("/v1/load_lora_adapter", json=body | {"load_inplace": True})
    assert in_place.status_code == 200
    gone = await rh.client.post("/v1/unload_lora_adapter", json={"lora_name": "my-lora"})
    assert gone.text == "Success: LoRA adapter 'my-lora' removed successfully."
    error(await ask(rh, "my-lora"), 404)
    missing = await rh.client.post("/v1/unload_lora_adapter", json={"lora_name": "my-lora"})
    assert error(missing, 404)["message"] == "The lora adapter 'my-lora' cannot be found."


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "lora_name"),
        ({"lora_name": "x"}, 400, "lora_path"),
        ({"lora_name": "", "lora_path": "/x"}, 400, "lora_name"),
        ({"lora_name": "x@y", "lora_path": "/x"}, 400, "lora_name"),
        ({"lora_name": "x", "lora_path": "/nowhere"}, 404, "lora_path"),
        ({"lora_name": "X", "lora_path": "file:///nowhere"}, 404, "lora_path"),
    ],
)
async def test_a_wrong_load_is_refused_as_vllm_does(rh, body, status, param):
    refused = await rh.client.post("/v1/load_lora_adapter", json=body)
    assert error(refused, status)["param"] == param


# -- size ---------------------------------------------------------------------------------------


async def test_requests_go_on_while_versions_change(rh, make_adapter):
    await add(rh, make_adapter("cron"))
    stop = asyncio.Event()
    seen: list[tuple[int, str]] = []

    async def load() -> None:
        while not stop.is_set():
            answer = await ask(rh, "cron")
            seen.append((answer.status_code, answer.headers.get("x-roundhouse-version", "")))

    clients = [asyncio.create_task(load()) for _ in range(4)]
    for seed in range(1, 6):
        await put(rh, make_adapter("cron", seed=seed))
    await rh.client.post("/v1/adapters/cron/rollback")
    stop.set()
    await asyncio.gather(*clients)
    assert {status for status, _ in seen} == {200}
    assert len({version for _, version in seen}) >= 4


async def test_a_balancer_is_told_what_keeps_requests_from_being_served(make_world):
    """Once all has been there, one replica is enough, and nothing waits for the prompt router."""
    model = {"id": "echo", "path": "none", "engine": "echo", "replicas": 2}
    async with make_world(models=[model]) as it:
        members, first, second = it.store.members, *(Replica(id=i, model="echo") for i in "ab")

        async def waiting_for() -> str:
            answer = await it.client.get("/readyz")
            return "" if answer.status_code == 200 else error(answer, 503)["message"]

        for member in (first, Router(id="r")):
            await members.renew(member)
        assert await waiting_for() == "waiting for 1 of 2 replicas of echo"
        await members.renew(second)
        assert await waiting_for() == ""
        for gone in ("b", "r"):
            await members.leave(gone)
        assert await waiting_for() == ""
        await members.leave("a")
        assert await waiting_for() == "waiting for a replica of echo"


async def test_what_a_killed_ingress_had_brought_in_goes_when_the_next_one_starts(
    make_world, tmp_path
):
    staging = tmp_path / "data" / "staging"
    old, fresh = staging / "old", staging / "fresh"
    for folder in (old, fresh):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    async with make_world():
        assert list(staging.iterdir()) == [fresh], "another cluster's, perhaps"
