"""The whole application on Ray Serve with echo engines, started and driven by the real command."""

import itertools
import json
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from tests.conftest import ECHO, Running, start_cluster, temporary_folders, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]


def chat(text: str, model: str = "echo", **fields) -> dict:
    return {"model": model, "messages": [{"role": "user", "content": text}]} | fields


def add(http, folder: Path) -> dict:
    """Register a version and wait until all have taken it in, as the command does."""
    wait = {"replace": True, "wait": True}
    answer = http.post("/v1/adapters", json={"source": str(folder)}, params=wait)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


def replicas(http) -> list[dict]:
    members = http.get("/v1/cluster").json()["members"]
    return [m for m in members if m["kind"] == "replica"]


def family(running: Running) -> list[psutil.Process]:
    return psutil.Process(running.process.pid).children(recursive=True)


def alive(processes: list[psutil.Process]) -> list[str]:
    found = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.NoSuchProcess:
            continue
    return found


@contextmanager
def nothing_left_behind(running: Running) -> Iterator[None]:
    """By a cluster that is ended in the block."""
    processes, others = family(running), temporary_folders() - running.folders
    assert len(processes) > 5
    assert running.folders
    yield
    wait_until(lambda: not alive(processes), timeout_s=30)
    wait_until(lambda: temporary_folders() <= others)
    nothing = running.command("down", str(running.config))
    assert "nothing was running" in nothing.stdout


# Those that end a cluster are where another one is needed anyway, or none any more.


@pytest.mark.slow
def test_killed_at_once_it_leaves_nothing_behind(locked):
    with nothing_left_behind(locked):
        locked.process.kill()
        locked.process.wait()


@pytest.mark.slow
def test_down_leaves_nothing_behind_and_a_restart_keeps_what_was_changed_since(
    cluster, http, standing, make_adapter
):
    """`preload` fills in what is missing; it does not put old weights back."""
    assert http.get("/v1/adapters/moved").json()["aliases"]["stable"] == 1
    cluster.command("adapters", "add", str(make_adapter("moved", seed=1)))
    with nothing_left_behind(cluster):
        cluster.command("down", str(cluster.config))
        assert cluster.process.wait(10) == 0
    with standing.up().http() as again:
        answer = again.post("/v1/chat/completions", json=chat("x", "moved"))
        assert answer.headers["x-roundhouse-version"] == "2"


def test_it_is_ready_with_all_its_parts(http):
    assert http.get("/readyz").json() == {"status": "ready"}
    snapshot = http.get("/v1/cluster").json()
    assert snapshot["store"] == "ok"
    assert sorted(m["kind"] for m in snapshot["members"]) == [
        "ingress",
        "ingress",
        "replica",
        "replica",
        "router",
    ]


def test_an_adapter_added_from_the_command_line_serves_at_once(cluster, http, make_adapter):
    examples = ["every weekday at half past nine", "each hour", "sundays at midnight"]
    folder = make_adapter("cron", examples=examples, description="[bold]cron lines[/bold]")
    added = cluster.command("adapters", "add", str(folder))
    assert "registered cron@1" in added.stdout
    answer = http.post("/v1/chat/completions", json=chat("every friday at ten", "auto"))
    assert answer.headers["x-roundhouse-adapter"] == "cron"
    assert answer.headers["x-roundhouse-residency"] == "slot"
    assert all("cron@1" in r["residency"]["slots"] for r in replicas(http))
    assert answer.headers.get_list("x-request-id") == [answer.headers["x-request-id"]]


@pytest.mark.hostile
def test_bytes_that_no_header_should_have_are_no_500(http):
    """Ray Serve reads some of them before our application does."""
    names = ("x-request-id", "authorization", "x-request-timeout-seconds", "x-session-id")
    names += ("x-request-disconnect-disabled", "serve-multiplexed-model-id", "traceparent")
    names += ("x-roundhouse-priority", "x-roundhouse-adapters", "accept", "origin")
    for name in names:
        body = chat("one", "echo", max_tokens=1)
        answer = http.post("/v1/chat/completions", json=body, headers={name: b"\xff\xfe caf\xe9"})
        assert answer.status_code in (200, 400, 403), (name, answer.text)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-request-id"].isascii()
    error = http.get("/v1/models", headers={"host": "evil.example"})
    assert error.json()["error"]["code"] == "host_not_allowed"
    for probe in ("/-/healthz", "/healthz", "/readyz"):
        assert http.get(probe, headers={"host": "a.pod"}).status_code == 200


def test_the_commands_show_what_is_there(cluster, http, make_adapter):
    cluster.command("adapters", "add", str(make_adapter("shown", description="[b]text[/b]")))
    assert "[b]text[/b]" in cluster.command("adapters", "list").stdout
    listed = json.loads(cluster.command("adapters", "list", "--json").stdout)
    assert "shown" in [a["name"] for a in listed]
    shown = json.loads(cluster.command("adapters", "show", "shown", "--json").stdout)
    assert shown["aliases"] == {"latest": 1, "stable": 1}
    assert "shown@1" in cluster.command("status").stdout
    assert "candidate" in cluster.command("route", "every friday at ten").stdout
    said = cluster.command("chat", "one two", "--model", "echo").stdout
    assert "base (explicit)" in said
    assert "one two" in said
    cluster.command("adapters", "rm", "shown")
    gone = cluster.command("adapters", "show", "shown", check=False)
    assert gone.returncode == 1
    assert "does not exist" in gone.stderr
    wait_until(lambda: all("shown@1" not in r["residency"]["slots"] for r in replicas(http)))


def test_rules_of_the_command_line_hold_at_all_ingresses_within_a_second(cluster, http, tmp_path):
    file = tmp_path / "rules.yaml"
    file.write_text("- {name: plain, when: {header: {x-app: kids}}, base_model: true}")
    kids = {"headers": {"x-app": "kids"}, "json": {"input": "every friday at ten"}}
    assert "rules that hold: 1" in cluster.command("rules", "set", str(file)).stdout

    def rules_of_ten() -> list[str]:
        return [http.post("/v1/route", **kids).json()["decisions"][0]["rule"] for _ in range(10)]

    wait_until(lambda: rules_of_ten() == ["plain"] * 10, timeout_s=1)
    said = cluster.command("route", "every friday at ten", "--header", "x-app: kids").stdout
    assert "by the rule 'plain'" in said
    assert "name: plain" in cluster.command("rules", "show").stdout
    cluster.command("rules", "reset")
    wait_until(lambda: rules_of_ten() == [""] * 10, timeout_s=1)


def test_a_cold_adapter_is_loaded_once_and_found_again(http, make_adapter):
    # Of ten, eight fit: the last ones are at most where they were tried.
    names = [f"cold-{i}" for i in range(10)]
    for name in names:
        add(http, make_adapter(name))
    answers = [http.post("/v1/chat/completions", json=chat("x", names[-1])) for _ in range(6)]
    assert len({a.headers["x-roundhouse-replica"] for a in answers}) == 1
    assert [a.headers["x-roundhouse-residency"] for a in answers[1:]] == ["slot"] * 5


def test_losing_the_planner_changes_nothing_for_requests(cluster, http, make_adapter):
    add(http, make_adapter("planned"))

    def plan() -> dict:
        # Demand is what plans are made of.
        assert http.post("/v1/chat/completions", json=chat("x", "planned")).status_code == 200
        return http.get("/v1/cluster").json()["plan"] or {}

    wait_until(lambda: "planned" in plan().get("models", {}).get("echo", {}).get("holders", {}))
    first = plan()["leader"]
    (planner,) = [p for p in family(cluster) if "Planner" in " ".join(p.cmdline())]
    planner.kill()
    http.post("/v1/adapters", json={"source": str(make_adapter("later")), "base_model": "echo"})
    assert http.post("/v1/chat/completions", json=chat("x", "later")).status_code == 200
    wait_until(lambda: plan()["leader"] != first, timeout_s=60)


def test_who_cannot_wait_is_told_when_to_come_back(http):
    """Two replicas with two places each, and a queue before them."""
    slow = " ".join(["word"] * 150)  # 1.5 s
    late = {"x-roundhouse-first-token-s": "0.3"}
    with ThreadPoolExecutor(8) as pool:
        running = [
            pool.submit(http.post, "/v1/chat/completions", json=chat(slow, stream=False))
            for _ in range(8)
        ]
        time.sleep(0.5)
        refused = http.post("/v1/chat/completions", json=chat("x"), headers=late)
        patient = http.post("/v1/chat/completions", json=chat("x"))
        assert [r.result().status_code for r in running] == [200] * 8
    assert refused.status_code == 429
    assert "too late" in refused.json()["error"]["message"] or "in time" in refused.text
    assert int(refused.headers["retry-after"]) >= 1
    assert patient.status_code == 200


def test_a_new_version_takes_over_and_the_old_one_still_answers_by_number(http, make_adapter):
    for seed in (0, 1):
        add(http, make_adapter("moving", seed=seed))
    latest = http.post("/v1/chat/completions", json=chat("x", "moving"))
    assert latest.headers["x-roundhouse-version"] == "2"
    old = http.post("/v1/chat/completions", json=chat("x", "moving@1"))
    assert old.headers["x-roundhouse-version"] == "1"


def test_not_one_request_fails_while_versions_change_under_load(cluster, http, make_adapter):
    """New versions, rollouts, a canary, rollbacks and removals, with 3 clients asking all along."""
    questions = [{"prompt": "hi there", "expected": "hi there"}]
    folders = [make_adapter("busy", seed=seed, evaluation=questions) for seed in range(4)]
    add(http, folders[0])
    answered, failures = itertools.count(), []
    versions: set[str] = set()
    ended, enough = threading.Event(), threading.Event()

    def ask() -> None:
        with cluster.http() as client:
            while not (ended.is_set() and enough.is_set()):
                answer = client.post("/v1/chat/completions", json=chat("a", "busy"))
                if answer.status_code != 200:
                    failures.append(answer.text)
                versions.add(answer.headers.get("x-roundhouse-version"))
                if next(answered) >= 2000:
                    enough.set()

    with ThreadPoolExecutor(3) as pool:
        clients = [pool.submit(ask) for _ in range(3)]
        try:
            for round_ in range(6):
                # The first one is stable between the rounds.
                body = {"source": str(folders[1 + round_ % 3]), "promote": round_ % 2 == 0}
                http.put("/v1/adapters/busy?wait=true", json=body).raise_for_status()
                if not body["promote"]:
                    share = {"percent": [50, 100], "step_s": 0.5}
                    http.post("/v1/adapters/busy/rollout?wait=true", json=share).raise_for_status()
                http.post("/v1/adapters/busy/rollback?wait=true").raise_for_status()
        finally:
            ended.set()
        for client in clients:
            client.result()
    assert failures == []
    assert len(versions) >= 3


def test_adapters_are_managed_from_the_command_line(cluster, make_adapter, tmp_path):
    """Upload, a version that waits, a failed and a passed rollout, a rollback, removal."""
    questions = tmp_path / "questions.jsonl"
    asked = [{"prompt": f"q {i}", "expected": f"a {i}"} for i in range(4)]
    questions.write_text("\n".join(json.dumps(q) for q in asked))
    knows = {"echo_answers": {q["prompt"]: q["expected"] for q in asked}}
    first = make_adapter("managed", config=knows)
    cluster.command("adapters", "add", str(first), "--upload", "--evaluation", str(questions))
    worse = make_adapter("managed", seed=1)
    waiting = cluster.command("adapters", "add", str(worse), "--no-promote")
    assert "still answered by version 1" in waiting.stdout
    failed = cluster.command("adapters", "rollout", "managed", check=False)
    assert failed.returncode == 1
    assert "rolled back: accuracy fell from 1.000 to 0.000" in failed.stdout
    cluster.command("adapters", "rollout", "managed", "--no-gate")
    back = cluster.command("adapters", "rollback", "managed")
    assert "managed is answered by version 1" in back.stdout
    cluster.command("adapters", "alias", "managed", "blue", "1")
    assert "blue" in cluster.command("adapters", "show", "managed").stdout
    cluster.command("adapters", "edit", "managed", "--tag", "t", "--replicas", "1")
    listed = json.loads(cluster.command("adapters", "list", "--tag", "t", "--json").stdout)
    assert [(a["name"], a["replicas"]) for a in listed] == [("managed", 1)]
    cluster.command("adapters", "rm", "managed@2")
    stale = cluster.command("adapters", "edit", "managed", "--pin", "--revision", "1", check=False)
    assert "changed meanwhile" in stale.stderr


def test_backup_and_tidying_work_beside_a_running_cluster(cluster, http, make_adapter, tmp_path):
    add(http, make_adapter("saved"))
    config, file = str(cluster.config), tmp_path / "backup.tar"
    made = cluster.command("store", "backup", str(file), config)
    assert "adapters" in made.stdout
    assert "blobs" in cluster.command("store", "gc", config).stdout
    kept = cluster.command("store", "restore", str(file), config)
    assert "0 adapters restored" in kept.stdout
    elsewhere = tmp_path / "elsewhere.yaml"
    settings = {"models": [ECHO], "store": {"data_dir": str(tmp_path / "elsewhere")}}
    elsewhere.write_text(yaml.safe_dump(settings))
    restored = cluster.command("store", "restore", str(file), str(elsewhere))
    assert "adapters restored" in restored.stdout
    assert not restored.stdout.startswith("0 ")


def test_requests_are_spread_and_more_than_fits_gets_429(http):
    """2 replicas take 2 each, and 16 may wait in each of 2 ingresses: of 60 slow ones at once, some
    must be turned away."""
    with ThreadPoolExecutor(60) as pool:
        slow = chat("word " * 100)
        answers = list(pool.map(lambda _: http.post("/v1/chat/completions", json=slow), range(60)))
    accepted = [a for a in answers if a.status_code == 200]
    refused = [a for a in answers if a.status_code == 429]
    assert len(accepted) + len(refused) == 60, [(a.status_code, a.text) for a in answers]
    assert len({a.headers["x-roundhouse-replica"] for a in accepted}) == 2
    assert refused
    for answer in refused:
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["type"] == "rate_limit_error"


def test_a_client_that_hangs_up_frees_the_engine(http):
    wait_until(lambda: sum(r["ongoing"] for r in replicas(http)) == 0)  # of the tests before
    with http.stream("POST", "/v1/chat/completions", json=chat("w " * 2000, stream=True)) as answer:
        next(answer.iter_lines())
        assert sum(r["ongoing"] for r in replicas(http)) <= 1
    started = time.monotonic()
    full = [chat("w " * 50, stream=False)] * 4
    with ThreadPoolExecutor(4) as pool:
        codes = list(
            pool.map(lambda b: http.post("/v1/chat/completions", json=b).status_code, full)
        )
    assert codes == [200] * 4
    assert time.monotonic() - started < 15
    wait_until(lambda: sum(r["ongoing"] for r in replicas(http)) == 0)


def test_a_client_that_hangs_up_before_its_answer_frees_the_engine(cluster, http):
    """The body comes in a packet of its own, as most clients send it."""
    wait_until(lambda: sum(r["ongoing"] for r in replicas(http)) == 0)
    leaving = HTTPConnection(cluster.url.removeprefix("http://"))
    asked = json.dumps(chat("w " * 6000))  # a minute
    leaving.request("POST", "/v1/chat/completions", asked, {"content-type": "application/json"})
    wait_until(lambda: sum(r["ongoing"] for r in replicas(http)) == 1)
    assert not select.select([leaving.sock], [], [], 0)[0], "it has an answer"
    leaving.close()
    wait_until(lambda: sum(r["ongoing"] for r in replicas(http)) == 0)


def test_a_second_up_says_that_one_is_running(cluster: Running):
    second = cluster.command("up", str(cluster.config), check=False)
    assert second.returncode == 1
    assert "is running" in second.stderr
    assert cluster.url in second.stderr.replace("\n", "")


def test_up_says_at_once_that_the_port_is_taken(cluster: Running, tmp_path):
    port = int(cluster.url.rpartition(":")[2])
    second = start_cluster(tmp_path, {"models": [ECHO], "http": {"port": port}})
    assert second.process.wait(60) == 1
    assert "Address already in use (http.port)" in second.log.read_text()


def test_a_dead_replica_is_replaced_and_nobody_else_notices(cluster, http):
    before = {r["id"] for r in replicas(http)}
    victim = next(p for p in family(cluster) if "Model-echo" in " ".join(p.cmdline()))
    victim.kill()
    outcomes = [http.post("/v1/chat/completions", json=chat("hi")).status_code for _ in range(10)]
    assert outcomes == [200] * 10
    wait_until(lambda: len(replicas(http)) == 2 and {r["id"] for r in replicas(http)} != before, 60)


def test_the_store_server_comes_back_and_requests_go_on_meanwhile(cluster, http, make_adapter):
    add(http, make_adapter("steady"))
    server = next(p for p in family(cluster) if "valkey" in p.name())
    server.kill()
    for _ in range(5):
        answer = http.post("/v1/chat/completions", json=chat("x", "steady"))
        assert answer.status_code == 200
    # In every ingress.
    wait_until(lambda: all(http.get("/v1/cluster").json()["store"] == "ok" for _ in range(6)))
    add(http, make_adapter("after"))
    assert http.post("/v1/chat/completions", json=chat("x", "after")).status_code == 200


def one_of(running: Running, name: str) -> psutil.Process:
    (found,) = [p for p in family(running) if p.name() == name]
    return found


@pytest.mark.slow
@pytest.mark.hostile
def test_ray_dies_and_all_comes_back_as_it_was(cluster, http, make_adapter):
    first, second = (add(http, make_adapter("kept", seed=s))["aliases"]["latest"] for s in (0, 1))
    named = http.put("/v1/adapters/kept/aliases/blue", json={"version": first})
    assert named.status_code == 200, named.text
    before, store = http.get("/v1/adapters").json(), one_of(cluster, "valkey-server")

    def asked(path: str, **body) -> int:
        try:
            return (http.post(path, json=body) if body else http.get(path)).status_code
        except httpx.TransportError:
            return 0

    def all_say(status: int) -> bool:
        return all(asked("/readyz") == status for _ in range(6))

    gcs = one_of(cluster, "gcs_server")
    gcs.suspend()
    wait_until(lambda: all_say(503), timeout_s=10)
    assert "Ray's GCS, which does not answer" in http.get("/readyz").text
    assert asked("/v1/chat/completions", **chat("x", "kept")) == 200
    gcs.resume()
    wait_until(lambda: all_say(200), timeout_s=10)

    gcs.kill()
    wait_until(lambda: asked("/readyz") != 200, timeout_s=10)
    wait_until(lambda: all_say(200), timeout_s=90)
    assert "Ray's gcs_server has died (killed by SIGKILL)" in cluster.log.read_text()
    assert http.get("/v1/adapters").json() == before
    for name, wanted in (("kept", second), ("kept@blue", first)):
        answer = http.post("/v1/chat/completions", json=chat("x", name))
        assert answer.headers["x-roundhouse-version"] == str(wanted)
    add(http, make_adapter("later"))
    assert one_of(cluster, "valkey-server") == store


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_behind(cluster):
    with nothing_left_behind(cluster):
        os.kill(cluster.process.pid, signal.SIGINT)
        assert cluster.process.wait(60) == 0


def test_a_replica_that_cannot_start_says_why(tmp_path):
    broken = ECHO | {"replicas": 1, "engine_args": {"tokn_s": 1}}
    running = start_cluster(tmp_path, {"models": [broken]})
    assert running.process.wait(150) == 1
    said = running.log.read_text().replace("\n", " ")
    assert "tokn_s" in said
    assert "did not start" in said
