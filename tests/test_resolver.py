"""Adapters that are fetched when they are asked for."""

import asyncio
import shutil

import pytest

from adapter_store.files.filesystems import open_filesystem
from cluster.errors import ConfigError
from cluster.settings import parse_settings
from deployments.ingress.auth import new_key
from deployments.ingress.resolver import places_of
from tests.conftest import until
from tests.strange_servers import strange_server
from tests.test_http import add, ask, chat, error


@pytest.fixture
def shelf(tmp_path, make_adapter):
    """A folder of adapters that nobody has registered."""
    shelf = tmp_path / "shelf"
    for name in ("cron", "org/Sql-v1.2"):
        shutil.copytree(make_adapter(name.rpartition("/")[2]), shelf / name)
        (shelf / name / "card.json").unlink()
    return shelf


@pytest.fixture
def resolving(make_world, tmp_path):
    """Opens a world whose settings say where adapters may lie."""

    def opened(*patterns, **settings):
        store = {"data_dir": str(tmp_path / "data"), "resolve_again_s": 0.5, "resolve": patterns}
        return make_world(store=store | settings)

    return opened


async def test_a_name_that_lies_where_the_settings_say_is_fetched_and_answers(resolving, shelf):
    async with resolving(f"{shelf}/*") as it:
        for name in ("cron", "org/Sql-v1.2"):
            answer = await ask(it, name)
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-roundhouse-adapter"] == name
        shown = (await it.client.get("/v1/adapters/org/Sql-v1.2")).json()
        assert shown["resolved_from"] == f"{shelf}/org/Sql-v1.2"
        # A URI is the same adapter.
        assert (await ask(it, f"{shelf}/cron")).headers["x-roundhouse-adapter"] == "cron"
        ids = [m["id"] for m in (await it.client.get("/v1/models")).json()["data"]]
        assert sorted(ids) == ["auto", "cron", "echo", "org/Sql-v1.2"]


async def test_a_bucket_is_such_a_place(resolving, make_adapter, s3_bucket):
    files, root = open_filesystem(s3_bucket)
    files.put(str(make_adapter("cron")), f"{root}/adapters/cron", recursive=True)
    async with resolving(f"{s3_bucket}/adapters/*") as it:
        error(await ask(it, "sql"), 404)
        assert (await ask(it, f"{s3_bucket}/adapters/cron")).status_code == 200
        assert (await ask(it, "cron")).status_code == 200


async def test_off_by_default(make_world, shelf):
    async with make_world() as it:
        error(await ask(it, f"{shelf}/cron"), 404)


async def test_concurrent_first_requests_share_one_fetch_across_ingresses(resolving, shelf):
    async with resolving(f"{shelf}/*") as one, resolving(f"{shelf}/*") as two:
        answers = await asyncio.gather(*(ask(it, "cron") for it in (one, two) for _ in range(5)))
        assert {a.status_code for a in answers} == {200}
        assert one.pool.cache.loads + two.pool.cache.loads <= 3, "one trial, and a load each"
        shown = (await one.client.get("/v1/adapters/cron")).json()
        assert [v["number"] for v in shown["versions"]] == [1]


async def test_beyond_its_patience_a_request_gets_503_and_the_work_goes_on(resolving, shelf):
    async with resolving(f"{shelf}/*", resolve_patience_s=0.001) as it:
        late = await ask(it, "cron")
        assert error(late, 503)["code"] == "being_fetched"
        assert int(late.headers["retry-after"]) >= 1

        async def answers() -> bool:
            return (await ask(it, "cron")).status_code == 200

        await until(answers)


async def test_what_is_not_there_is_not_looked_for_again_for_a_while(resolving, shelf):
    async with resolving(f"{shelf}/*") as it:
        message = error(await ask(it, "crom"), 404)["message"]
        assert "'crom' does not exist" in message
        shutil.copytree(shelf / "cron", shelf / "crom")
        error(await ask(it, "crom"), 404)
        await asyncio.sleep(0.6)
        assert (await ask(it, "crom")).status_code == 200


async def test_what_cannot_be_served_says_why_and_is_remembered(resolving, shelf):
    (shelf / "cron" / "adapter_config.json").write_text('{"peft_type": "LOHA"}')
    async with resolving(f"{shelf}/*") as it:
        for _ in range(2):
            refused = error(await ask(it, "cron"), 400)
            assert "LOHA" in refused["message"]
            assert refused["param"] == "model"
        assert (await it.client.get("/v1/adapters/cron")).status_code == 404


async def test_a_uri_means_its_place_and_no_other_adapter_of_that_name(
    resolving, shelf, make_adapter
):
    async with resolving(f"{shelf}/*") as it:
        await add(it, make_adapter("cron", seed=9))
        error(await ask(it, f"{shelf}/cron"), 404)
        for elsewhere in ("/etc/cron", f"{shelf}/../cron", "s3://b/cron", f"{shelf}/cron@1"):
            error(await ask(it, elsewhere), 404)


async def test_it_leaves_when_nobody_asks_and_stays_while_somebody_does(resolving, shelf, tmp_path):
    async with resolving(f"{shelf}/*", resolve_idle_s=1.5) as it:
        assert (await ask(it, "cron")).status_code == 200
        for _ in range(5):
            await asyncio.sleep(0.5)
            assert (await ask(it, "cron")).headers["x-roundhouse-version"] == "1"

        async def has_left() -> bool:
            return (await it.client.get("/v1/adapters/cron")).status_code == 404

        await until(has_left)
        await until(lambda: not list((tmp_path / "data" / "blobs").rglob("*.safetensors")))
        # It may come again, under a number that nothing has in its caches.
        assert (await ask(it, "cron")).headers["x-roundhouse-version"] == "2"


async def test_what_somebody_registers_stays(resolving, shelf):
    async with resolving(f"{shelf}/*", resolve_idle_s=0.5) as it:
        assert (await ask(it, "cron")).status_code == 200
        kept = await it.client.put(
            "/v1/adapters/cron", json={"source": str(shelf / "cron"), "base_model": "echo"}
        )
        assert kept.status_code == 200, kept.text
        await asyncio.sleep(1.5)
        assert (await it.client.get("/v1/adapters/cron")).status_code == 200


async def test_a_card_that_names_another_base_model_is_said_and_remembered(resolving, shelf):
    (shelf / "cron" / "card.json").write_text('{"base_model": "nope"}')
    async with resolving(f"{shelf}/*") as it:
        for _ in range(2):
            refused = error(await ask(it, "cron"), 400)
            assert "nope" in refused["message"]
            assert refused["param"] == "model"
            (shelf / "cron" / "card.json").unlink(missing_ok=True)


async def test_what_a_uri_misses_hides_no_other_place(resolving, shelf, tmp_path):
    (tmp_path / "empty").mkdir()
    async with resolving(f"{tmp_path}/empty/*", f"{shelf}/*") as it:
        error(await ask(it, f"{tmp_path}/empty/cron"), 404)
        assert (await ask(it, "cron")).status_code == 200


def test_what_stands_for_the_star_cannot_leave_its_place():
    assert places_of(("https://h/pub/*",), "%2e%2e/x?y#z") == (
        "%2e%2e/x?y#z",
        ("https://h/pub/%252e%252e/x%3Fy%23z",),
    )
    for model in ("../x", "a/../x", "https://h/pub/../x", "//x", "https://other/pub/x"):
        assert places_of(("https://h/pub/*",), model)[1] == ()
    assert places_of(("hf://org/*", "/srv/*"), "org/a") == ("org/a", ("hf://org/a", "/srv/org/a"))
    assert places_of(("hf://org/*",), "org/a/b")[1] == ()


@pytest.mark.parametrize(
    "pattern",
    [
        "hf://my-org",
        "hf://org/repo/*",
        "s3://*/adapters",
        "s3://*",
        "ftp://host/*",
        "*",
        "/*",
        "a/*",
        "/a/../*",
    ],
)
def test_a_pattern_that_cannot_be_one_is_refused(pattern):
    model = {"id": "echo", "path": "none", "engine": "echo"}
    with pytest.raises(ConfigError, match="resolve"):
        parse_settings({"models": [model], "store": {"resolve": [pattern]}})


@pytest.mark.hostile
async def test_slow_names_keep_no_other_tenant_waiting(make_world, tmp_path, monkeypatch):
    keys = {who: new_key() for who in ("alice", "bob")}
    auth = {
        "enabled": True,
        "keys": [{"name": who, "sha256": key[1], "owner": who} for who, key in keys.items()],
    }

    def answer(request):
        if "slow" in request.path:
            server.gone.wait(20)
        else:
            request.send_error(404)

    with strange_server(answer) as server:
        store = {
            "data_dir": str(tmp_path / "data"),
            "sources": ["http"],
            "allow_private": True,
            "resolve": [f"{server.url}/*"],
            "resolve_patience_s": 5,
        }
        async with make_world(store=store, auth=auth) as it:

            def by(who: str, model: str):
                headers = {"authorization": f"Bearer {keys[who][0]}"}
                return it.client.post(
                    "/v1/chat/completions", json=chat(model), headers=headers, timeout=30
                )

            slow = [asyncio.create_task(by("alice", f"slow-{i}")) for i in range(3)]
            await until(lambda: len(server.asked) == 3, 30)
            assert error(await by("alice", "quick"), 503)["code"] == "being_fetched"
            error(await by("bob", "quick"), 404)
            # Of other places, too: half of what there is, at most.
            monkeypatch.setattr("deployments.ingress.resolver._MOST", 9)
            monkeypatch.setattr("deployments.ingress.resolver._MOST_IN_ALL", 6)
            assert error(await by("alice", "next"), 503)["code"] == "being_fetched"
            error(await by("bob", "next"), 404)
            monkeypatch.setattr("deployments.ingress.resolver._MOST_IN_ALL", 3)
            assert error(await by("bob", "other"), 503)["code"] == "being_fetched"
            for task in slow:
                assert error(await task, 503)["code"] == "being_fetched"
