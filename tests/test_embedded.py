import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import redis

from adapter_store.embedded import embedded_server
from cluster.errors import ConfigError

pytestmark = pytest.mark.redis

OWNER = """
import sys, time
from pathlib import Path
from adapter_store.embedded import embedded_server
with embedded_server(Path(sys.argv[1])) as server:
    print(server.url, flush=True)
    time.sleep(60)
"""


def test_data_survive_a_restart(tmp_path: Path):
    with embedded_server(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        client.set("kept", "yes")
    with embedded_server(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        assert client.get("kept") == b"yes"


def test_it_wants_its_password(tmp_path: Path):
    with embedded_server(tmp_path) as server:
        port = int(server.url.rpartition(":")[2].split("/")[0])
        with (
            redis.Redis(port=port) as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.ping()


def test_one_folder_has_one_server(tmp_path: Path):
    with (
        embedded_server(tmp_path),
        pytest.raises(ConfigError, match="in use by another store server"),
        embedded_server(tmp_path),
    ):
        pass


def test_acknowledged_writes_outlive_kill_9_and_nothing_is_orphaned(tmp_path: Path):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    url = owner.stdout.readline().strip()
    (server,) = psutil.Process(owner.pid).children()
    with redis.Redis.from_url(url) as client:
        client.set("acknowledged", "1")
        server.kill()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    with embedded_server(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        assert client.get("acknowledged") == b"1"


def test_a_server_that_died_comes_back_at_the_same_address_with_its_data(tmp_path: Path):
    with embedded_server(tmp_path) as server:
        with redis.Redis.from_url(server.url) as client:
            client.set("kept", "yes")
            assert not server.revive()
            server.kill()
        assert server.revive() == "killed by SIGKILL"
        with redis.Redis.from_url(server.url) as client:
            assert client.get("kept") == b"yes"


def test_the_server_ends_with_its_owner(tmp_path: Path):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    owner.stdout.readline()
    (server,) = psutil.Process(owner.pid).children()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 5
    while server.is_running() and server.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the server outlived its owner"
        time.sleep(0.05)
