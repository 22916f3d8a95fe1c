"""Base models that see: their text, and their eyes, take adapters."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

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
