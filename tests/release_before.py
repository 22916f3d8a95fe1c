"""The release before this one, as a process of its own on the same store.

It runs from git's history, with the packages of this one. Commands come as lines of JSON on its
standard input, and each is answered by a line.
"""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

# The last one in which the registry, the members and the blobs were one class.
COMMIT = "33006ca48ad9"
ROOT = Path(__file__).parent.parent
FOLDERS = ("cluster", "adapter_store", "router", "deployments")

PROGRAM = """
import asyncio, json, sys
from adapter_store.catalogue import Catalogue
from adapter_store.registration import Registrar, Registration
from adapter_store.routing_log import RoutingLog
from adapter_store.store import AdapterStore
from adapter_store.telemetry import TelemetryStore
from cluster import rollouts
from cluster.settings import StoreSettings
from cluster.state import Card, Member, Residency

async def main():
    settings = StoreSettings.model_validate_json(sys.argv[1])
    store = AdapterStore(settings)
    await store.migrate()
    catalogue = Catalogue(store)
    await catalogue.start()
    registrar = Registrar(store, settings)

    async def register(source, mode="create"):
        stored = await registrar.register(Registration(source=source), mode=mode)
        return stored.position

    async def edit(name, **fields):
        def change(adapter):
            return rollouts.edit_card(adapter, adapter.card.model_copy(update=fields))
        return (await store.change(name, change)).position

    async def alias(name, alias, number):
        def change(adapter):
            return rollouts.set_alias(adapter, alias, adapter.versions[number])
        return (await store.change(name, change)).position

    async def see(position):
        async with asyncio.timeout(10):
            await catalogue.wait_for(position)
        catalogue.check()
        return {n: a.model_dump(mode="json") for n, a in catalogue.adapters.items()}

    async def report(id, **fields):
        await store.renew(Member(id=id, kind="replica", model="echo", **fields))

    async def members():
        return [m.model_dump(mode="json") for m in await store.members()]

    log, telemetry = RoutingLog(settings, keep_s=60), TelemetryStore(settings)

    async def decisions():
        return [d.model_dump(mode="json") for d in await log.newest(10)]

    async def outcomes():
        return [o and o.model_dump(mode="json") for _, o in await log.outcomes("0-0")]

    async def journal():
        return [h.model_dump(mode="json") for h in await telemetry.journal(10)]

    told = (decisions, outcomes, journal)
    commands = {f.__name__: f for f in (register, edit, alias, see, report, members, *told)}
    print(json.dumps("ready"), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        name, fields = json.loads(line)
        print(json.dumps(await commands[name](**fields)), flush=True)
    await catalogue.stop()
    for each in (log, telemetry, store):
        await each.close()

asyncio.run(main())
"""


class Before:
    """Its process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert self._answer() == "ready"

    def __call__(self, command: str, **fields: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([command, fields]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def unpack(folder: Path) -> None:
    """Raises pytest's Skipped without git's history, but where CI is set."""
    made = subprocess.run(
        ["git", "-C", str(ROOT), "archive", COMMIT, *FOLDERS], capture_output=True, check=False
    )
    if made.returncode:
        assert "CI" not in os.environ, made.stderr.decode()
        pytest.skip("git's history is needed, with the release before this one")
    with tarfile.open(fileobj=BytesIO(made.stdout)) as archive:
        archive.extractall(folder, filter="data")


@contextmanager
def release_before(folder: Path, settings_json: str) -> Iterator[Before]:
    """Run it until the block ends; its code goes into a folder."""
    unpack(folder)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, settings_json],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield Before(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(20)
