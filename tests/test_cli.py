"""The command line by itself: what it loads, and what it asks of the endpoint."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version

import pytest
import yaml
from typer.testing import CliRunner

from cluster.errors import Unavailable
from deployments.command.cli import app
from deployments.command.client import Client, EndpointError
from tests.conftest import free_port

# A command that only asks the endpoint, or stops a cluster, has no use for these.
HEAVY = {
    *("torch", "ray", "vllm", "transformers", "fastapi", "redis", "safetensors"),
    *("numpy", "scipy", "sklearn", "pandas", "s3fs"),
}
# Nor, where it only asks the endpoint, for these.
OF_THE_CLUSTER = {"adapter_store", "router", "fsspec", "pydantic_settings"}
LOADED = """
import sys
from deployments.command.cli import main
try:
    main()
finally:
    print("\\n" + " ".join(sys.modules), file=sys.stderr)
"""
CRON = {
    "name": "cron",
    "base_model": "echo",
    "description": "when to run what",
    "aliases": {"latest": 2, "stable": 1},
    "versions": [{"number": 1, "rank": 4, "size_bytes": 2_000_000}],
    "metadata": {},
    "revision": 3,
}


class Handler(BaseHTTPRequestHandler):
    """Knows one adapter, and notes what is asked of it."""

    def do_GET(self) -> None:
        listing = {"data": [CRON], "next": None}
        self._answer(json.dumps(listing if "?" in self.path else CRON))

    def do_PATCH(self) -> None:
        self._note()
        self._answer(json.dumps(CRON))

    def do_POST(self) -> None:
        self._note()
        events = [{"event": "stored", "version": 2}, {"event": "result", "adapter": CRON}]
        self._answer("".join(f"data: {json.dumps(event)}\n\n" for event in events))

    def log_message(self, *_: object) -> None:
        pass

    def _note(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append((self.command, self.path, body))

    def _answer(self, content: str) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(content.encode())


class Endpoint(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked = []


@pytest.fixture
def endpoint():
    with Endpoint() as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        yield server
        server.shutdown()
        serving.join()


@pytest.fixture
def run(endpoint):
    """Run a command in this process; returns what it printed."""

    def of(*words):
        result = CliRunner().invoke(app, words, env={"ROUNDHOUSE_URL": endpoint.url})
        assert result.exit_code == 0, result.output
        return " ".join(result.stdout.split())

    return of


def loaded(*words, url=""):
    """Run a command in a process of its own; returns it, and the packages that it imported."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *words],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "ROUNDHOUSE_URL": url},
    )
    modules = done.stderr.splitlines()[-1].split()
    assert "deployments.command.cli" in modules, done.stderr
    return done, {module.partition(".")[0] for module in modules}


def declared(folder, source):
    file = folder / "adapters.yaml"
    file.write_text(yaml.safe_dump({"adapters": [{"name": "cron", "source": source}]}))
    return file


def test_it_says_its_version():
    done, packages = loaded("--version")
    assert done.stdout.strip() == version("roundhouse")
    assert not packages & (HEAVY | OF_THE_CLUSTER)


def test_help_loads_nothing_of_the_cluster():
    done, packages = loaded("--help")
    assert done.returncode == 0
    assert "Serve many LoRA adapters" in done.stdout
    assert not packages & (HEAVY | OF_THE_CLUSTER)


def test_list_loads_nothing_of_the_cluster(endpoint):
    done, packages = loaded("adapters", "list", url=endpoint.url)
    assert done.returncode == 0
    assert "cron" in done.stdout
    assert not packages & (HEAVY | OF_THE_CLUSTER)


def test_apply_loads_nothing_of_the_cluster(endpoint, tmp_path):
    file = declared(tmp_path, "s3://bucket/cron")
    done, packages = loaded("adapters", "apply", "-f", str(file), "--dry-run", url=endpoint.url)
    assert done.returncode == 0
    assert "~ cron: is not yet of this set" in done.stdout
    assert not packages & (HEAVY | OF_THE_CLUSTER)


def test_apply_of_a_folder_loads_nothing_heavy(endpoint, tmp_path):
    """What an adapter's files are called it asks the adapter store."""
    file = declared(tmp_path, str(tmp_path))
    done, packages = loaded("adapters", "apply", "-f", str(file), "--dry-run", url=endpoint.url)
    assert done.returncode == 0
    assert not packages & HEAVY


def test_an_endpoint_that_does_not_answer_is_told_at_once():
    done, packages = loaded("adapters", "list", url=f"http://127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert done.stderr.startswith("error: nothing answers at http://127.0.0.1:")
    assert not packages & (HEAVY | OF_THE_CLUSTER)


def test_down_loads_nothing_heavy(tmp_path):
    config = tmp_path / "roundhouse.yaml"
    store = {"data_dir": str(tmp_path / "data")}
    config.write_text(
        yaml.safe_dump(
            {"store": store, "models": [{"id": "echo", "path": "echo", "engine": "echo"}]}
        )
    )
    done, packages = loaded("down", str(config))
    assert (done.returncode, done.stdout) == (0, "nothing was running\n"), done.stderr
    assert not packages & HEAVY


def test_edit_sends_the_options_that_were_given_and_no_others(endpoint, run, tmp_path):
    asked = {"prompt": "hello", "expected": "hello"}
    (tmp_path / "evaluation.jsonl").write_text(f"{json.dumps(asked)}\n\n")
    options = ["--description", "", "--example", "a", "--example", "b", "--tag", "x", "--pin"]
    options += ["--evaluation", str(tmp_path / "evaluation.jsonl"), "--replicas", "2"]
    assert run("adapters", "edit", "cron", *options, "--revision", "2") == "cron has revision 3"
    body = {
        "description": "",
        "examples": ["a", "b"],
        "evaluation": [asked],
        "tags": ["x"],
        "pinned": True,
        "replicas": 2,
        "revision": 2,
    }
    assert endpoint.asked == [("PATCH", "/v1/adapters/cron", body)]


def test_add_registers_a_folder_where_it_is_and_says_who_answers(endpoint, run, tmp_path):
    options = ["--name", "cron", "--owner", "a", "--visibility", "private", "--replicas", "auto"]
    said = run("adapters", "add", str(tmp_path), *options, "--no-pin", "--no-promote", "--no-wait")
    assert "registered cron@2" in said
    assert "cron is still answered by version 1" in said
    body = {
        "source": str(tmp_path),
        "name": "cron",
        "owner": "a",
        "visibility": "private",
        "replicas": "auto",
        "pinned": False,
        "promote": False,
    }
    assert endpoint.asked == [("POST", "/v1/adapters?wait=false&replace=true", body)]


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a//b", "cron/versions"])
def test_what_is_no_name_is_not_asked_for(name):
    refused = CliRunner().invoke(app, ["adapters", "rm", name])
    assert "is not the name of an adapter" in refused.exception.message


def test_add_leaves_a_url_to_the_endpoint(endpoint, run):
    run("adapters", "add", "s3://bucket/cron", "--upload")
    assert endpoint.asked[0][2] == {"source": "s3://bucket/cron", "promote": True}


def test_a_name_is_shown_as_it_is_and_asked_for_by_its_address(endpoint, run, monkeypatch):
    name = "org/[red]x[/]:cat: ü"
    monkeypatch.setitem(CRON, "name", name)
    assert "org/[red]x[/]" in run("adapters", "list")
    assert run("adapters", "edit", name, "--pin") == f"{name} has revision 3"
    said = run("adapters", "add", "s3://bucket/x", "--no-promote", "--no-wait")
    assert f"registered {name}@2" in said
    assert f"`roundhouse adapters rollout '{name}'`" in said
    address = "/v1/adapters/org%2F%5Bred%5Dx%5B%2F%5D%3Acat%3A%20%C3%BC"
    assert endpoint.asked[0][:2] == ("PATCH", address)


def test_what_goes_to_this_machine_goes_by_no_proxy(monkeypatch):
    """It would see keys and prompts."""
    seen = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_response(502)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
        monkeypatch.delenv("no_proxy", raising=False)
        for url in ("http://127.0.0.1:9", "http://localhost:9"):
            with pytest.raises(Unavailable):
                Client(url, api_key="rh-secret").get("/v1/models")
        assert seen == []
        with pytest.raises(EndpointError):
            Client("http://llm.example.com").get("/v1/models")
        assert seen == ["http://llm.example.com/v1/models"]
        proxy.shutdown()
