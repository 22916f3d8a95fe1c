"""A cluster for one machine is open neither to the network nor to the machine's other users."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from adapter_store.embedded import embedded_server
from cluster.settings import parse_settings
from deployments.command.private import close_to_others
from deployments.process.ray_options import ON_LOOPBACK
from tests.conftest import COMMAND, Running
from tests.local import reachable, readable

pytestmark = pytest.mark.hostile


def processes(running: Running) -> list[psutil.Process]:
    first = psutil.Process(running.process.pid)
    return [first, *first.children(recursive=True)]


@pytest.mark.ray
@pytest.mark.timeout(180)
def test_with_the_endpoint_on_loopback_everything_is(cluster, http):
    assert http.get("/readyz").status_code == 200
    found = processes(cluster)
    names = {process.name() for process in found}
    assert {"gcs_server", "raylet", "haproxy", "valkey-server"} <= names
    assert reachable(found) == []


@pytest.mark.ray
@pytest.mark.timeout(180)
def test_what_a_run_keeps_is_its_owners_to_read(cluster, make_adapter):
    cluster.command("adapters", "add", str(make_adapter("kept")))
    folder = cluster.config.parent
    assert cluster.folders
    for path in [*cluster.folders, folder / "data", folder / "node"]:
        assert path.is_dir()
        assert list(readable(path)) == []
    # Not because of the folder they are in alone: it may have been there before, and open.
    assert [p for p in (folder / "data").rglob("*") if p.stat().st_mode & 0o077] == []
    token = Path("~/.ray/auth_token").expanduser()
    assert list(readable(token)) == []


def test_ray_goes_by_the_name_that_says_where_its_nodes_listen():
    """Ray reads it once, as it is imported, and says so nowhere but in its sources."""
    code = "from ray.util import get_node_ip_address; print(get_node_ip_address())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=ON_LOOPBACK, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() in ("127.0.0.1", "::1")


def test_the_stores_file_is_closed_whoever_starts_it(tmp_path):
    with embedded_server(tmp_path / "store") as server:
        assert server.url.startswith("redis://:")
        files = list((tmp_path / "store" / "appendonlydir").iterdir())
        assert files
        assert all(not file.stat().st_mode & 0o077 for file in files)


def test_what_an_earlier_release_left_open_is_closed(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    data, node, token = tmp_path / "data", tmp_path / "node", tmp_path / ".ray" / "auth_token"
    folders = [data / name for name in ("store", "blobs", "uploads", "staging")] + [node]
    for folder in folders:
        folder.mkdir(parents=True, mode=0o755)
        (folder / "file").touch(0o644)
    token.parent.mkdir()
    token.touch(0o644)
    model = {"id": "m", "path": "p"}
    tree = {
        "models": [model],
        "store": {"data_dir": str(data)},
        "node_cache": {"path": str(node)},
    }
    close_to_others(parse_settings(tree))
    for path in [*folders, token]:
        assert list(readable(path)) == []
    assert token.stat().st_mode & 0o777 == 0o600


def test_a_folder_that_is_everybodys_stays_so(tmp_path):
    shared = tmp_path / "shm"
    shared.mkdir()
    shared.chmod(0o1777)
    model = {"id": "m", "path": "p"}
    store, cache = {"data_dir": str(tmp_path / "data")}, {"path": str(shared)}
    close_to_others(parse_settings({"models": [model], "store": store, "node_cache": cache}))
    assert shared.stat().st_mode & 0o7777 == 0o1777


def test_commands_write_for_their_owner_alone(tmp_path):
    settings = tmp_path / "roundhouse.yaml"
    settings.write_text(f"models: [{{id: m, path: p}}]\nstore: {{data_dir: {tmp_path / 'data'}}}\n")
    backup = tmp_path / "backup.tar"
    subprocess.run(
        [COMMAND, "store", "backup", str(backup), str(settings)],
        check=True,
        capture_output=True,
    )
    assert list(readable(backup)) == []
    assert list(readable(tmp_path / "data")) == []
