"""The command `roundhouse`."""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from cluster.errors import RoundhouseError, parse
from cluster.names import from_header
from deployments.command import cli_adapters, cli_apply, cli_router, cli_store
from deployments.command.batches import cli as cli_batches
from deployments.command.cli_common import (
    DEFAULT_CONFIG,
    LOCAL,
    AsJson,
    Config,
    Key,
    Url,
    client_of,
    console,
    errors,
    print_json,
)
from deployments.command.encoders import cli as encoders

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
keys_app = typer.Typer(help="Make API keys.", no_args_is_help=True)
cli_adapters.app.command("apply")(cli_apply.apply)
app.add_typer(cli_adapters.app, name="adapters")
app.add_typer(cli_batches.app, name="batch")
app.add_typer(cli_store.app, name="store")
app.add_typer(keys_app, name="keys")
app.command("eval-router")(cli_router.eval_router)
app.add_typer(cli_router.rules_app, name="rules")
app.add_typer(encoders.app, name="router")


def _tell_version(asked: bool) -> None:
    if asked:
        console.print(version("roundhouse"))
        raise typer.Exit


@app.callback()
def options(
    tells_version: Annotated[
        bool,
        typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Serve many LoRA adapters on few base models behind one endpoint."""


def main() -> None:
    """Run the command; what goes wrong on purpose is one line on standard error and exit code 1."""
    # What it writes, and what the processes that it starts write, is for its owner alone.
    os.umask(0o077)
    try:
        app()
    except RoundhouseError as e:
        errors.print(f"[red]error:[/] {escape(e.message)}", highlight=False)
        sys.exit(1)


@app.command()
def up(
    config: Config = DEFAULT_CONFIG,
    address: Annotated[
        str | None, typer.Option(help="Join this Ray cluster ('auto': the one on this machine).")
    ] = None,
) -> None:
    """Start the cluster and keep it running until Ctrl-C; Ray is started again when it dies."""
    from cluster.settings import load_settings
    from deployments.command.upkeep import keep_up

    settings = load_settings(config)
    if settings.is_open and settings.auth.open:
        errors.print("[yellow]warning:[/] auth.open: whoever reaches this machine may do anything")
    if settings.auth.keys and not settings.auth.enabled:
        errors.print("[yellow]warning:[/] auth.keys are listed, but auth.enabled is false: anybody")
        errors.print("may do anything")
    with _Progress() as progress:

        def ready(endpoint: str) -> None:
            progress.pause()
            _greet(endpoint, asks_for_key=settings.auth.enabled)

        keep_up(
            settings,
            address=address,
            progress=progress.say,
            warn=_warn,
            ready=ready,
            show_key=partial(show_first_key, settings.store.root),
        )
    console.print("stopped")


@app.command()
def down(config: Config = DEFAULT_CONFIG) -> None:
    """Stop the cluster that was started with the same settings."""
    from cluster.settings import load_settings
    from deployments.command.runs import stop_running

    settings = load_settings(config)
    with console.status("stopping"):
        was_running = stop_running(settings.store.root)
    console.print("stopped" if was_running else "nothing was running")


@app.command()
def status(url: Url = LOCAL, api_key: Key = None, as_json: AsJson = False) -> None:
    """Show the replicas, what they hold, and what is wrong."""
    cluster = client_of(url, api_key).get("/v1/cluster")
    if as_json:
        print_json(cluster)
        return
    table = Table("replica", "base model", "node", "slots", "host", "running", "problems")
    for member in cluster["members"]:
        if member["kind"] != "replica":
            continue
        held = member["residency"]
        table.add_row(
            member["id"],
            member["model"],
            member["node"],
            escape(f"{len(held['slots'])}/{held['slot_capacity']}: {', '.join(held['slots'])}"),
            f"{len(held['host'])}/{held['host_capacity'] - held['slot_capacity']}",
            str(member["ongoing"]),
            escape("; ".join(_problems(member))),
        )
    console.print(table)
    for found in cluster["deployments"]:
        if found["reason"]:
            console.print(f"[red]{found['name']} {found['status']}[/]: {escape(found['reason'])}")
    console.print(f"{cluster['adapters']} adapters registered; store {cluster['store']}")


def _problems(member: dict[str, Any]) -> list[str]:
    """Of a replica; one of the release before knows of no trouble."""
    found = [f"{key}: {why}" for key, why in member["problems"].items()]
    return found + ([member["trouble"]] if member.get("trouble") else [])


@app.command()
def doctor(config: Config = DEFAULT_CONFIG) -> None:
    """Check this machine and the settings; exit code 1 when something would not work."""
    from deployments.command.doctor import examine

    findings = examine(config)
    table = Table("", "check", "finding")
    for finding in findings:
        mark = "[green]ok[/]" if finding.ok else "[red]no[/]"
        table.add_row(mark, finding.check, escape(finding.detail))
    console.print(table)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def route(
    text: Annotated[str, typer.Argument(help="The prompt.")],
    rules: Annotated[
        Path | None, typer.Option(help="Try the rules of this file, not those that hold.")
    ] = None,
    tenant: cli_router.Tenant = None,
    header: cli_router.Header = None,
    url: Url = LOCAL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show which adapter a prompt would go to, and why."""
    body = cli_router.trial(text, rules, tenant)
    headers = cli_router.headers_of(header)
    (decision,) = client_of(url, api_key).post("/v1/route", body, headers)["decisions"]
    if as_json:
        print_json(decision)
        return
    chosen = escape(decision["adapter"] or "base model")
    console.print(f"[bold]{chosen}[/]  {escape(decision['reason'])}")
    if decision.get("left_out"):
        left_out = ", ".join(decision["left_out"])
        console.print(f"decided by {decision['decided_by']!r}, without {left_out}", markup=False)
    console.print(
        f"confidence {decision['confidence']:.2f}; in scope {decision['in_scope']:.2f}, threshold "
        f"{decision['threshold']:.2f}"
    )
    table = Table("candidate", "score", "cost", "residency", "expected wait")
    for candidate in decision["candidates"]:
        table.add_row(
            escape(candidate["adapter"] or f"{candidate['model']} (base model)"),
            f"{candidate['score']:.3f}",
            f"{candidate['cost']:.3f}",
            candidate["residency"] or "",
            f"{1000 * candidate['costs'].get('latency_s', 0):.0f} ms",
        )
    console.print(table)
    for name, constraint in decision["excluded"].items():
        console.print(escape(f"{name} would be better, but for {constraint}"))
    for found in decision["evidence"]:
        console.print(f"{found['share']:5.0%} of the score: {escape(found['example'])}")


@app.command()
def chat(
    text: Annotated[
        str | None, typer.Argument(help="One prompt; without it, line by line.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="'auto', a base model, an adapter, name@version.")
    ] = "auto",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    url: Url = LOCAL,
    api_key: Key = None,
) -> None:
    """Talk to the cluster; each answer says which adapter gave it."""
    client = client_of(url, api_key)
    prompts: Iterable[str] = [text] if text else _typed_lines()
    for prompt in prompts:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
        }
        for piece in client.stream_chat(body):
            if isinstance(piece, dict):
                adapter, route_ = piece["x-roundhouse-adapter"], piece["x-roundhouse-route"]
                console.print(f"[dim]{escape(f'{from_header(adapter)} ({route_})')}[/]")
            else:
                console.out(piece, end="", highlight=False)
        console.print()


@keys_app.command("new")
def keys_new(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    scope: Annotated[str, typer.Option(help="client or admin.")] = "client",
    owner: Annotated[str, typer.Option(help="The tenant that it is of. Default: its name.")] = "",
    local_only: Annotated[
        bool, typer.Option("--local-only", help="Nothing sent with it goes to a model elsewhere.")
    ] = False,
) -> None:
    """Make a key: the key itself is shown once, its hash goes into the settings."""
    from cluster.settings import ApiKey
    from deployments.ingress.auth import new_key

    key, sha256 = new_key()
    said = {"name": name, "scope": scope, "owner": owner, "local_only": local_only}
    entry = parse(ApiKey, said | {"sha256": sha256})
    console.out(f"key: {key}", highlight=False)
    console.out(f"for auth.keys: {json.dumps(entry.model_dump())}", highlight=False)


class _Progress:
    """What is going on: one live line on a terminal, a line per step in a log."""

    def __init__(self) -> None:
        self._status = console.status("starting")
        self._said = ""

    def __enter__(self) -> "_Progress":
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def say(self, message: str) -> None:
        if message == self._said:
            return
        self._said = message
        if console.is_terminal:
            self._status.update(escape(message))
            self._status.start()
        else:
            console.print(message, markup=False, highlight=False)

    def pause(self) -> None:
        self._status.stop()


def _warn(what: str) -> None:
    errors.print(f"[yellow]warning:[/] {escape(what)}", highlight=False, soft_wrap=True)


def _typed_lines() -> Iterator[str]:
    while True:
        try:
            yield console.input("[bold]you:[/] ")
        except (EOFError, KeyboardInterrupt):
            return


def show_first_key(root: Path, key: str) -> None:
    """On a terminal; what is no terminal may be a log, which keeps it and is read by others."""
    from deployments.command.first_key import leave_key

    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    say("auth.enabled is true and auth.keys is empty: the first admin's key was made.")
    if sys.stdout.isatty():
        say("It is shown this once; clients send it as 'Authorization: Bearer KEY'.")
        say(f"\n  {key}\n")
    else:
        say(f"It is in {leave_key(root, key)}, this once: read it, and remove the file.")


def _greet(endpoint: str, *, asks_for_key: bool) -> None:
    prompt = {"role": "user", "content": "every weekday at half past nine"}
    body = json.dumps({"model": "auto", "messages": [prompt]})
    key = "-H 'authorization: Bearer KEY' " if asks_for_key else ""
    console.print(f"\n[bold green]Roundhouse is ready[/] at {endpoint}\n")
    console.out(
        f"  curl -i {endpoint}/v1/chat/completions \\\n"
        f"    {key}-H 'content-type: application/json' \\\n    -d '{body}'\n",
        highlight=False,
    )
    console.print("Ctrl-C stops it.", highlight=False)
