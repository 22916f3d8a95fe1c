"""The commands `roundhouse store ...`: they work on the store itself, with or without a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import glob
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.progress import Progress

from deployments.command.cli_common import DEFAULT_CONFIG, Config, console

if TYPE_CHECKING:
    from adapter_store.collector import Collected
    from adapter_store.store import Store
    from cluster.settings import StoreSettings

app = typer.Typer(help="Back up, restore and tidy the adapter store.", no_args_is_help=True)

Result = TypeVar("Result")


@app.command("gc")
def gc(
    config: Config = DEFAULT_CONFIG,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove it; else only say what.")
    ] = False,
    even_all: Annotated[
        bool, typer.Option("--even-all", help="Though the store has no adapters.")
    ] = False,
) -> None:
    """Find the files that no version uses any more, and uploads left behind."""
    from adapter_store.collector import collect
    from adapter_store.files.blob_stores import open_blobs
    from adapter_store.files.uploads import Uploads

    async def run(store: Store, settings: StoreSettings) -> Collected:
        return await collect(
            store,
            open_blobs(settings),
            Uploads(settings),
            dry_run=not delete,
            may_be_empty=even_all,
        )

    with console.status("looking"):
        found = _with_store(config, run)
    for digest in found.blobs:
        console.print(f"  blob {digest}", highlight=False)
    for upload in found.uploads:
        console.print(f"  upload {upload}", highlight=False)
    verb = "removed" if delete else "could be removed (--delete does it)"
    console.print(
        f"{len(found.blobs)} blobs of {found.blob_bytes / 1e6:.1f} MB, {len(found.uploads)} "
        f"uploads {verb}",
        highlight=False,
    )


@app.command("backup")
def backup(
    file: Annotated[Path, typer.Argument(help="The tar file to write.")],
    config: Config = DEFAULT_CONFIG,
    keep: Annotated[
        int | None,
        typer.Option(min=1, help="Put the time into the name, and keep so many; others go."),
    ] = None,
) -> None:
    """Write all adapters, with their files, into one file; the cluster may run on."""
    from adapter_store.backup import back_up
    from adapter_store.files.blob_stores import open_blobs

    target = file if keep is None else dated(file)
    with _progress("saving") as show:
        made = _with_store(config, lambda store, s: back_up(store, open_blobs(s), target, show))
    console.print(
        f"{target}: {made.adapters} adapters, {made.blobs} blobs, {made.size_bytes / 1e6:.1f} MB",
        highlight=False,
    )
    for old in older(file, keep) if keep is not None else ():
        old.unlink()
        console.print(f"removed {old}", highlight=False)


@app.command("restore")
def restore(
    file: Annotated[Path, typer.Argument(help="A file that `backup` wrote.")],
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Put back what a backup holds; adapters that are there stay as they are."""
    from adapter_store.backup import restore
    from adapter_store.files.blob_stores import open_blobs

    with _progress("restoring") as show:
        done = _with_store(config, lambda store, s: restore(store, open_blobs(s), file, show))
    kept = f"; {len(done.kept)} were there and stayed as they are" if done.kept else ""
    console.print(f"{len(done.restored)} adapters restored{kept}", highlight=False)


def dated(file: Path) -> Path:
    """The name with the time in it: names sort as times do."""
    return file.with_stem(f"{file.stem}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")


def older(file: Path, keep: int) -> list[Path]:
    """The dated siblings of a file but the newest."""
    stamp = "[0-9]" * 8 + "T" + "[0-9]" * 6 + "Z"
    return sorted(file.parent.glob(f"{glob.escape(file.stem)}-{stamp}{file.suffix}"))[:-keep]


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar; yields what moves it on."""
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _with_store(config: Path, work: Callable[[Store, StoreSettings], Awaitable[Result]]) -> Result:
    from adapter_store.embedded import store_at_hand
    from adapter_store.store import Store
    from cluster.settings import load_settings

    async def run(settings: StoreSettings) -> Result:
        async with Store(settings) as store:
            await store.registry.migrate()
            return await work(store, settings)

    with store_at_hand(load_settings(config).store) as settings:
        return asyncio.run(run(settings))
