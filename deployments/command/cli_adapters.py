"""The commands `roundhouse adapters ...`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from cluster.addresses import is_loopback
from cluster.errors import InvalidRequest
from deployments.command.cli_card import CardOptions, takes_card, without_none
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
    say,
)
from deployments.command.cli_progress import bar, followed, measured, send_files

if TYPE_CHECKING:
    from deployments.command.client import Client

app = typer.Typer(
    help="Register, show, change, roll out and remove adapters.", no_args_is_help=True
)


@app.command("add")
@takes_card
def add(
    source: Annotated[
        str,
        typer.Argument(help="Folder or archive, or a URL: hf://, s3://, gs://, az://, https://."),
    ],
    *,
    name: Annotated[str | None, typer.Option(help="Default: the card's, or the folder's.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Default: the card's.")] = None,
    card: CardOptions,
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
    wait: Annotated[bool, typer.Option(help="Return when every replica has taken it in.")] = True,
    url: Url = LOCAL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Register an adapter, or a new version of one; nothing is restarted."""
    if not source:
        raise InvalidRequest("source is empty: name a folder, an archive or a URL", param="source")
    client = client_of(url, api_key)
    sends = not is_loopback(urlsplit(url).hostname) if upload is None else upload
    named = {"name": name, "base_model": base_model}
    expected = {"sha256": sha256, "base_fingerprint": base_fingerprint}
    body = card.given() | without_none(named | expected) | {"promote": promote}
    with bar() as progress:
        body["source"] = sent = _within_reach(source, client, progress, sends=sends)
        try:
            adapter = followed(
                client, progress, "registering", "/v1/adapters", body, wait=wait, replace=True
            )
        except InvalidRequest:
            if sent.startswith("upload://") and sent != source:  # nobody will ask for it again
                client.delete(f"/v1/uploads/{quoted(sent.removeprefix('upload://'))}")
            raise
    if as_json:
        print_json(adapter)
    else:
        _tell_registered(adapter)


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
            escape(adapter["name"]),
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
@takes_card
def edit(
    name: Name,
    *,
    card: CardOptions,
    revision: Annotated[
        int | None, typer.Option(help="Refuse when the adapter has another by now.")
    ] = None,
    url: Url = LOCAL,
    api_key: Key = None,
) -> None:
    """Change what an adapter says of itself, and how the fleet holds it."""
    changes = card.given()
    if not changes:
        raise InvalidRequest("nothing to change: give at least one option")
    if revision is not None:
        changes["revision"] = revision
    adapter = client_of(url, api_key).patch(f"/v1/adapters/{quoted(name)}", changes)
    say(f"{name} has revision {adapter['revision']}")


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
        say(f"{name}@{alias} is gone")
        return
    adapter = client.put(path, {"version": version})
    say(f"{name}@{alias} is version {adapter['aliases'][alias]}")


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
    client, path = client_of(url, api_key), f"/v1/adapters/{quoted(name)}/rollout"
    with bar() as progress:
        adapter = followed(client, progress, f"rolling out {name}", path, body, wait=wait)
    if as_json:
        print_json(adapter)
    else:
        say(_told(adapter))
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
    say(f"{name} is answered by version {adapter['aliases']['stable']}")


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
    say(f"removed {name}")


def _within_reach(source: str, client: Client, progress: Progress, *, sends: bool) -> str:
    """The source as the endpoint can read it; what is here is sent to it, where that is needed."""
    if "://" in source:
        return source
    path = Path(source).expanduser().resolve()
    return send_files(client, path, progress) if sends else str(path)


def _tell_registered(adapter: dict[str, Any]) -> None:
    name, aliases = adapter["name"], adapter["aliases"]
    say(f"registered {name}@{aliases['latest']}")
    for notice in adapter.get("notices", ()):  # an older endpoint tells none
        say(f"  note: {notice}")
    if aliases["stable"] != aliases["latest"]:
        say(
            f"{name} is still answered by version {aliases['stable']}; "
            f"`roundhouse adapters rollout {shlex.quote(name)}` changes that"
        )


def _told(adapter: dict[str, Any]) -> str:
    name, running, ended = adapter["name"], adapter["rollout"], adapter["last_rollout"]
    if running:
        share = running["percents"][running["step"]] if running["step"] >= 0 else 0
        return f"{name}@{running['version']} gets {share} % of the requests"
    if ended["outcome"] == "done":
        return f"{name} is answered by version {ended['version']}{measured(ended['evaluation'])}"
    return f"{name}@{ended['version']} was rolled back: {ended['reason']}"


def _printable(text: str) -> str:
    """Without what could move the terminal's cursor: it comes from whoever registered."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
