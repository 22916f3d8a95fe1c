"""`roundhouse adapters apply`: the command against the real HTTP surface and a real store."""

import asyncio
import json
from contextlib import asynccontextmanager

import httpx
import pytest
import uvicorn
import yaml
from typer.testing import CliRunner

from cluster.errors import RoundhouseError
from deployments.command.cli import app
from tests.conftest import free_port

pytestmark = pytest.mark.redis


class Endpoint:
    """The endpoint, and the command asked of it."""

    def __init__(self, port: int, client: httpx.AsyncClient | None = None) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.client = client

    async def apply(self, file, *flags: str):
        """Exit code and what was printed; the message when the command refused."""
        words = ["adapters", "apply", "-f", str(file), "--url", self.url, *flags]
        result = await asyncio.to_thread(CliRunner().invoke, app, words)
        if isinstance(result.exception, RoundhouseError):
            return 1, result.exception.message
        return result.exit_code, " ".join(result.stdout.split())

    async def adapters(self) -> dict[str, dict]:
        names = [a["name"] for a in (await self.client.get("/v1/adapters")).json()["data"]]
        return {name: (await self.client.get(f"/v1/adapters/{name}")).json() for name in names}


@pytest.fixture
def endpoint(make_world):
    @asynccontextmanager
    async def serve(**settings):
        port = free_port()
        async with make_world(**settings) as it:
            config = uvicorn.Config(it.app, port=port, log_level="error", lifespan="off")
            server = uvicorn.Server(config)
            serving = asyncio.create_task(server.serve())
            try:
                while not server.started:
                    await asyncio.sleep(0.01)
                yield Endpoint(port, it.client)
            finally:
                server.should_exit = True
                await serving

    return serve


@pytest.fixture
def manifest(tmp_path):
    """Writes the file; keyword arguments are its adapters, by name."""

    def write(set_: str = "default", **adapters: dict):
        file = tmp_path / "adapters.yaml"
        entries = [{"name": name, **fields} for name, fields in adapters.items()]
        file.write_text(yaml.safe_dump({"set": set_, "adapters": entries}))
        return file

    return write


async def test_what_is_declared_is_registered_and_a_second_time_left_alone(
    endpoint, manifest, make_adapter
):
    cron = {"source": str(make_adapter("cron")), "tags": ["time"], "metadata": {"team": "a"}}
    asked = [{"prompt": "hello", "expected": "hello"}]
    sql = {"source": str(make_adapter("sql", seed=2)), "pinned": True, "evaluation": asked}
    async with endpoint() as at:
        file = manifest(cron=cron, sql=sql)
        assert (await at.apply(file))[0] == 0
        first = await at.adapters()
        assert set(first) == {"cron", "sql"}
        assert first["cron"]["tags"] == ["time"]
        assert first["cron"]["metadata"]["team"] == "a"
        assert first["sql"]["pinned"] is True
        code, said = await at.apply(file)
        assert (code, said) == (0, "0 changes made, 2 of 2 adapters as they should be")
        assert await at.adapters() == first


async def test_any_name_is_applied_and_pruned(endpoint, manifest, make_adapter):
    name, source = "Org/[b]ü[/b] a?b#c%2F:cat:", str(make_adapter("cron"))
    async with endpoint() as at:
        file = manifest(**{name: {"source": source}})
        assert await at.apply(file) == (
            0,
            f"+ {name}: from {source} 1 change made, 0 of 1 adapters as they should be",
        )
        assert (await at.apply(file))[1].startswith("0 changes made, 1 of 1")
        edited = manifest(**{name: {"source": source, "description": "new"}})
        assert f"~ {name}: description" in (await at.apply(edited))[1]
        assert f"- {name}" in (await at.apply(manifest(), "--prune"))[1]
        assert await at.adapters() == {}


async def test_an_edit_in_the_file_or_by_hand_is_brought_in_line_without_a_new_version(
    endpoint, manifest, make_adapter
):
    source = str(make_adapter("cron"))
    async with endpoint() as at:
        await at.apply(manifest(cron={"source": source, "description": "one"}))
        await at.client.patch("/v1/adapters/cron", json={"description": "by hand"})
        wanted = manifest(cron={"source": source, "description": "two"})
        assert "~ cron: description" in (await at.apply(wanted))[1]
        cron = (await at.adapters())["cron"]
        assert cron["description"] == "two"
        assert len(cron["versions"]) == 1


async def test_other_weights_are_a_new_version_by_the_rollout_that_the_file_asks_for(
    endpoint, manifest, make_adapter
):
    rollout = {"percent": [50], "gate": False}
    async with endpoint() as at:
        await at.apply(manifest(cron={"source": str(make_adapter("cron"))}))
        changed = {"source": str(make_adapter("cron", seed=2)), "rollout": rollout}
        code, said = await at.apply(manifest(cron=changed))
        assert code == 0, said
        assert "~ cron: a version from" in said
        cron = (await at.adapters())["cron"]
        assert cron["aliases"] == {"latest": 2, "stable": 1}
        assert cron["rollout"]["percents"] == [50]
        # What broke off before it was marked is done again, the rollout not hurried.
        mark = {"applied": {"set": "default", "origin": "of before"}}
        await at.client.patch("/v1/adapters/cron", json={"metadata": mark})
        assert (await at.apply(manifest(cron=changed)))[0] == 0
        assert (await at.adapters())["cron"]["rollout"]["version"] == 2
        # It holds its share until somebody decides; applying again does not begin anew.
        assert "0 changes made" in (await at.apply(manifest(cron=changed)))[1]


async def test_the_file_wins_over_a_rollout_of_other_weights(endpoint, manifest, make_adapter):
    """As after a revert in git: the version that is on its way must not take over after all."""
    rollout = {"percent": [50, 100], "step_s": 600, "gate": False}
    first = {"source": str(make_adapter("cron")), "rollout": rollout}
    second = {"source": str(make_adapter("cron", seed=2)), "rollout": rollout}
    third = {"source": str(make_adapter("cron", seed=3))}
    async with endpoint() as at:
        await at.apply(manifest(cron=first))
        await at.apply(manifest(cron=second))
        assert (await at.adapters())["cron"]["rollout"]["version"] == 2
        code, said = await at.apply(manifest(cron=first))
        assert code == 0, said
        cron = (await at.adapters())["cron"]
        assert (cron["rollout"], cron["aliases"]["stable"]) == (None, 1)
        await at.apply(manifest(cron=second))
        # In a hurry, without steps.
        assert (await at.apply(manifest(cron=third)))[0] == 0
        cron = (await at.adapters())["cron"]
        assert (cron["rollout"], cron["aliases"]["stable"]) == (None, 3)


async def test_an_adapter_of_another_set_is_taken_with_a_word(endpoint, manifest, make_adapter):
    cron = {"source": str(make_adapter("cron"))}
    async with endpoint() as at:
        await at.apply(manifest("team-a", cron=cron))
        assert "taken from the set team-a" in (await at.apply(manifest("team-b", cron=cron)))[1]
        assert "0 changes" in (await at.apply(manifest("team-b", cron=cron)))[1]


async def test_a_rollback_is_not_undone_by_the_next_apply(endpoint, manifest, make_adapter):
    async with endpoint() as at:
        await at.apply(manifest(cron={"source": str(make_adapter("cron"))}))
        second = manifest(cron={"source": str(make_adapter("cron", seed=2))})
        await at.apply(second)
        await at.client.post("/v1/adapters/cron/rollback", json={})
        await at.apply(second)
        assert (await at.adapters())["cron"]["aliases"]["stable"] == 1


async def test_a_dry_run_tells_the_difference_and_makes_none(endpoint, manifest, make_adapter):
    kept = {"source": str(make_adapter("kept"))}
    async with endpoint() as at:
        await at.apply(manifest(kept=kept, gone={"source": str(make_adapter("gone", seed=2))}))
        before = await at.adapters()
        new = {"source": str(make_adapter("new", seed=3))}
        flags = ("--dry-run", "--prune")
        code, said = await at.apply(manifest(kept=kept | {"tags": ["x"]}, new=new), *flags)
        assert code == 0
        assert "~ kept: tags" in said
        assert "+ new: from" in said
        assert "- gone" in said
        assert "3 changes to make" in said
        assert await at.adapters() == before


async def test_pruning_removes_what_the_set_no_longer_has_and_nothing_else(
    endpoint, manifest, make_adapter
):
    async with endpoint() as at:
        by_hand = {"source": str(make_adapter("by-hand", seed=5)), "name": "by-hand"}
        assert (await at.client.post("/v1/adapters", json=by_hand)).status_code == 201
        others = {"source": str(make_adapter("others", seed=4))}
        await at.apply(manifest("team-b", others=others))
        one = {"source": str(make_adapter("one"))}
        two = {"source": str(make_adapter("two", seed=2))}
        await at.apply(manifest(one=one, two=two))
        await at.apply(manifest(one=one))
        assert set(await at.adapters()) == {"by-hand", "others", "one", "two"}
        code, said = await at.apply(manifest(one=one), "--prune")
        assert (code, "- two" in said) == (0, True)
        assert set(await at.adapters()) == {"by-hand", "others", "one"}


async def test_one_that_is_refused_keeps_no_other_out_and_is_told(endpoint, manifest, make_adapter):
    bad = {"source": str(make_adapter("bad", seed=2)), "sha256": "0" * 64}
    async with endpoint() as at:
        file = manifest(bad=bad, good={"source": str(make_adapter("good"))})
        code, said = await at.apply(file)
        assert code == 1
        assert "failed + bad" in said
        assert "sha256" in said
        assert set(await at.adapters()) == {"good"}
        # What failed is tried again, and told again.
        assert (await at.apply(file))[0] == 1


@pytest.mark.parametrize(
    ("entries", "field"),
    [
        ([{"name": "cron", "source": "s3://b/k", "tag": "x"}], "adapters[0].tag"),
        ([{"name": "cron"}], "adapters[0].source"),
        ([{"name": "cron@1", "source": "s3://b/k"}], "adapters[0].name"),
        ([{"name": "a", "source": "s3://b/k", "tags": [""]}], "adapters[0].tags[0]"),
        ([{"name": "a", "source": "s3://b/k"}] * 2, "named twice"),
        ([{"name": "a", "source": "no/such/folder"}], "does not exist"),
        ([{"name": "a", "source": "s3://b/k", "promote": False}], "adapters[0].promote"),
        ([{"name": "a", "source": ""}], "adapters[0].source"),
        ([{"name": "a", "source": "s3://b/k", "metadata": {"applied": 1}}], "applied"),
        ({"a": 1}, "adapters"),
    ],
)
async def test_a_wrong_file_changes_nothing_and_names_the_field(tmp_path, endpoint, entries, field):
    file = tmp_path / "adapters.yaml"
    file.write_text(yaml.safe_dump({"adapters": entries}))
    async with endpoint() as at:
        code, said = await at.apply(file)
        assert code == 1
        assert field in said
        assert await at.adapters() == {}


async def test_a_key_that_is_there_twice_is_refused(tmp_path, endpoint):
    """A bad merge: YAML would take the second list, and pruning would remove the first one's."""
    file = tmp_path / "adapters.yaml"
    file.write_text("adapters: []\nadapters: []\n")
    async with endpoint() as at:
        code, said = await at.apply(file, "--prune")
        assert (code, "'adapters' is there twice" in said) == (1, True), said


async def test_it_waits_for_the_endpoint_and_says_when_it_waited_too_long(manifest):
    nobody = Endpoint(free_port())
    code, said = await nobody.apply(manifest(), "--ready-s", "1.5")
    assert code == 1
    assert "not ready within 2 s" in said


async def test_json_is_for_scripts(endpoint, manifest, make_adapter):
    async with endpoint() as at:
        file = manifest(cron={"source": str(make_adapter("cron"))})
        _, said = await at.apply(file, "--dry-run", "--json")
        (change,) = json.loads(said)["changes"]
        assert (change["kind"], change["name"]) == ("register", "cron")
