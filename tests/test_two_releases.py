"""Two releases on one store, as during an upgrade: the one before beside this, and a newer one."""

import asyncio
import json
import time

import pytest

from adapter_store.catalogue import Catalogue
from adapter_store.routing_log import RoutingLog
from cluster import rollouts
from cluster.adapters import AdapterKey, AdapterRef, Tier
from cluster.decisions import Candidate, Decision, Evidence, Outcome, Route, RoutedRequest
from cluster.errors import InvalidRequest
from cluster.members import Arrival, Ingress, Replica, Residency, Router, RouterReport
from cluster.plans import Happening
from cluster.requests import Registration, edited
from cluster.settings import parse_settings
from deployments.process.call import Call
from deployments.process.process import Process
from deployments.replica.model_server import ModelServer
from tests.release_before import release_before

pytestmark = pytest.mark.redis


@pytest.fixture
async def catalogue(store):
    catalogue = Catalogue(store.registry)
    await catalogue.start()
    yield catalogue
    await catalogue.stop()


# -- the release before ---------------------------------------------------------------------


@pytest.fixture
def before(store, store_settings, tmp_path):  # noqa: ARG001  (it puts the base model)
    settings = store_settings.model_copy(update={"data_dir": tmp_path / "data"})
    with release_before(
        tmp_path / "before", settings.model_dump_json(exclude_unset=True)
    ) as process:

        async def ask(command: str, **fields):
            return await asyncio.to_thread(process, command, **fields)

        yield ask


async def test_what_either_release_does_the_other_follows(
    before, store, registrar, catalogue, make_adapter
):
    theirs = await before("register", source=str(make_adapter("theirs")))
    await catalogue.wait_for(theirs)
    sent = Registration(source=str(make_adapter("ours", seed=1, tags=["new"])))
    ours = await registrar.register(sent, mode="create")
    assert (await before("see", position=ours.position))["ours"]["card"]["tags"] == ["new"]

    again = Registration(source=str(make_adapter("theirs", seed=2)), promote=False)
    second = await registrar.register(again, mode="upsert")
    assert second.version.number == 2, "numbers go on"
    alias = await before("alias", name="ours", alias="blue", number=1)
    await catalogue.wait_for(alias)
    assert catalogue.adapters["ours"].aliases["blue"] == 1

    def begin(adapter):
        version, gate = adapter.versions[2], None
        return rollouts.begin(adapter, version, percents=(10, 100), step_s=60, gate=gate, now=1.0)

    rolling = await store.registry.change("theirs", begin)
    seen = await before("see", position=rolling.position)
    assert seen["theirs"]["rollout"]["percents"] == [10, 100]
    edit = await before("edit", name="theirs", description="edited by the release before")
    await catalogue.wait_for(edit)
    assert catalogue.adapters["theirs"].rollout is not None, "nothing of it is lost"


async def test_the_release_before_reads_every_report_of_this_one(before, store):
    key = AdapterKey("a@1")
    full = Replica(
        id="r", model="echo", residency=Residency(slots=(key,)), loading=(key,), problems={key: "x"}
    )
    for report in (
        full,
        Router(id="p", router=RouterReport(versions={}, cards=0)),
        Ingress(
            id="i",
            demand={"a": 1.0},
            waiting={key: 1},
            arrivals=(Arrival(source="s3://bucket/a", owner="", since=1.0),),
        ),
    ):
        await store.members.renew(report)
    members = await before("members")
    assert [(m["id"], m["kind"]) for m in members] == [
        ("i", "ingress"),
        ("p", "router"),
        ("r", "replica"),
    ]
    assert members[2]["problems"] == {"a@1": "x"}


async def test_this_release_reads_the_reports_of_the_one_before(before, store):
    await before("report", id="old", loading=["a@1"], residency={"slots": ["b@2"]})
    (replica,) = await store.members.all()
    assert isinstance(replica, Replica)
    assert replica.loading == (AdapterKey("a@1"),)
    assert replica.residency.slots[0].version == 2


async def test_the_release_before_reads_what_this_one_logs(before, store):
    log = RoutingLog(store.server, keep_s=60)
    candidate = Candidate(adapter="cron", score=0.9, residency=Tier.SLOT)
    decision = Decision(
        adapter="cron", version=1, confidence=0.9, route=Route.AUTO, reason="x",
        candidates=(candidate,), evidence=(Evidence(example="a", share=1.0, wording=0.1),),
    )  # fmt: skip
    request = RoutedRequest(
        request_id="r1", at=time.time(), input="hi", answered_by="cron", decision=decision
    )
    await log.put([request])
    await log.add_outcome("r1", Outcome(input="hi", candidate="cron", score=1.0))
    await store.telemetry.note([Happening(at=1.0, kind="load", subject="cron", text="loaded")])
    assert [d["decision"]["adapter"] for d in await before("decisions")] == ["cron"]
    assert [o["score"] for o in await before("outcomes")] == [1.0]
    assert [h["subject"] for h in await before("journal")] == ["cron"]


async def test_this_release_starts_on_the_store_of_the_one_before(
    before, store_settings, make_adapter, tmp_path
):
    """What it had registered is there, with its files, and is served."""
    position = await before("register", source=str(make_adapter("cron")))
    await before("alias", name="cron", alias="blue", number=1)
    settings = parse_settings(
        {
            "models": [{"id": "echo", "path": "none", "engine": "echo"}],
            "store": store_settings.model_dump() | {"data_dir": str(tmp_path / "data")},
            "node_cache": {"path": str(tmp_path / "node")},
        }
    )
    process = Process(settings.store, "r0")
    server = ModelServer(settings, "echo", process, "node")
    await server.start()
    try:
        adapter = process.catalogue.adapters["cron"]
        assert adapter.aliases["blue"] == 1
        ref = AdapterRef.of(adapter, adapter.stable)
        body = json.dumps({"model": ref.key, "prompt": "hello"}).encode()
        async with server.answer(Call("/v1/completions", "id", body, ref, position)) as reply:
            assert reply.start.status == 200
            assert json.loads(await reply.read())["choices"][0]["text"] == "hello"
    finally:
        await server.stop()


# -- a newer release ------------------------------------------------------------------------


async def as_a_newer_release(store, name: str) -> str:
    """Add a field to all that is kept of an adapter; returns the event's position."""
    redis, key = store.server.redis, store.server.keys.adapter(name)
    for field, value in (await redis.hgetall(key)).items():
        try:
            record = json.loads(value)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict):
            record["of_next_year"] = {"field": [1, 2]}
            for prompt in record.get("evaluation", []):
                prompt["of_next_year"] = True
            await redis.hset(key, field, json.dumps(record))
    await redis.hset(key, "a_field_of_next_year", "kept")
    changed = await store.registry.change(name, lambda adapter: adapter)
    return changed.position


async def put_one(registrar, make_adapter) -> None:
    evaluation = [{"prompt": "2+2", "expected": "4"}]
    folder = make_adapter("cron", description="old", evaluation=evaluation)
    await registrar.register(Registration(source=str(folder)), mode="create")


async def test_a_field_that_a_newer_release_adds_ends_no_catalogue(
    store, registrar, catalogue, make_adapter
):
    await put_one(registrar, make_adapter)
    await catalogue.wait_for(await as_a_newer_release(store, "cron"))
    catalogue.check()
    assert catalogue.adapters["cron"].card.description == "old"
    fresh = Catalogue(store.registry)
    await fresh.start()
    assert fresh.adapters == catalogue.adapters
    await fresh.stop()


async def test_what_a_newer_release_stored_is_written_back(store, registrar, make_adapter):
    await put_one(registrar, make_adapter)
    await as_a_newer_release(store, "cron")

    def edit(adapter):
        return rollouts.edit_card(adapter, edited(adapter.card, {"description": "new"}))

    await store.registry.change("cron", edit)
    again = Registration(source=str(make_adapter("cron", seed=1)), tags=("t",))
    await registrar.register(again, mode="upsert")
    fields = await store.server.fields(store.server.keys.adapter("cron"))
    card = json.loads(fields["card"])
    assert (card["description"], card["tags"]) == ("new", ["t"])
    assert card["of_next_year"] == {"field": [1, 2]}
    assert card["evaluation"][0]["of_next_year"] is True
    assert json.loads(fields["version:1"])["of_next_year"] == {"field": [1, 2]}
    assert fields["a_field_of_next_year"] == "kept"


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"of_next_year": 1}, "of_next_year"),
        ({"evaluation": [{"prompt": "a", "expected": "b", "weight": 2}]}, "evaluation[0].weight"),
    ],
)
async def test_what_a_client_sends_is_held_to_what_this_release_knows(
    store, registrar, make_adapter, sent, field
):
    await put_one(registrar, make_adapter)
    await as_a_newer_release(store, "cron")
    adapter = await store.registry.get("cron")
    assert adapter is not None
    with pytest.raises(InvalidRequest) as refused:
        edited(adapter.card, sent)
    assert refused.value.param == field


async def test_a_report_with_more_in_it_and_one_of_a_new_kind_end_nothing(store):
    await store.members.renew(Replica(id="r", model="echo"))
    redis, keys = store.server.redis, store.server.keys
    for member in (
        {"id": "newer", "kind": "replica", "model": "echo", "of_next_year": 1},
        {"id": "other", "kind": "auditor"},
    ):
        await redis.set(keys.member(member["id"]), json.dumps(member))
        await redis.zadd(keys.members, {member["id"]: 2**53})
    assert [m.id for m in await store.members.all()] == ["newer", "r"]


async def test_the_journal_of_a_newer_release_is_read_as_far_as_it_can_be(store):
    redis, key = store.server.redis, store.server.keys.journal(loads=False)
    known = {"at": 1.0, "kind": "adapter", "subject": "cron", "text": "cron was deleted"}
    for record in (known, known | {"more": 1}, known | {"kind": "audit"}):
        await redis.xadd(key, {"record": json.dumps(record)})
    assert [h.subject for h in await store.telemetry.journal(10)] == ["cron", "cron"]
