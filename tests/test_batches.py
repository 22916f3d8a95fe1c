"""Batches of requests: what comes of them, whose they are, and what outlives a process."""

import asyncio
import json
import os
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from openai import AsyncOpenAI

from adapter_store.batches.contents import Contents
from adapter_store.batches.ledger import Ledger
from cluster.adapters import Viewer
from cluster.batches import Order, now
from cluster.errors import Unavailable
from deployments.ingress.batches import run, runner
from deployments.ingress.batches.lines import examine
from tests.conftest import COMMAND, until
from tests.elsewhere import served
from tests.test_http import World, add, error
from tests.test_tenants import CRON, As, tenants  # noqa: F401  (a fixture)

CHAT = "/v1/chat/completions"


def request(custom_id: str, text: str = "one two", model: str = "echo", **fields) -> dict:
    body = {"model": model, "messages": [{"role": "user", "content": text}]} | fields
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}


def lines(*requests: dict | str) -> bytes:
    return "\n".join(r if isinstance(r, str) else json.dumps(r) for r in requests).encode()


async def upload(rh: World, content: bytes, *, purpose="batch", headers=None, **fields):
    files = {"file": ("requests.jsonl", content)}
    data = {"purpose": purpose} | fields
    return await rh.client.post("/v1/files", files=files, data=data, headers=headers)


async def begun(rh: World, *requests: dict | str, **fields) -> dict:
    file = (await upload(rh, lines(*requests))).json()
    body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
    answer = await rh.client.post("/v1/batches", json=body | fields)
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "validating"
    return answer.json()


async def look(rh: World, batch: dict) -> dict:
    return (await rh.client.get(f"/v1/batches/{batch['id']}")).json()


async def ended(rh: World, batch: dict, timeout_s: float = 10) -> dict:
    async def is_final() -> bool:
        final = ("completed", "failed", "expired", "cancelled")
        return (await look(rh, batch))["status"] in final

    await until(is_final, timeout_s)
    return await look(rh, batch)


async def answers(rh: World, file_id: str | None) -> dict[str, dict]:
    """By custom id; none is there twice."""
    if file_id is None:
        return {}
    content = (await rh.client.get(f"/v1/files/{file_id}/content")).text
    found = [json.loads(line) for line in content.splitlines()]
    assert len({a["custom_id"] for a in found}) == len(found)
    return {a["custom_id"]: a for a in found}


def text_of(answer: dict) -> str:
    return answer["response"]["body"]["choices"][0]["message"]["content"]


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    monkeypatch.setattr(run, "_KEEP_EVERY_S", 0.05)


@pytest.fixture
async def rh(make_world):
    async with make_world() as it:
        yield it


async def test_each_request_is_answered_by_its_own_adapter(rh, make_adapter):
    await add(rh, make_adapter("cron", examples=CRON))
    batch = await begun(
        rh,
        request("a", "hello"),
        request("b", "hello", "cron"),
        request("c", "every friday at ten", "auto"),
        request("d", model="missing"),
        "",
        metadata={"by": "night"},
    )
    batch = await ended(rh, batch)
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 4, "completed": 3, "failed": 1}
    assert batch["metadata"] == {"by": "night"}
    assert batch["created_at"] <= batch["in_progress_at"] <= batch["completed_at"]
    good = await answers(rh, batch["output_file_id"])
    assert {i: a["response"]["body"]["model"] for i, a in good.items()} == {
        "a": "echo",
        "b": "cron",
        "c": "cron",
    }
    assert text_of(good["a"]) == "hello"
    bad = await answers(rh, batch["error_file_id"])
    assert bad["d"]["response"]["status_code"] == 404
    assert bad["d"]["response"]["body"]["error"]["code"] == "model_not_found"
    # It takes what is idle, and its choices can be looked up.
    assert {terms.priority for terms in rh.pool.terms} == {-100}
    request_id = good["c"]["response"]["request_id"]
    assert (await rh.client.get(f"/v1/decisions/{request_id}")).status_code == 200


@pytest.mark.parametrize(
    ("content", "code", "param", "line"),
    [
        (b"", "empty_file", None, None),
        (b"\n\n", "empty_file", None, None),
        (b"{}\n{", "invalid_custom_id", "custom_id", 1),
        (b"[1]", "invalid_json_line", None, 1),
        (b"\xff", "invalid_json_line", None, 1),
        (lines(request("a"), request("a")), "duplicate_custom_id", "custom_id", 2),
        (lines(request("a") | {"method": "GET"}), "invalid_method", "method", 1),
        (lines(request("a") | {"url": "/v1/completions"}), "mismatched_endpoint", "url", 1),
        (lines(request("a") | {"body": "x"}), "missing_required_parameter", "body", 1),
        (lines(request("a", stream=True)), "invalid_request", "body.stream", 1),
        (lines(*map(request, "abcd")), "too_many_requests", None, None),
        (lines(request("a"), request("b", "x" * 2000)), "line_too_long", None, 2),
        (lines(request("a", "\ud800")), "invalid_json_line", "body.messages[0].content", 1),
        (b'{"custom_id": NaN}', "invalid_json_line", None, 1),
    ],
)
def test_a_file_that_is_no_batch_says_where(content, code, param, line):
    _, problems = examine(content.split(b"\n"), CHAT, 3, 1000)
    assert (problems[0].code, problems[0].param, problems[0].line) == (code, param, line)


async def test_a_batch_with_a_bad_line_fails_before_anything_is_asked(rh):
    batch = await ended(rh, await begun(rh, request("a"), "{}"))
    assert batch["status"] == "failed"
    assert batch["errors"]["data"][0]["line"] == 2
    assert batch["output_file_id"] is None
    assert rh.pool.terms == []


async def test_another_process_goes_on_where_one_has_ended(make_world):
    asked = [request(f"r{i}", "word " * 20) for i in range(40)]
    async with make_world(engine_args={"token_s": 0.005}, batch={"at_once": 4}) as first:
        batch = await begun(first, *asked)

        async def is_under_way() -> bool:
            return (await look(first, batch))["request_counts"]["completed"] >= 8

        await until(is_under_way)
    async with make_world(batch={"at_once": 4}) as second:
        before = (await look(second, batch))["request_counts"]["completed"]
        assert 8 <= before < 40
        batch = await ended(second, batch, 20)
        assert batch["request_counts"] == {"total": 40, "completed": 40, "failed": 0}
        assert len(await answers(second, batch["output_file_id"])) == 40
        # What was kept is not asked again.
        assert len(second.pool.terms) == 40 - before


async def test_a_request_that_breaks_something_of_ours_is_told_and_holds_up_no_other(
    rh, monkeypatch
):
    monkeypatch.setattr(run, "_MOST_WAIT_S", 0.02)
    rh.pool.breaks_on = b"broken"
    file = lines(request("a"), request("b", "broken"), request("c"))
    # As Windows writes it, with a mark before it.
    sent = await upload(rh, b"\xef\xbb\xbf" + file.replace(b"\n", b"\r\n"))
    body = {"input_file_id": sent.json()["id"], "endpoint": CHAT}
    batch = await ended(rh, (await rh.client.post("/v1/batches", json=body)).json())
    assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    bad = await answers(rh, batch["error_file_id"])
    assert bad["b"]["response"]["status_code"] == 500


async def test_what_is_answered_when_it_is_cancelled_is_kept(make_world):
    asked = [request(f"r{i}", "word " * 20) for i in range(40)]
    async with make_world(engine_args={"token_s": 0.005}, batch={"at_once": 4}) as rh:
        batch = await begun(rh, *asked)

        async def is_under_way() -> bool:
            return (await look(rh, batch))["request_counts"]["completed"] >= 4

        await until(is_under_way)
        asked_off = await rh.client.post(f"/v1/batches/{batch['id']}/cancel")
        assert asked_off.json()["status"] == "cancelling"
        batch = await ended(rh, batch)
        assert batch["status"] == "cancelled"
        completed = batch["request_counts"]["completed"]
        assert 4 <= completed < 40
        assert len(await answers(rh, batch["output_file_id"])) == completed
        await until(lambda: not rh.pool.open_answers)
        assert error(await rh.client.post(f"/v1/batches/{batch['id']}/cancel"), 409)


async def test_what_is_not_done_in_its_time_is_given_up_and_told(make_world):
    asked = lines(*(request(f"r{i}", "word " * 400) for i in range(6)))
    async with make_world(engine_args={"token_s": 0.005}, batch={"at_once": 1}) as rh:
        file = (await upload(rh, asked)).json()
        order = Order(
            id="batch_x",
            viewer=Viewer(),
            endpoint=CHAT,
            input_file_id=file["id"],
            completion_window="1m",
            expires_at=now() + 1,
            keep_results_s=3600,
        )
        await Ledger(rh.store.server, keep_s=3600).put(order)
        batch = await ended(rh, {"id": "batch_x"})
        assert batch["status"] == "expired"
        assert batch["request_counts"]["failed"] >= 4
        missed = await answers(rh, batch["error_file_id"])
        assert {a["error"]["code"] for a in missed.values()} == {"batch_expired"}


async def test_who_is_told_to_come_later_comes_later(rh, monkeypatch):
    monkeypatch.setattr(run, "_MOST_WAIT_S", 0.02)
    rh.pool.is_full = True
    batch = await begun(rh, request("a"))
    await until(lambda: len(rh.pool.terms) > 10)
    rh.pool.is_full = False
    batch = await ended(rh, batch)
    assert batch["request_counts"]["completed"] == 1


async def test_a_place_that_cannot_be_written_for_a_while_costs_no_answer(rh, monkeypatch):
    monkeypatch.setattr(runner, "_PAUSE_S", 0.1)
    monkeypatch.setattr(runner, "_LOOK_S", 0.1)
    keep, failures = Contents.add, iter([True, True])

    def fails_twice(self, file_id, piece):
        if b"custom_id" in piece and b"batch_req" in piece and next(failures, False):
            raise Unavailable("no")
        keep(self, file_id, piece)

    monkeypatch.setattr(Contents, "add", fails_twice)
    batch = await ended(rh, await begun(rh, request("a"), request("b")))
    assert batch["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
    assert next(failures, None) is None


async def until_shown(who: As, batch_id: str) -> None:
    """On the page, with how far it is."""

    async def is_shown() -> bool:
        found = (await who.json("/v1/dashboard"))["batches"]
        return [(b["id"], b["owner"], b["counts"]["total"]) for b in found] == [
            (batch_id, "alice", 1)
        ]

    await until(is_shown)


async def test_tenants_see_their_own(tenants):  # noqa: F811
    async with tenants() as (rh, alice, bob, ops):
        sent = await upload(rh, lines(request("a")), headers=alice.headers)
        body = {"input_file_id": sent.json()["id"], "endpoint": CHAT}
        assert error(await bob("POST", "/v1/batches", body), 404)
        batch = (await alice("POST", "/v1/batches", body)).json()
        paths = (f"/v1/files/{sent.json()['id']}", f"/v1/batches/{batch['id']}")
        for path in (*paths, f"{paths[0]}/content"):
            assert (await alice.get(path)).status_code == 200
            assert error(await bob.get(path), 404) and error(await ops.get(path), 404)
        assert error(await bob("POST", f"{paths[1]}/cancel"), 404)
        assert error(await bob("DELETE", paths[0]), 404)
        await until_shown(alice, batch["id"])
        await until_shown(ops, batch["id"])
        assert (await bob.json("/v1/dashboard"))["batches"] == []
        for path in ("/v1/files", "/v1/batches"):
            assert (await bob.json(path))["data"] == []
            assert len((await alice.json(path))["data"]) >= 1


@asynccontextmanager
async def nothing_kept(rh: World, tmp_path):
    yield
    assert (await rh.client.get("/v1/files")).json()["data"] == []
    assert not list((tmp_path / "data" / "batches").rglob("*-*"))


async def test_a_file_that_cannot_be_taken_leaves_nothing(make_world, tmp_path):
    limits = {"max_file_bytes": 1000, "max_tenant_bytes": 1500}
    async with make_world(batch=limits) as rh:
        async with nothing_kept(rh, tmp_path):
            assert error(await upload(rh, b"x" * 1001), 413)["param"] == "file"
            assert error(await upload(rh, b"x" * 3_000_000), 413)["param"] == "file"
            assert error(await upload(rh, b""), 400)["param"] == "file"
            assert error(await upload(rh, b"x", purpose="assistants"), 400)["param"] == "purpose"
            expiry = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "1"}
            found = error(await upload(rh, b"x", **expiry), 400)
            assert found["param"] == "expires_after.seconds"
            answer = await rh.client.post("/v1/files", data={"purpose": "batch"})
            assert error(answer, 415)
            form = {"content-type": "multipart/form-data; boundary=x"}
            assert error(await rh.client.post("/v1/files", content=b"?", headers=form), 400)
            no_boundary = {"content-type": "multipart/form-data"}
            answer = await rh.client.post("/v1/files", content=b"?", headers=no_boundary)
            assert error(answer, 400)
        assert (await upload(rh, b"x" * 900)).status_code == 200
        assert "max_tenant_bytes" in error(await upload(rh, b"x" * 900), 413)["message"]


@pytest.mark.parametrize(
    ("fields", "param", "status"),
    [
        ({"endpoint": "/v1/images"}, "endpoint", 400),
        ({"input_file_id": "file-x"}, "input_file_id", 404),
        ({"completion_window": "soon"}, "completion_window", 400),
        ({"metadata": {"a": 1}}, "metadata.a", 400),
        ({"colour": "red"}, "colour", 400),
        ({"output_expires_after": {"seconds": 1}}, "output_expires_after.seconds", 400),
    ],
)
async def test_a_bad_order_is_told_by_field(rh, fields, param, status):
    file = (await upload(rh, b"x")).json()
    body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
    assert error(await rh.client.post("/v1/batches", json=body | fields), status)["param"] == param


async def test_files_go_when_their_time_is_over_but_not_while_they_are_read(
    make_world, tmp_path, monkeypatch
):
    monkeypatch.setattr(runner, "_SWEEP_S", 0.05)
    async with make_world(engine_args={"token_s": 0.05}) as rh:
        batch = await begun(rh, request("a", "word " * 20))
        path = f"/v1/files/{batch['input_file_id']}"
        assert error(await rh.client.delete(path), 409)["param"] == "file_id"
        ledger = Ledger(rh.store.server, keep_s=3600)
        file = await ledger.file("", batch["input_file_id"])
        await ledger.put_file(file.model_copy(update={"expires_at": now() - 1}))
        assert (await ended(rh, batch))["request_counts"]["completed"] == 1

        async def is_gone() -> bool:
            return (await rh.client.get(path)).status_code == 404

        await until(is_gone)
        assert not list((tmp_path / "data" / "batches" / batch["input_file_id"]).glob("*"))


async def test_openais_own_client(rh, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_bytes(lines(request("a", "hello"), request("b")))
    async with AsyncOpenAI(
        api_key="none", base_url="http://localhost/v1", http_client=rh.client
    ) as client:
        sent = await client.files.create(file=file, purpose="batch")
        assert (sent.filename, sent.bytes) == ("mine.jsonl", file.stat().st_size)
        made = await client.batches.create(
            input_file_id=sent.id, endpoint=CHAT, completion_window="24h"
        )
        await ended(rh, {"id": made.id})
        batch = await client.batches.retrieve(made.id)
        content = await client.files.content(batch.output_file_id)
        assert {json.loads(line)["custom_id"] for line in content.text.splitlines()} == {"a", "b"}
        second = await client.batches.create(
            input_file_id=sent.id, endpoint=CHAT, completion_window="24h"
        )
        assert [b.id async for b in client.batches.list(limit=1)] == [second.id, made.id]
        await ended(rh, {"id": second.id})
        assert {f.purpose async for f in client.files.list()} == {"batch", "batch_output"}
        assert (await client.files.delete(sent.id)).deleted


async def test_the_command_hands_in_watches_and_saves(rh, tmp_path):
    async with served(rh.app) as url:
        await asyncio.to_thread(_by_command, url.removesuffix("/v1"), tmp_path)


def _by_command(url: str, folder: Path) -> None:
    def batch(*words: str | Path) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "ROUNDHOUSE_URL": url, "COLUMNS": "200"}
        command = [COMMAND, "batch", *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    file = folder / "night.jsonl"
    file.write_bytes(lines(request("a", "hello"), request("b", model="missing")))
    done = batch("run", file)
    assert done.returncode == 1, "one of them failed"
    assert "completed: 1 answered, 1 failed, of 2" in done.stdout
    found = (folder / "night.answers.jsonl").read_text()
    assert json.loads(found)["custom_id"] == "a"
    assert json.loads((folder / "night.errors.jsonl").read_text())["custom_id"] == "b"
    batch_id = done.stdout.split()[1]
    assert batch("results", batch_id, folder / "again.jsonl").returncode == 0
    assert (folder / "again.jsonl").read_text() == found
    assert batch_id in batch("list").stdout
    assert "is completed already" in batch("cancel", batch_id).stderr
    file.write_text("hello")
    assert "the first line is no request" in batch("run", file).stderr
