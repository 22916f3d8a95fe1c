"""Base models that see: their text, and their eyes, take adapters."""

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path
from threading import Thread

import pytest

from cluster.settings import BaseModelSettings
from deployments.process.ray_options import resources_of
from tests.adapter_kinds import CLOSE
from tests.conftest import CACHE

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def torchvision() -> Path:
    """Where transformers' image processors find it.

    The package index has it for CUDA; beside the CPU's torch it can be imported without the two
    modules that describe its kernels, which nothing here calls.
    """
    version = {"2.13": "0.28.0"}[metadata.version("torch")[:4]]
    folder = CACHE / f"torchvision-{version}"
    if not folder.is_dir():
        unfinished = folder.with_suffix(".unfinished")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target"]
        subprocess.run([*pip, unfinished, f"torchvision=={version}"], check=True)
        start = unfinished / "torchvision" / "__init__.py"
        text = start.read_text()
        for kernels in ("_autograd_registrations,", "_meta_registrations,"):
            text = text.replace(kernels, "")
        start.write_text(text)
        unfinished.rename(folder)
    return folder


def test_a_model_that_sees_answers_with_adapters_as_peft_does(torchvision, tmp_path):
    paths = os.pathsep.join((str(ROOT), str(torchvision)))
    done = subprocess.run(
        [sys.executable, "-m", "tests.multimodal", tmp_path],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["architecture"] == "Qwen3VLForConditionalGeneration"
    assert found["text"] < CLOSE
    assert found["eyes"] < CLOSE
    assert found["text notices"] == found["eyes notices"] == []
    assert found["picture"] != found["picture, other eyes"]


@pytest.mark.hostile
def test_no_url_in_a_request_is_fetched_unless_its_host_is_listed(monkeypatch):
    """A picture's address could be one that only this machine reaches."""
    from vllm.multimodal.media import MediaConnector

    from deployments.engines.vllm_engine import engine_args

    asked: list[str] = []

    class Inside(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(302)
            self.send_header("location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    def connector(**engine: object):
        model = BaseModelSettings(id="m", path="p", engine_args=engine)
        variables = resources_of(model)["ray_actor_options"]["runtime_env"]["env_vars"]
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        domains = engine_args(model).allowed_media_domains
        return MediaConnector(allowed_media_domains=domains)

    with HTTPServer(("127.0.0.1", 0), Inside) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/latest/meta-data"
        with pytest.raises(ValueError, match="allowed_media_domains"):
            connector().fetch_image(url)
        assert asked == []
        with pytest.raises(Exception, match="Failed to load image"):
            connector(allowed_media_domains=["127.0.0.1"]).fetch_image(url)
        assert asked == ["/latest/meta-data"]
        server.shutdown()
