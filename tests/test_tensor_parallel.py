"""A cluster with a replica of two tensor-parallel workers, and what its adapters leave behind."""

import json
from pathlib import Path

import psutil
import pytest

from benchmarks.adapters import write_adapter
from deployments.replica.adapter_files import CHECKSUM, checksum
from tests.conftest import Running, running_cluster, wait_until
from tests.local import reachable
from tests.test_serve import replicas
from tests.tiny_model import write_tiny_model

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SLOTS, HOST = 2, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The model, and more adapters than a replica can hold."""
    folder = tmp_path_factory.mktemp("two-workers")
    shapes = write_tiny_model(folder / "model")
    for i in range(HOST + 2):
        write_adapter(folder / f"a{i}", shapes, 8, LINEAR, seed=i, spread=0.3)
        card = {"name": f"a{i}", "base_model": "tiny", "examples": [f"w{i}"]}
        (folder / f"a{i}" / "card.json").write_text(json.dumps(card))
    return folder


@pytest.fixture(scope="module")
def cluster(folder):
    model = {
        "id": "tiny",
        "path": str(folder / "model"),
        "tensor_parallel_size": 2,
        "cpus_per_replica": 0.5,
        "lora": {"slots": SLOTS, "host_entries": HOST, "max_rank": 8},
        "engine_args": {"dtype": "float32", "max_model_len": 256, "enforce_eager": True},
        "env": {"OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"},
    }
    preload = [str(folder / f"a{i}") for i in range(2)]
    with running_cluster(folder, {"models": [model], "preload": preload}, 250) as running:
        yield running


@pytest.fixture
def http(cluster: Running):
    with cluster.http() as client:
        yield client


def ask(http, model: str, **fields):
    body = {"model": model, "prompt": "w5 w6 w7", "max_tokens": 8, "temperature": 0, **fields}
    return http.post("/v1/completions", json=body)


def text(http, model: str) -> str:
    answer = ask(http, model)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


def workers(cluster: Running) -> list[psutil.Process]:
    children = psutil.Process(cluster.process.pid).children(recursive=True)
    return [p for p in children if "Worker_TP" in " ".join(p.cmdline()) + p.name()]


def mapped(cluster: Running) -> set[str]:
    """The prepared adapters that the engine's workers have in memory."""
    maps = (line.path for worker in workers(cluster) for line in worker.memory_maps())
    return {path for path in maps if path.endswith("prepared.safetensors")}


def test_two_workers_answer_and_each_adapter_differs(cluster, http):
    assert len(workers(cluster)) == 2
    answers = {name: text(http, name) for name in ("tiny", "a0", "a1")}
    assert len(set(answers.values())) == 3
    assert answers == {name: text(http, name) for name in answers}


@pytest.mark.hostile
def test_its_workers_talk_on_loopback(cluster):
    assert reachable(workers(cluster)) == []


def test_more_adapters_than_a_replica_holds_take_turns(cluster, http, folder):
    for i in range(2, HOST + 2):
        cluster.command("adapters", "add", str(folder / f"a{i}"))
    names = [f"a{i}" for i in range(HOST + 2)]
    first = {name: text(http, name) for name in names}
    assert len(set(first.values())) == len(names)
    assert {name: text(http, name) for name in reversed(names)} == first
    (replica,) = replicas(http)
    held = replica["residency"]
    assert len(held["slots"]) == SLOTS
    assert len(held["slots"]) + len(held["host"]) == HOST


def test_residency_says_where_a_request_found_its_adapter(http):
    names = [f"a{i}" for i in range(HOST + 2)]
    for name in names:
        text(http, name)

    def settled() -> bool:
        (replica,) = replicas(http)
        return names[-1] + "@1" in replica["residency"]["slots"]

    wait_until(settled)
    assert ask(http, names[-1]).headers["x-roundhouse-residency"] == "slot"
    (replica,) = replicas(http)
    (host,) = (key.partition("@")[0] for key in replica["residency"]["host"])
    assert ask(http, host).headers["x-roundhouse-residency"] == "host"
    held = replica["residency"]["slots"] + replica["residency"]["host"]
    gone = next(name for name in names if f"{name}@1" not in held)
    assert ask(http, gone).headers["x-roundhouse-residency"] == "node"


def damage(cluster: Running, folder: Path, *, with_checksum: bool) -> None:
    """Replace the prepared files that nobody has mapped."""
    for file in (folder / "node").glob("*/prepared.safetensors"):
        if str(file) not in mapped(cluster):
            file.unlink()
            file.write_bytes(b"rubbish")
            if with_checksum:
                (file.parent / CHECKSUM).write_text(checksum(file.parent))


def test_a_damaged_file_is_made_anew(cluster, http, folder):
    names = [f"a{i}" for i in range(HOST + 2)]
    answers = {name: text(http, name) for name in names}
    damage(cluster, folder, with_checksum=False)
    assert {name: text(http, name) for name in names} == answers


def test_a_file_that_both_workers_refuse_is_told_and_made_anew(cluster, http, folder):
    names = [f"a{i}" for i in range(HOST + 2)]
    answers = {name: text(http, name) for name in names}
    damage(cluster, folder, with_checksum=True)
    refusals = {}
    for name in names:
        answer = ask(http, name)
        if answer.status_code != 200:
            refusals[name] = answer
    assert len(refusals) >= 2, "those that were not held"
    for name, refused in refusals.items():
        assert refused.status_code == 503
        assert f"could not load {name}@1" in refused.json()["error"]["message"]
    assert {name: text(http, name) for name in names} == answers


def test_a_deleted_adapter_leaves_the_engine(cluster, http):
    text(http, "a0")
    (version,) = http.get("/v1/adapters/a0").json()["versions"]

    def is_mapped() -> bool:
        return any(version["digest"] in file for file in mapped(cluster))

    assert is_mapped()
    cluster.command("adapters", "rm", "a0")
    assert ask(http, "a0").status_code == 404

    def gone() -> bool:
        (replica,) = replicas(http)
        held = replica["residency"]
        return "a0@1" not in held["slots"] + held["host"]

    wait_until(gone)
    # Another adapter may have come into its room by now.
    assert not is_mapped(), "its memory is given back"


def test_status_says_why_a_deployment_does_not_run(cluster, http, folder):
    """The replica dies and cannot come back: its checkpoint is gone."""
    (folder / "model").rename(folder / "elsewhere")
    try:
        for worker in workers(cluster):
            worker.kill()

        def told() -> bool:
            said = cluster.command("status").stdout.replace("\n", " ")
            return "Model-tiny" in said and str(folder / "model") in said

        wait_until(told, timeout_s=150)
    finally:
        (folder / "elsewhere").rename(folder / "model")
    # Serve waits longer after each attempt that failed.
    wait_until(lambda: http.get("/readyz").status_code == 200, timeout_s=200)
    assert ask(http, "a1").status_code == 200
