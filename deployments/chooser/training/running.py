"""Starts a training in a process of its own, and tells how far it is."""

import asyncio
import json
import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.errors import Conflict, RoundhouseError
from cluster.settings import Settings
from cluster.tasks import cancel

# Told what is done now, how many steps of how many are, and the last loss.
Tell = Callable[[str, int, int, float], None]

_LINE_BYTES = 2**20


class TrainingFailed(RoundhouseError):
    """The process that trained ended without a result."""

    status = 500
    type = "server_error"
    code = "training_failed"


@dataclass(frozen=True)
class Task:
    """One training.

    Attributes:
        use: whether prompts are read with the encoder, if it is better; else it is only kept.
        only_new: nothing is done where an encoder was trained on the same lessons.
    """

    settings: Settings
    use: bool = True
    only_new: bool = False


async def train(task: Task, tell: Tell) -> dict[str, Any]:
    """Train in a child.

    Returns:
        ``marks``, what the held-out examples say, and ``encoder``, where it is better; or ``told``,
        why there was nothing to do.

    Raises:
        Conflict: there is nothing to learn from, or somebody else trains.
        TrainingFailed: it ended before it was done.
    """
    # As few threads in every library that counts the cores for itself; while they wait for each
    # other, their cores are for those that have something to do.
    threads = str(task.settings.router.training.threads)
    bounds = {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive"}
    env = os.environ | bounds | {"TOKENIZERS_PARALLELISM": "false"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deployments.chooser.training.child"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=env | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        limit=_LINE_BYTES,
    )
    assert process.stdin and process.stdout and process.stderr
    said = asyncio.create_task(process.stderr.read())
    try:
        process.stdin.write(pickle.dumps(task))
        process.stdin.write_eof()
        async for line in process.stdout:
            event = json.loads(line)
            if "result" in event:
                await process.wait()
                result: dict[str, Any] = event["result"]
                return result
            if "error" in event:
                raise (Conflict if event["code"] == Conflict.code else TrainingFailed)(
                    event["error"]
                )
            tell(event["doing"], event["done"], event["total"], event["loss"])
        await process.wait()
        last = (await said).decode(errors="replace").strip().splitlines()[-1:]
        raise TrainingFailed(f"the training ended with {process.returncode}: {''.join(last)}")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await cancel(said)
