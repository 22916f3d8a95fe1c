"""A Ray cluster of several nodes on this machine, each with an address and processes of its own.

They are started as the operator starts them in pods: `ray start --block`, with a token, the head
without CPUs; the application comes through the head's dashboard, as the rendered chart has it.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import yaml

from deployments.command.haproxy import our_haproxy
from deployments.process.ray_options import beside_others
from deployments.proxy.command import HAPROXY_AT
from tests.chart import ray_groups, ray_service, variables
from tests.conftest import COMMAND, free_port, wait_until

RAY = COMMAND.with_name("ray")
APP = "roundhouse"
_OBJECT_STORE_BYTES = 100 * 2**20


class Node:
    """One node: `ray start --block` and all below it."""

    def __init__(self, ip: str, words: list[str], environment: dict[str, str], log: Path) -> None:
        self.ip = ip
        self.log = log
        command = [RAY, "start", "--block", "--node-ip-address", ip, *words]
        command += ["--object-store-memory", str(_OBJECT_STORE_BYTES)]
        command += ["--dashboard-agent-listen-port", str(free_port())]
        # As bash runs it in a pod: the process that gets the pod's SIGTERM is Ray's.
        with log.open("ab") as out:
            self.process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)

    def drain(self) -> None:
        """What a pod is told when it is to go."""
        self.process.send_signal(signal.SIGTERM)

    def lose_power(self) -> None:
        """End every process at once, without a farewell; they are gone when this returns."""
        processes: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            mother = psutil.Process(self.process.pid)
            processes = [*mother.children(recursive=True), mother]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(30)
        wait_until(lambda: all(_is_gone(process) for process in processes), 30)


def _is_gone(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess, FileNotFoundError):
        # Whoever adopts it may never ask how it ended. Its sockets are closed when the last of its
        # threads has ended, which the first one's being a zombie does not tell.
        threads = len(list(Path(f"/proc/{process.pid}/task").iterdir()))
        return process.status() == psutil.STATUS_ZOMBIE and threads == 1
    return True


class RayNodes:
    """A head and its workers."""

    def __init__(
        self, case: str, network: int, folder: Path, *, redis_url: str, proxies: str
    ) -> None:
        """
        Args:
            case: one of the chart's renderings.
            network: tells the addresses of clusters apart.
            redis_url: where Ray keeps its own state.
            proxies: Serve's `proxy_location`. The nodes share this machine's ports: `HeadOnly` has
                one proxy stand for the Kubernetes Service; with `EveryNode` a connection goes to
                any of them.
        """
        self._case = case
        self._proxies = proxies
        self._network = network
        self._folder = folder
        self._temp = Path(tempfile.mkdtemp(prefix="rh-"))
        self._gcs, self._dashboard, self.port = free_port(), free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        token = "t" * 40
        # The pods' own variables, those aside that Kubernetes fills in.
        pod = variables(ray_groups(case)[0]["template"])
        given = {name: v["value"] for name, v in pod.items() if "value" in v}
        given |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        # As the operator sets them from `gcsFaultToleranceOptions`.
        redis = urlsplit(redis_url)
        self._password = redis.password or ""
        given |= {
            "RAY_REDIS_ADDRESS": f"{redis.hostname}:{redis.port}",
            "RAY_external_storage_namespace": f"cluster-{network}",
            "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
        }
        given.pop("ROUNDHOUSE_STORE__URL")
        # All nodes are on this machine: a port of the proxy's is one port for all of them.
        given |= beside_others(self._temp)
        given |= {HAPROXY_AT: str(our_haproxy()), "SERVE_SOCKET_REUSE_PORT_ENABLED": "1"}
        self._environment = {**os.environ, **given, "HF_HOME": str(folder / "hub")}
        self._http = httpx.Client(
            base_url=f"http://{self._ip(1)}:{self._dashboard}",
            headers={"authorization": f"Bearer {token}"},
            timeout=60,
        )
        self.nodes: list[Node] = []

    def start(self, workers: int) -> None:
        self.nodes.append(self._head())
        wait_until(self._answers, 60)
        for _ in range(workers):
            self.join()

    def restart_head(self) -> None:
        """Another head in the place of the one that has gone."""
        # A new pod does not know that there was one at its address.
        (self._temp / "ray_current_cluster").unlink()
        self.nodes[0] = self._head()
        wait_until(self._answers, 60)

    def join(self) -> Node:
        """One more worker, of the first group of the chart."""
        words = ["--address", f"{self._ip(1)}:{self._gcs}", "--num-cpus", "3"]
        words += ["--labels", "roundhouse/group=cpu"]
        node = self._node(len(self.nodes) + 1, words)
        self.nodes.append(node)
        wait_until(lambda: node.ip in self._alive(), 60)
        return node

    def deploy(self, settings: dict[str, Any]) -> None:
        """Hand the chart's `serveConfigV2` to Ray, as the operator does.

        Args:
            settings: put over those of the chart.
        """
        config = yaml.safe_load(ray_service(self._case)["spec"]["serveConfigV2"])
        config["http_options"] |= {"port": self.port}
        config["proxy_location"] = self._proxies
        (application,) = config["applications"]
        application["args"] |= settings
        answer = self._http.put("/api/serve/applications/", json=config)
        assert answer.status_code == 200, answer.text

    def replicas(self, deployment: str) -> dict[str, str]:
        """Address of the node by replica, of those that run."""
        found = self._application()["deployments"].get(deployment, {})
        return {
            r["replica_id"]: r["node_ip"]
            for r in found.get("replicas", ())
            if r["state"] == "RUNNING"
        }

    def is_head_open(self) -> bool:
        """Whether the proxy of the head that is there now listens; it starts after the replicas are
        known."""
        head = self._alive()[self._ip(1)]
        proxies = self._http.get("/api/serve/applications/").json()["proxies"]
        return proxies.get(head, {}).get("status") == "HEALTHY"

    def wait_until_ready(self, timeout_s: float = 90) -> None:
        deadline = time.monotonic() + timeout_s
        while not self._is_ready():
            assert time.monotonic() < deadline, self._application()
            time.sleep(0.2)

    def stop(self) -> None:
        for node in reversed(self.nodes):
            node.lose_power()
        self._http.close()
        shutil.rmtree(self._temp, ignore_errors=True)

    def _alive(self) -> dict[str, str]:
        """Id of the node by address, of those that live."""
        found = self._http.get("/nodes", params={"view": "summary"}).json()["data"]["summary"]
        raylets = [node["raylet"] for node in found]
        return {r["nodeManagerAddress"]: r["nodeId"] for r in raylets if r["state"] == "ALIVE"}

    def _application(self) -> dict[str, Any]:
        """As Serve describes it."""
        return self._http.get("/api/serve/applications/").json()["applications"][APP]

    def _head(self) -> Node:
        words = ["--head", "--port", str(self._gcs), "--num-cpus", "0"]
        words += ["--dashboard-host", self._ip(1), "--dashboard-port", str(self._dashboard)]
        words += ["--temp-dir", str(self._temp), "--redis-password", self._password]
        return self._node(1, words)

    def _node(self, number: int, words: list[str]) -> Node:
        ip = self._ip(number)
        return Node(ip, words, self._environment, self._folder / f"{ip}.log")

    def _ip(self, number: int) -> str:
        return f"127.0.{self._network}.{number}"

    def _answers(self) -> bool:
        head = self.nodes[0]
        assert head.process.poll() is None, head.log.read_text()[-4000:]
        with suppress(httpx.TransportError):
            return self._http.get("/api/version").status_code == 200
        return False

    def _is_ready(self) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/readyz").status_code == 200
        return False


@contextmanager
def ray_nodes(
    case: str, network: int, folder: Path, *, workers: int, redis_url: str, proxies: str
) -> Iterator[RayNodes]:
    it = RayNodes(case, network, folder, redis_url=redis_url, proxies=proxies)
    try:
        it.start(workers)
        yield it
    finally:
        it.stop()
