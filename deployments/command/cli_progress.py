"""How a change of an adapter is sent, and what is shown while it is under way."""

from __future__ import annotations

import contextlib
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

from cluster.errors import InvalidRequest
from deployments.command.cli_common import console

if TYPE_CHECKING:
    from deployments.command.client import Client


def bar() -> Progress:
    doing = TextColumn("{task.description}", markup=False)
    columns = (doing, BarColumn(bar_width=24), DownloadColumn())
    return Progress(*columns, console=console, transient=True)


def followed(
    client: Client,
    progress: Progress,
    doing: str,
    path: str,
    body: dict[str, Any],
    *,
    replicas: bool = True,
    **params: Any,
) -> dict[str, Any]:
    """Ask for a change and show how it goes; returns the adapter as it is then.

    Args:
        replicas: tell of each one that has taken it in.
    """
    task = progress.add_task(doing, total=None)

    def tell(event: dict[str, Any]) -> None:
        if replicas or event["event"] != "replica":
            _show(progress, task, event)

    adapter = client.follow("POST", path, body, tell, **params)
    progress.remove_task(task)
    return adapter


def send_files(client: Client, path: Path, progress: Progress) -> str:
    """Send a folder or an archive; returns the source to register from."""
    with _packed(path) as archive:
        task = progress.add_task(f"sending {path.name}", total=archive.stat().st_size)
        source = client.upload(
            archive, path.name, lambda done: progress.update(task, completed=done)
        )
        progress.remove_task(task)
        return source


@contextlib.contextmanager
def _packed(path: Path) -> Iterator[Path]:
    """The path itself when it is a file, else a tar of the adapter's files in the folder."""
    from adapter_store.files.inbound.fetching import SENT

    if path.is_file():
        yield path
        return
    if not path.is_dir():
        raise InvalidRequest(f"{path} is not a folder or an archive", param="source")
    with tempfile.TemporaryDirectory(prefix="rh-upload-") as folder:
        archive = Path(folder) / "adapter.tar"
        with tarfile.open(archive, "w") as tar:
            for name in SENT:
                if (path / name).is_file():
                    tar.add((path / name).resolve(), name)
        yield archive


def _show(progress: Progress, task: TaskID, event: dict[str, Any]) -> None:
    """One event of a registration or rollout, as a line or as the bar's state."""
    match event["event"]:
        case "stored":
            progress.update(task, description=f"stored as version {event['version']}")
        case "replica":
            where = {"slot": "in a slot", "host": "in host memory"}.get(
                event["state"], event["state"]
            )
            progress.console.print(f"  replica {event['replica']}: {where}", highlight=False)
        case "rollout" if event["step"] < 0:
            progress.update(task, description=f"checking version {event['version']}")
        case "rollout":
            share, found = event["percents"][event["step"]], measured(event["evaluation"])
            progress.console.print(f"  {share} % of the requests{found}", highlight=False)
        case what:
            progress.update(task, description=what, completed=event["done"], total=event["total"])


def measured(evaluation: dict[str, Any] | None) -> str:
    """What a gate has found, in brackets; nothing when there was none."""
    if not evaluation:
        return ""
    return (
        f" (accuracy {evaluation['accuracy_before']:.3f} -> {evaluation['accuracy_after']:.3f}, "
        f"{evaluation['negative_flips']:.3f} negative flips on {evaluation['prompts']} prompts)"
    )
