"""Several Ray nodes, the chart's application on them, and what happens when a node goes."""

import json
import subprocess
import threading
import time
from collections import Counter

import httpx
import pytest
import yaml

from adapter_store.embedded import embedded_server
from tests.conftest import COMMAND, wait_until
from tests.ray_nodes import RayNodes, ray_nodes
from tests.test_serve import chat

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

CASE = "cpu-demo"
NAMES = ("cron", "sql", "git")
MODEL = {
    "id": "echo",
    "path": "none",
    "engine": "echo",
    "replicas": 2,
    "cpus_per_replica": 1,
    "node_labels": {"roundhouse/group": "cpu"},
    "lora": {"slots": 2, "host_entries": 4, "max_rank": 8},
    "engine_args": {"token_s": 0.02},
}
DEPLOYMENT = "Model-echo"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("nodes")


@pytest.fixture(scope="module")
def settings(folder):
    """What every cluster of these tests is given: the same store, the same files."""
    with embedded_server(folder / "store") as server:
        store = {"url": server.url, "data_dir": str(folder / "data"), "lease_s": 2}
        yield {
            "models": [MODEL],
            "http": {"ingress_replicas": 2},
            "router": {"replicas": 2},
            "store": store,
            "node_cache": {"path": str(folder / "node")},
        }


@pytest.fixture(scope="module")
def cluster(folder, settings):
    url = settings["store"]["url"]
    with ray_nodes(CASE, 1, folder, workers=2, redis_url=url, proxies="HeadOnly") as it:
        it.deploy(settings)
        it.wait_until_ready()
        yield it


@pytest.fixture(scope="module")
def newer(folder, settings):
    """A second cluster on the same store, as an upgrade makes one."""
    url = settings["store"]["url"]
    with ray_nodes(CASE, 2, folder, workers=1, redis_url=url, proxies="EveryNode") as it:
        it.deploy(settings | {"http": {}, "router": {}, "models": [MODEL | {"replicas": 1}]})
        it.wait_until_ready()
        yield it


@pytest.fixture
def adapters(cluster, make_adapter, tmp_path) -> None:
    """Three adapters, applied from a file as the chart's job does it."""
    entries = [
        {"name": name, "source": str(make_adapter(name, seed=i))} for i, name in enumerate(NAMES)
    ]
    file = tmp_path / "adapters.yaml"
    file.write_text(yaml.safe_dump({"adapters": entries}))
    apply(cluster, file)


def apply(cluster: RayNodes, file) -> None:
    words = ["adapters", "apply", "-f", file, "--ready-s", "60", "--url", cluster.url]
    done = subprocess.run([COMMAND, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def members(cluster: RayNodes) -> list[dict]:
    found = httpx.get(f"{cluster.url}/v1/cluster").json()["members"]
    return [member for member in found if member["kind"] == "replica"]


class Load:
    """Requests all the time within a block, and what came back.

    Attributes:
        lost: when those began that were not answered with 200, by the monotonic clock.
    """

    def __init__(self, cluster: RayNodes) -> None:
        self.statuses: Counter[int | str] = Counter()
        self.wrong: list[str] = []
        self.lost: list[float] = []
        self._url = cluster.url
        self._ended = threading.Event()
        self.threads = [threading.Thread(target=self._ask, args=(n,)) for n in NAMES * 2]

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self.threads:
            thread.join()

    def wait_for(self, more: int) -> None:
        """Until so many more answers have come."""
        enough = self.statuses.total() + more
        wait_until(lambda: self.statuses.total() >= enough)

    def is_right_for(self, more: int) -> bool:
        """Whether the next so many answers are all what was asked for."""
        before = Counter(self.statuses)
        self.wait_for(more)
        return set(self.statuses - before) == {200}

    def _ask(self, name: str) -> None:
        while not self._ended.wait(0.02):
            began = time.monotonic()
            try:
                # A connection each, as the many clients behind a load balancer have.
                body = chat("one two three", name)
                answer = httpx.post(f"{self._url}/v1/chat/completions", json=body, timeout=30)
            except httpx.TransportError as e:
                self.statuses[type(e).__name__] += 1
                self.lost.append(began)
                continue
            self.statuses[answer.status_code] += 1
            if answer.status_code != 200:
                self.lost.append(began)
                self.wrong.append(answer.text[:300])
            elif answer.headers["x-roundhouse-adapter"] != name:
                self.wrong.append(f"{name} asked for, {answer.headers}")


@pytest.mark.usefixtures("adapters")
def test_replicas_are_on_different_nodes_and_answer(cluster):
    on = cluster.replicas(DEPLOYMENT)
    assert len(set(on.values())) == 2, "one per node"
    assert cluster.nodes[0].ip not in on.values(), "the head serves nothing"
    assert {m["node"] for m in members(cluster)} == set(on.values())
    with Load(cluster) as asked:
        asked.wait_for(300)
    assert set(asked.statuses) == {200}, asked.wrong[:3]
    assert not asked.wrong


@pytest.mark.usefixtures("adapters")
def test_a_node_that_drains_hands_over_and_no_request_fails(cluster):
    before = cluster.replicas(DEPLOYMENT)
    cluster.join()
    leaving = next(n for n in cluster.nodes if n.ip == sorted(before.values())[0])
    with Load(cluster) as asked:
        asked.wait_for(100)
        leaving.drain()
        wait_until(lambda: leaving.process.poll() is not None, 90)
        wait_until(lambda: len(cluster.replicas(DEPLOYMENT)) == 2, 60)
        # The replacement holds adapters, too: those asked for were loaded there.
        wait_until(lambda: all(m["residency"]["slots"] for m in members(cluster)), 30)
        asked.wait_for(100)
    assert leaving.ip not in cluster.replicas(DEPLOYMENT).values()
    assert set(asked.statuses) == {200}, (asked.statuses, asked.wrong[:3])
    assert not asked.wrong


@pytest.mark.usefixtures("adapters")
def test_a_node_that_dies_under_load_is_replaced(cluster):
    before = cluster.replicas(DEPLOYMENT)
    dying = next(n for n in cluster.nodes if n.ip == sorted(before.values())[0])
    with Load(cluster) as asked:
        asked.wait_for(100)
        dying.lose_power()
        gone = time.monotonic()
        wait_until(lambda: _others(cluster, dying) == 2, 90)
        cluster.wait_until_ready()
        broken = Counter(asked.statuses)
        asked.wait_for(300)
        healed = asked.statuses - broken
    print(json.dumps({"while it healed": broken, "after": healed}))
    assert healed[200] > 20
    assert set(healed) == {200}, asked.wrong[-3:]
    # No more is lost than what was under way while the node went.
    assert not [began - gone for began in asked.lost if began > gone], asked.wrong


def _others(cluster: RayNodes, node) -> int:
    return sum(ip != node.ip for ip in cluster.replicas(DEPLOYMENT).values())


@pytest.mark.usefixtures("adapters")
def test_changed_settings_apply_in_place_and_replicas_grow_with_the_load(cluster, settings):
    cluster.join()
    before = set(cluster.replicas(DEPLOYMENT))
    grows = MODEL | {"max_replicas": 3, "scale_at": 0.01}
    with Load(cluster) as asked:
        cluster.deploy(settings | {"models": [grows]})
        wait_until(lambda: len(set(cluster.replicas(DEPLOYMENT)) - before) == 3, 120)
        wait_until(lambda: len(members(cluster)) == 3, 30)
    assert set(asked.statuses) == {200}, (asked.statuses, asked.wrong[:3])


@pytest.mark.usefixtures("adapters")
def test_two_clusters_on_one_store_serve_the_same_adapters_and_keep_apart(
    cluster, newer, make_adapter
):
    """What an upgrade is: the new cluster comes up beside the old one."""
    old_ids, new_ids = ({m["id"] for m in members(at)} for at in (cluster, newer))
    assert old_ids and new_ids and not old_ids & new_ids
    with Load(cluster) as asked, Load(newer) as asked_too:
        asked.wait_for(100)
        asked_too.wait_for(100)
        # What is changed through one is answered by the other.
        source = {"source": str(make_adapter("cron", seed=7)), "name": "cron"}
        wait = {"params": {"replace": True, "wait": True}, "timeout": 30}
        added = httpx.post(f"{newer.url}/v1/adapters", json=source, **wait)
        assert added.status_code == 201, added.text
        wanted = str(added.json()["aliases"]["stable"])
        wait_until(lambda: version_of_cron(cluster) == version_of_cron(newer) == wanted, 10)
    assert set(asked.statuses | asked_too.statuses) == {200}, asked.wrong + asked_too.wrong


def version_of_cron(at: RayNodes) -> str:
    answer = httpx.post(f"{at.url}/v1/chat/completions", json=chat("one", "cron"), timeout=30)
    return answer.headers["x-roundhouse-version"]


@pytest.mark.usefixtures("adapters")
def test_the_head_dies_and_requests_go_on_until_it_is_replaced(newer):
    """Ray's own state is in Redis; the old cluster stays beside, as it would."""
    before = newer.replicas(DEPLOYMENT)
    with Load(newer) as asked:
        asked.wait_for(50)
        newer.nodes[0].lose_power()
        time.sleep(1)  # connections that the head's own proxy had
        broken = Counter(asked.statuses)
        time.sleep(5)
        without = asked.statuses - broken
        assert set(without) == {200}, (without, asked.wrong[-3:])
        newer.restart_head()
        wait_until(lambda: newer.replicas(DEPLOYMENT) == before, 60)
        # Ray's new proxy on the head answers 404 until it knows the replicas; a load balancer waits
        # for its health, these clients do not.
        wait_until(newer.is_head_open, 60)
        wait_until(lambda: asked.is_right_for(100), 60)
        healed = Counter(asked.statuses)
        asked.wait_for(100)
        after = asked.statuses - healed
    print(json.dumps({"at first": broken, "without a head": without, "after": after}))
    assert set(after) == {200}, asked.wrong[-3:]
    assert {m["id"] for m in members(newer)} == {r for r in before}
