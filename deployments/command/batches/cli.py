"""`roundhouse batch`: hand in a file of requests, watch, and take the answers home."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column, Table

from cluster.batches import Status
from cluster.errors import InvalidRequest, RoundhouseError
from deployments.command.cli_common import (
    LOCAL,
    AsJson,
    Key,
    Url,
    client_of,
    console,
    print_json,
    say,
)
from deployments.command.cli_progress import bar

if TYPE_CHECKING:
    from deployments.command.client import Client

app = typer.Typer(help="Have requests answered that nobody waits for.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(help="The batch.")]
_LOOK_S = 1.0


@app.command("run")
def run(
    file: Annotated[
        Path,
        typer.Argument(
            help='A request per line: {"custom_id", "method": "POST", "url", "body"}.',
            exists=True,
            dir_okay=False,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where the answers go. Default: FILE.answers.jsonl.")
    ] = None,
    errors: Annotated[
        Path | None,
        typer.Option(help="Where what failed goes. Default: FILE.errors.jsonl."),
    ] = None,
    window: Annotated[
        str, typer.Option(help="How long it may take: minutes, hours or days (30m, 24h, 7d).")
    ] = "24h",
    url: Url = LOCAL,
    api_key: Key = None,
) -> None:
    """Hand in a file, watch it being answered, and save the answers.

    It goes on without you: Ctrl-C ends the watching alone. Exit code 1 when something failed.
    """
    client = client_of(url, api_key)
    endpoint = _endpoint_of(file)
    with bar() as progress, progress.open(file, "rb", description=f"sending {file.name}") as data:
        sent = client.send_form("/v1/files", file.name, data, purpose="batch")
    body = {"input_file_id": sent["id"], "endpoint": endpoint, "completion_window": window}
    batch = client.post("/v1/batches", body)
    say(f"batch {batch['id']}")
    try:
        batch = _watched(client, batch)
    except KeyboardInterrupt:
        say(f"it goes on; roundhouse batch show {batch['id']}")
        raise typer.Exit(130) from None
    _save(client, batch, "output_file_id", out or file.with_suffix(".answers.jsonl"))
    _save(client, batch, "error_file_id", errors or file.with_suffix(".errors.jsonl"))
    _tell(batch)
    if batch["status"] != Status.COMPLETED or batch["request_counts"]["failed"]:
        raise typer.Exit(1)


@app.command("list")
def index(url: Url = LOCAL, api_key: Key = None, as_json: AsJson = False) -> None:
    """Show your batches, the newest first."""
    batches = client_of(url, api_key).get("/v1/batches", limit=100)["data"]
    if as_json:
        print_json(batches)
        return
    table = Table(Column("batch", no_wrap=True), "status", "done", "failed", "of", "made")
    for batch in batches:
        counts = batch["request_counts"]
        made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(batch["created_at"]))
        numbers = (str(counts[name]) for name in ("completed", "failed", "total"))
        table.add_row(batch["id"], batch["status"], *numbers, made)
    console.print(table)


@app.command("show")
def show(batch_id: Id, url: Url = LOCAL, api_key: Key = None, as_json: AsJson = False) -> None:
    """Show how far a batch is."""
    batch = client_of(url, api_key).get(f"/v1/batches/{batch_id}")
    if as_json:
        print_json(batch)
    else:
        _tell(batch)


@app.command("results")
def results(
    batch_id: Id,
    out: Annotated[Path, typer.Argument(help="Where the answers go.")],
    errors: Annotated[Path | None, typer.Option(help="Where what failed goes.")] = None,
    url: Url = LOCAL,
    api_key: Key = None,
) -> None:
    """Save the answers of a batch that has ended."""
    client = client_of(url, api_key)
    batch = client.get(f"/v1/batches/{batch_id}")
    if not Status(batch["status"]).is_final:
        raise InvalidRequest(f"batch {batch_id} is {batch['status']}; its answers come at its end")
    _save(client, batch, "output_file_id", out)
    if errors is not None:
        _save(client, batch, "error_file_id", errors)


@app.command("cancel")
def cancel(batch_id: Id, url: Url = LOCAL, api_key: Key = None) -> None:
    """Call a batch off; what is answered is kept."""
    _tell(client_of(url, api_key).post(f"/v1/batches/{batch_id}/cancel", {}))


def _endpoint_of(file: Path) -> str:
    """Of the first request; all must have the same."""
    with file.open(encoding="utf-8-sig", errors="replace") as text:
        first = next((line for line in text if line.strip()), "")
    try:
        return str(json.loads(first)["url"])
    except (ValueError, KeyError, TypeError) as e:
        wanted = '{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {..}}'
        raise InvalidRequest(f"{file}: the first line is no request such as {wanted}") from e


def _watched(client: Client, batch: dict[str, Any]) -> dict[str, Any]:
    """The batch when it has ended."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(batch["status"], total=None)
        while not Status(batch["status"]).is_final:
            time.sleep(_LOOK_S)
            batch = client.get(f"/v1/batches/{batch['id']}")
            counts = batch["request_counts"]
            done = counts["completed"] + counts["failed"]
            progress.update(
                task,
                description=batch["status"],
                completed=done,
                total=counts["total"] or None,
            )
    return batch


def _save(client: Client, batch: dict[str, Any], which: str, target: Path) -> None:
    if batch[which] is None:
        return
    try:
        client.save(f"/v1/files/{batch[which]}/content", target)
    except OSError as e:
        raise RoundhouseError(f"{target} cannot be written: {e.strerror}") from e
    say(f"{which.partition('_')[0]}: {target}")


def _tell(batch: dict[str, Any]) -> None:
    counts = batch["request_counts"]
    console.print(
        f"[bold]{batch['status']}[/]: {counts['completed']} answered, {counts['failed']} failed, "
        f"of {counts['total']}"
    )
    for problem in (batch["errors"] or {"data": []})["data"]:
        where = f"line {problem['line']}: " if problem["line"] else ""
        console.print(f"[red]{where}[/]{escape(problem['message'])}")
