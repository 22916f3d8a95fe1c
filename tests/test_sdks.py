"""The SDKs that people use, each by the calls that its users make, against the real endpoint.

Each runs in a process of its own; what they need stands in an environment beside ours, since some
of it cannot stand in it (`requirements/sdks.in`).
"""

import asyncio
import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from tests.conftest import CACHE, until
from tests.elsewhere import served
from tests.test_http import CLIENT_HASH, CLIENT_KEY

pytestmark = pytest.mark.redis

HERE = Path(__file__).parent
NODE = HERE / "node"
THEIRS = Path(sys.prefix) / "sdks" / "bin" / "python"
ECHO = {"path": "none", "engine": "echo"}
OTHERS = [
    ECHO | {"id": "full"},
    ECHO | {"id": "slow", "engine_args": {"prefill_s": 0.1, "token_s": 0.5}},
]
KEYS = {"enabled": True, "keys": [{"name": "app", "sha256": CLIENT_HASH}]}
# What SDKs read beside their arguments, and would send elsewhere.
QUIET = {"LANGSMITH_TRACING": "false", "LANGCHAIN_TRACING_V2": "false", "LITELLM_LOG": "ERROR"}


async def run(command: list[str], url: str) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | QUIET
    process = await asyncio.create_subprocess_exec(
        *command,
        url,
        CLIENT_KEY,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), 120)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, said.decode()


def installed_for_node() -> Path:
    """A folder with the SDK that the lock names, kept for the next time."""
    lock = (NODE / "package-lock.json").read_bytes()
    folder = CACHE / f"node-{sha256(lock).hexdigest()[:16]}"
    if not (folder / "node_modules").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(NODE / name, folder)
        command = ["npm", "ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
        subprocess.run(command, cwd=folder, check=True, timeout=100)
    return folder


@pytest.mark.skipif(shutil.which("npm") is None, reason="node and npm are not here")
async def test_openais_sdk_for_node_finds_what_it_expects(make_world):
    # Node looks for packages beside the file.
    client = shutil.copy(NODE / "client.mjs", await asyncio.to_thread(installed_for_node))
    await asked_by(make_world, ["node", str(client)])


@pytest.mark.parametrize(
    ("python", "script"),
    [
        (sys.executable, "sdk_openai.py"),
        (THEIRS, "sdk_openai.py"),
        (THEIRS, "sdk_litellm.py"),
        (THEIRS, "sdk_langchain.py"),
        (THEIRS, "sdk_llama_index.py"),
        (THEIRS, "sdk_instructor.py"),
    ],
    ids=["openai", "openai-2", "litellm", "langchain", "llama-index", "instructor"],
)
async def test_an_sdk_finds_what_it_expects(make_world, python, script):
    if not Path(python).exists() and not os.environ.get("CI"):
        pytest.skip("make test installs it")
    await asked_by(make_world, [str(python), str(HERE / script)])


async def asked_by(make_world, command: list[str]) -> None:
    async with make_world(auth=KEYS, others=OTHERS) as rh, served(rh.app) as url:
        rh.pools["full"].is_full = True
        await run(command, url)
        # Who leaves a stream frees the replica; it would go on for a minute.
        await until(lambda: not any(p.open_answers for p in rh.pools.values()), timeout_s=20)
