"""The command `roundhouse adapters apply`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress

from cluster.errors import RoundhouseError
from deployments.command.cli_common import (
    LOCAL,
    AsJson,
    Key,
    Url,
    client_of,
    console,
    print_json,
    quoted,
)
from deployments.command.cli_progress import bar, followed, send_files

if TYPE_CHECKING:
    from deployments.command.client import Client
    from deployments.command.manifest import Change, Entry, Manifest


def apply(
    file: Annotated[
        Path, typer.Option("--file", "-f", help="What adapters there are to be, as YAML.")
    ],
    prune: Annotated[
        bool, typer.Option(help="Remove what was applied from the file and is there no more.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option(help="Show what would change, and change nothing.")
    ] = False,
    ready_s: Annotated[
        float, typer.Option(min=0, help="Wait so many seconds for the endpoint to be ready.")
    ] = 0,
    url: Url = LOCAL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Make the registered adapters what a file says; what is so already is left alone."""
    from deployments.command.manifest import changes, read_manifest

    manifest = read_manifest(file)
    with closing(client_of(url, api_key)) as client:
        client.wait_until_ready(ready_s)
        found = list(changes(manifest, _stored(client, manifest), prune=prune))
        failed = {} if dry_run else _make(client, manifest, found)
    if as_json:
        shown = [c.model_dump(mode="json", exclude={"entry"}) for c in found]
        print_json({"changes": shown, "failed": failed})
    else:
        _tell(found, failed, len(manifest.adapters), dry_run=dry_run)
    if failed:
        raise typer.Exit(1)


def _stored(client: Client, manifest: Manifest) -> dict[str, dict[str, Any]]:
    """The registered adapters by name; whole those that are declared, the others in brief."""
    stored = {adapter["name"]: adapter for adapter in client.pages("/v1/adapters")}
    for entry in manifest.adapters:
        if entry.name in stored:
            stored[entry.name] = client.get(f"/v1/adapters/{quoted(entry.name)}")
    return stored


def _make(client: Client, manifest: Manifest, found: list[Change]) -> dict[str, str]:
    """Make each change; one that fails keeps no other from being made. Returns what failed."""
    failed: dict[str, str] = {}
    with bar() as progress:
        task = progress.add_task("applying", total=None)
        for i, change in enumerate(found, 1):
            progress.update(task, description=f"{i} of {len(found)}: {change.name}")
            try:
                _make_one(client, manifest, change, progress)
            except RoundhouseError as e:
                failed[change.name] = e.message
    return failed


def _make_one(client: Client, manifest: Manifest, change: Change, progress: Progress) -> None:
    from deployments.command.manifest import edits

    path = f"/v1/adapters/{quoted(change.name)}"
    if change.entry is None:
        client.delete(path)
    elif change.kind == "edit":
        adapter = client.get(path)
        client.patch(path, edits(change.entry, adapter) | {"revision": adapter["revision"]})
    else:
        is_new = change.kind == "register"
        _register(client, manifest, change.entry, progress, is_new=is_new)


def _register(
    client: Client, manifest: Manifest, entry: Entry, progress: Progress, *, is_new: bool
) -> None:
    """Register, let it take over, and only then mark it: what broke off is done again."""
    from deployments.command.manifest import MARK, mark_of

    body = entry.model_dump(mode="json", exclude_none=True, exclude={"rollout", "metadata"})
    if entry.is_local:
        body["source"] = send_files(client, Path(entry.source), progress)
    # Of one that is there, `_take_over` decides.
    body["promote"] = is_new
    # A line per replica is for one adapter, not for hundreds.
    adapter = followed(
        client,
        progress,
        "registering",
        "/v1/adapters",
        body,
        replicas=False,
        wait=True,
        replace=True,
    )
    path = f"/v1/adapters/{quoted(entry.name)}"
    adapter = _take_over(client, path, entry, adapter)
    mark = {MARK: mark_of(manifest, entry)}
    client.patch(path, {"metadata": adapter["metadata"] | (entry.metadata or {}) | mark})


def _take_over(client: Client, path: str, entry: Entry, adapter: dict[str, Any]) -> dict[str, Any]:
    """Bring the newest version to where the file wants it; a rollout of another one ends.

    The rollout that the file asks for is begun, and goes on by itself: for hours, if its steps do.
    """
    newest, rollout = adapter["aliases"]["latest"], adapter["rollout"]
    if rollout is not None and rollout["version"] == newest:
        return adapter
    if rollout is not None:
        adapter = client.post(f"{path}/rollback", {}, wait=True)
    if adapter["aliases"]["stable"] == newest:
        return adapter
    if entry.rollout is None:
        return client.post(f"{path}/rollout", {"gate": False}, wait=True)
    return client.post(f"{path}/rollout", entry.rollout.model_dump(mode="json", exclude_none=True))


def _tell(found: list[Change], failed: dict[str, str], declared: int, *, dry_run: bool) -> None:
    for change in found:
        why = f": {failed[change.name]}" if change.name in failed else ""
        mark = "[red]failed[/] " if why else ""
        console.print(f"{mark}{escape(f'{change}{why}')}", highlight=False)
    unchanged = declared - sum(change.kind != "delete" for change in found)
    changed = len(found) - len(failed)
    made = "to make" if dry_run else "made"
    console.print(
        f"{changed} change{'s' * (changed != 1)} {made}, {unchanged} of {declared} adapters as "
        "they should be" + (f", {len(failed)} failed" if failed else ""),
        highlight=False,
    )
