"""The commands `roundhouse adapters ...`."""

import contextlib
import json
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.table import Table

from cluster.addresses import is_loopback
from cluster.errors import InvalidRequest
from deployments.command.cli_common import (
    LOCAL,
    AsJson,
    Key,
    Name,
    Url,
    client_of,
    console,
    print_json,
    quoted,
)

app = typer.Typer(
    help="Register, show, change, roll out and remove adapters.", no_args_is_help=True
)

Description = Annotated[str | None, typer.Option(help="What it is for.")]
Examples = Annotated[
    list[str] | None, typer.Option("--example", help="A prompt it is for; may be given many times.")
]
Evaluation = Annotated[
    Path | None,
    typer.Option(help='File of prompts with known answers, {"prompt", "expected"} a line.'),
]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="May be given many times.")]
Owner = Annotated[str | None, typer.Option(help="The tenant that it belongs to.")]
Visibility = Annotated[str | None, typer.Option(help="public, or private to its owner.")]
Pinned = Annotated[
    bool | None, typer.Option("--pin/--no-pin", help="Keep it in the memory of its replicas.")
]
Replicas = Annotated[str | None, typer.Option(help="How many replicas hold it, or auto.")]
Wait = Annotated[bool, typer.Option(help="Return when every replica has taken it in.")]


@app.command("add")
def add(
    source: Annotated[
        str,
        typer.Argument(help="Folder or archive, or a URL: hf://, s3://, gs://, az://, https://."),
    ],
    name: Annotated[str | None, typer.Option(help="Default: the card's, or the folder's.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Default: the card's.")] = None,
    description: Description = None,
    example: Examples = None,
    evaluation: Evaluation = None,
    tag: Tags = None,
    owner: Owner = None,
    visibility: Visibility = None,
    pinned: Pinned = None,
    replicas: Replicas = None,
    sha256: Annotated[
        str | None, typer.Option(help="That adapter_model.safetensors must have.")
    ] = None,
    base_fingerprint: Annotated[
        str | None, typer.Option(help="That the base model must have.")
    ] = None,
    promote: Annotated[
        bool, typer.Option(help="Answer to the plain name at once; else a rollout does that.")
    ] = True,
    upload: Annotated[
        bool | None,
        typer.Option(
            "--upload/--no-upload",
            help="Send the files; else the endpoint reads them itself. "
            "Default: sent when the endpoint is on another machine.",
        ),
    ] = None,
    wait: Wait = True,
    url: Url = LOCAL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Register an adapter, or a new version of one; nothing is restarted."""
    if not source:
        raise InvalidRequest("source is empty: name a folder, an archive or a URL", param="source")
    is_local = "://" not in source
    path = Path(source).expanduser().resolve()
    client = client_of(url, api_key)
    sent = _card_fields(
        description, example, evaluation, tag, owner, visibility, pinned, replicas
    ) | {
        "name": name,
        "base_model": base_model,
        "sha256": sha256,
        "base_fingerprint": base_fingerprint,
    }
    body = {k: v for k, v in sent.items() if v is not None} | {"promote": promote}
    with bar() as progress:
        if is_local and (upload if upload is not None else not is_loopback(urlsplit(url).hostname)):
            body["source"] = send_files(client, path, progress)
        else:
            body["source"] = str(path) if is_local else source
        task = progress.add_task("registering", total=None)
        adapter = client.follow(
            "POST",
            "/v1/adapters",
            body,
            lambda event: show_event(progress, task, event),
            wait=wait,
            replace=True,
        )
    if as_json:
        print_json(adapter)
        return
    aliases = adapter["aliases"]
    console.print(f"registered {adapter['name']}@{aliases['latest']}", highlight=False)
    if aliases["stable"] != aliases["latest"]:
        console.print(
            f"{adapter['name']} is still answered by version {aliases['stable']}; "
            f"`roundhouse adapters rollout {adapter['name']}` changes that",
            highlight=False,
        )


@app.command("list")
def list_(
    search: Annotated[str, typer.Option(help="Words in name, description or tags.")] = "",
    base_model: Annotated[str, typer.Option(help="Only of this base model.")] = "",
    tag: Annotated[str, typer.Option(help="Only with this tag.")] = "",
    owner: Annotated[str, typer.Option(help="Only of this tenant.")] = "",
    url: Url = LOCAL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """List the registered adapters."""
    narrowed = {"search": search, "base_model": base_model, "tag": tag, "owner": owner}
    adapters = list(client_of(url, api_key).pages("/v1/adapters", **narrowed))
    if as_json:
        print_json(adapters)
        return
    table = Table("adapter", "stable", "latest", "base model", "rank", "MB", "description")
    for adapter in adapters:
        aliases = adapter["aliases"]
        stable = next(v for v in adapter["versions"] if v["number"] == aliases["stable"])
        table.add_row(
            adapter["name"],
            str(aliases["stable"]),
            str(aliases["latest"]),
            adapter["base_model"],
            str(stable["rank"]),
            f"{stable['size_bytes'] / 1e6:.1f}",
            escape(_printable(adapter["description"])),
        )
    console.print(table)


@app.command("show")
def show(name: Name, url: Url = LOCAL, api_key: Key = None, as_json: AsJson = False) -> None:
    """Show one adapter: card, versions, aliases, rollouts."""
    adapter = client_of(url, api_key).get(f"/v1/adapters/{quoted(name)}")
    if as_json:
        print_json(adapter)
        return
    table = Table(show_header=False)
    for field, value in adapter.items():
        if field in ("versions", "examples", "evaluation") or value in ("", None, [], {}):
            continue
        shown = value if isinstance(value, str) else json.dumps(value)
        table.add_row(field, escape(_printable(shown)))
    for version in adapter["versions"]:
        table.add_row(f"version {version['number']}", escape(json.dumps(version)))
    table.add_row("examples", escape(_printable("\n".join(adapter["examples"]))))
    if adapter["evaluation"]:
        table.add_row("evaluation", f"{len(adapter['evaluation'])} prompts")
    console.print(table)


@app.command("edit")
def edit(
    name: Name,
    description: Description = None,
    example: Examples = None,
    evaluation: Evaluation = None,
    tag: Tags = None,
    owner: Owner = None,
    visibility: Visibility = None,
    pinned: Pinned = None,
    replicas: Replicas = None,
    revision: Annotated[
        int | None, typer.Option(help="Refuse when the adapter has another by now.")
    ] = None,
    url: Url = LOCAL,
    api_key: Key = None,
) -> None:
    """Change what an adapter says of itself, and how the fleet holds it."""
    fields = _card_fields(
        description, example, evaluation, tag, owner, visibility, pinned, replicas
    )
    changes = {k: v for k, v in fields.items() if v is not None}
    if not changes:
        raise InvalidRequest("nothing to change: give at least one option")
    if revision is not None:
        changes["revision"] = revision
    adapter = client_of(url, api_key).patch(f"/v1/adapters/{quoted(name)}", changes)
    console.print(f"{name} has revision {adapter['revision']}", highlight=False)


@app.command("alias")
def alias(
    name: Name,
    alias: Annotated[str, typer.Argument(help="The alias, as in name@alias.")],
    version: Annotated[
        str | None, typer.Argument(help="Number or alias; without, the alias is removed.")
    ] = None,
    url: Url = LOCAL,
    api_key: Key = None,
) -> None:
    """Point an alias of your own to a version, or remove it."""
    client, path = client_of(url, api_key), f"/v1/adapters/{quoted(name)}/aliases/{quoted(alias)}"
    if version is None:
        client.delete(path)
        console.print(f"{name}@{alias} is gone", highlight=False)
        return
    adapter = client.put(path, {"version": version})
    console.print(f"{name}@{alias} is version {adapter['aliases'][alias]}", highlight=False)


@app.command("rollout")
def rollout(
    name: Name,
    version: Annotated[str, typer.Option(help="Number or alias.")] = "latest",
    percent: Annotated[
        list[int] | None,
        typer.Option(help="Share of the requests; many are gone through. Default: 100 at once."),
    ] = None,
    step_s: Annotated[float, typer.Option(help="Seconds from step to step.")] = 300,
    max_accuracy_drop: Annotated[
        float, typer.Option(help="Beyond this, on the evaluation prompts, it is rolled back.")
    ] = 0.02,
    max_negative_flips: Annotated[
        float, typer.Option(help="Share of the prompts that may turn from right to wrong.")
    ] = 0.05,
    gate: Annotated[bool, typer.Option(help="Ask the evaluation prompts at every step.")] = True,
    wait: Annotated[bool, typer.Option(help="Return when it has ended, or holds.")] = True,
    url: Url = LOCAL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Let a version take over: at once or by shares, checked against the version it replaces."""
    limits = {"max_accuracy_drop": max_accuracy_drop, "max_negative_flips": max_negative_flips}
    body = {
        "version": version,
        "percent": percent or [100],
        "step_s": step_s,
        "gate": limits if gate else False,
    }
    client = client_of(url, api_key)
    with bar() as progress:
        task = progress.add_task(f"rolling out {name}", total=None)
        adapter = client.follow(
            "POST",
            f"/v1/adapters/{quoted(name)}/rollout",
            body,
            lambda event: show_event(progress, task, event),
            wait=wait,
        )
    if as_json:
        print_json(adapter)
    else:
        console.print(_told(adapter), highlight=False)
    ended = adapter["last_rollout"]
    if not adapter["rollout"] and ended and ended["outcome"] == "rolled_back":
        raise typer.Exit(1)


@app.command("rollback")
def rollback(
    name: Name,
    version: Annotated[
        str | None, typer.Option(help="Default: the version that was stable before.")
    ] = None,
    url: Url = LOCAL,
    api_key: Key = None,
) -> None:
    """Stop a rollout, or go back to an earlier version, at once."""
    body = {} if version is None else {"version": version}
    adapter = client_of(url, api_key).post(f"/v1/adapters/{quoted(name)}/rollback", body, wait=True)
    console.print(f"{name} is answered by version {adapter['aliases']['stable']}", highlight=False)


@app.command("rm")
def rm(
    name: Annotated[str, typer.Argument(help="The adapter, or one version of it: name@3.")],
    url: Url = LOCAL,
    api_key: Key = None,
) -> None:
    """Remove an adapter with all its versions, or one version."""
    plain, _, version = name.partition("@")
    path = f"/v1/adapters/{quoted(plain)}"
    if version:
        path += f"/versions/{quoted(version)}"
    client_of(url, api_key).delete(path)
    console.print(f"removed {name}", highlight=False)


def _card_fields(
    description: str | None,
    example: list[str] | None,
    evaluation: Path | None,
    tag: list[str] | None,
    owner: str | None,
    visibility: str | None,
    pinned: bool | None,
    replicas: str | None,
) -> dict[str, Any]:
    count = int(replicas) if replicas is not None and replicas.isdecimal() else replicas
    return {
        "description": description,
        "examples": example or None,
        "evaluation": _read_lines(evaluation) if evaluation else None,
        "tags": tag or None,
        "owner": owner,
        "visibility": visibility,
        "pinned": pinned,
        "replicas": count,
    }


def _read_lines(path: Path) -> list[Any]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except OSError as e:
        raise InvalidRequest(f"{path} cannot be read: {e.strerror}") from e
    except ValueError as e:
        raise InvalidRequest(f"{path}: a JSON object a line is needed: {e}") from e


def send_files(client: Any, path: Path, progress: Progress) -> str:
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
    from adapter_store.files.sources import WANTED

    if path.is_file():
        yield path
        return
    if not path.is_dir():
        raise InvalidRequest(f"{path} is not a folder or an archive", param="source")
    with tempfile.TemporaryDirectory(prefix="rh-upload-") as folder:
        archive = Path(folder) / "adapter.tar"
        with tarfile.open(archive, "w") as tar:
            for name in WANTED:
                if (path / name).is_file():
                    tar.add((path / name).resolve(), name)
        yield archive


def bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), DownloadColumn())
    return Progress(*columns, console=console, transient=True)


def show_event(progress: Progress, task: Any, event: dict[str, Any]) -> None:
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
            share, found = event["percents"][event["step"]], _measured(event["evaluation"])
            progress.console.print(f"  {share} % of the requests{found}", highlight=False)
        case what:
            progress.update(task, description=what, completed=event["done"], total=event["total"])


def _told(adapter: dict[str, Any]) -> str:
    name, running, ended = adapter["name"], adapter["rollout"], adapter["last_rollout"]
    if running:
        share = running["percents"][running["step"]] if running["step"] >= 0 else 0
        return f"{name}@{running['version']} gets {share} % of the requests"
    if ended["outcome"] == "done":
        return f"{name} is answered by version {ended['version']}{_measured(ended['evaluation'])}"
    return f"{name}@{ended['version']} was rolled back: {ended['reason']}"


def _measured(evaluation: dict[str, Any] | None) -> str:
    if not evaluation:
        return ""
    return (
        f" (accuracy {evaluation['accuracy_before']:.3f} -> {evaluation['accuracy_after']:.3f}, "
        f"{evaluation['negative_flips']:.3f} negative flips on {evaluation['prompts']} prompts)"
    )


def _printable(text: str) -> str:
    """Without what could move the terminal's cursor: it comes from whoever registered."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
