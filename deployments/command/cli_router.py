"""How `auto` chooses: how well (`roundhouse eval-router`, which needs no running cluster), and what
rules hold before (`roundhouse rules ...`)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from cluster.errors import ConfigError, InvalidRequest, parse
from deployments.command.cli_common import (
    LOCAL,
    AsJson,
    Key,
    Url,
    client_of,
    console,
    errors,
    print_json,
    say,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cluster.settings import BaseModelSettings, RouterSettings
    from router.adapters.encoder import SentenceEncoder

rules_app = typer.Typer(
    help="Show and set the rules that are read before the classifier.", no_args_is_help=True
)

RulesFile = Annotated[
    Path, typer.Argument(help="YAML or JSON: a list of rules, below `rules:` or not.")
]
Tenant = Annotated[str | None, typer.Option(help="As this tenant; the endpoint lets admins alone.")]
Header = Annotated[
    list[str] | None,
    typer.Option("--header", help="'NAME: VALUE' of the request; may be repeated."),
]

_PICTURES = (".png", ".svg", ".pdf")


def eval_router(
    cards: Annotated[
        Path | None,
        typer.Option(help='Lines {"name", "description"?, "examples": [..]}.'),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help='Lines {"input", "adapter"}; "adapter": null is out of scope.'),
    ] = None,
    outcomes: Annotated[
        Path | None,
        typer.Option(help='To learn from: lines {"input", "scores": {NAME: 0..1}, "costs"?}.'),
    ] = None,
    test: Annotated[Path | None, typer.Option(help="To choose on: lines like OUTCOMES.")] = None,
    out: Annotated[
        Path | None, typer.Option(help='Write a line {"chosen", "confidence"} per prompt.')
    ] = None,
    pareto: Annotated[
        Path | None, typer.Option(help="Draw what quality each cost buys (PNG, SVG, PDF).")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Take the router's settings from this file.")
    ] = None,
    reader: Annotated[
        str | None,
        typer.Option(
            help="The router's reader, or none. Default: CONFIG's; without one, the demo's base "
            "model, where `make demo` has prepared it."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the choice: of adapters (CARDS and PROMPTS) or of expert models (OUTCOMES, TEST)."""
    chosen, models = _settings_of(config, reader)
    _check_writable("--out", out)
    _check_writable("--pareto", pareto)
    if pareto is not None and pareto.suffix not in _PICTURES:
        raise ConfigError(f"--pareto {pareto}: the name must end in {', '.join(_PICTURES)}")
    match (cards, prompts, outcomes, test):
        case (Path(), Path(), None, None) if pareto is None:
            report = _of_cards(cards, prompts, out, chosen, models)
        case (None, None, Path(), Path()) if out is None:
            report = _of_outcomes(outcomes, test, pareto, chosen, models)
        case _:
            raise ConfigError(
                "give --cards and --prompts (with --out for a line per prompt), or --outcomes and "
                "--test (with --pareto for a picture)"
            )
    if as_json:
        print_json(report)
        return
    table = Table("", "")
    for name, value in report.items():
        if name != "points":
            table.add_row(name, json.dumps(value) if isinstance(value, list | dict) else str(value))
    console.print(table)


def _settings_of(
    config: Path | None, reader: str | None
) -> tuple[RouterSettings, Sequence[BaseModelSettings]]:
    from cluster.settings import RouterSettings, load_settings

    settings = load_settings(config) if config else None
    chosen = settings.router if settings else RouterSettings(reader=_prepared())
    if reader is not None:
        chosen = chosen.model_copy(update={"reader": None if reader == "none" else reader})
    return chosen, settings.models if settings else ()


def _prepared() -> str | None:
    """The demo's base model, if it is there."""
    cache = Path(os.environ.get("ROUNDHOUSE_CACHE") or "~/.cache/roundhouse").expanduser()
    folder = cache / "smollm2-135m-instruct"
    return str(folder) if folder.is_dir() else None


def _check_writable(option: str, path: Path | None) -> None:
    """Before the work, not after it."""
    if path is not None and (path.is_dir() or not os.access(path.absolute().parent, os.W_OK)):
        raise ConfigError(f"{option} {path}: not a file in a folder that can be written to")


def _of_cards(
    cards: Path,
    prompts: Path,
    out: Path | None,
    settings: RouterSettings,
    models: Sequence[BaseModelSettings],
) -> dict[str, Any]:
    from router.adapters.evaluation import CardLine, PromptLine, evaluate_cards, read_lines
    from router.adapters.reader import Reader

    known, asked = read_lines(cards, CardLine), read_lines(prompts, PromptLine)
    reader = Reader.of(settings, models)
    with _progress() as progress:
        report, lines = evaluate_cards(known, asked, _encoder(settings), settings, progress, reader)
    if out is not None:
        out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return report


def _of_outcomes(
    train: Path,
    test: Path,
    pareto: Path | None,
    settings: RouterSettings,
    models: Sequence[BaseModelSettings],
) -> dict[str, Any]:
    from router.adapters.evaluation import OutcomeLine, draw, evaluate_outcomes, read_lines
    from router.adapters.reader import Reader

    learnt, asked = read_lines(train, OutcomeLine), read_lines(test, OutcomeLine)
    reader = Reader.of(settings, models)
    with _progress() as progress:
        report, curve = evaluate_outcomes(learnt, asked, _encoder(settings), progress, reader)
    if pareto is not None:
        draw(curve, pareto)
    return report


def _encoder(settings: RouterSettings) -> SentenceEncoder:
    from router.adapters.encoder import SentenceEncoder

    return SentenceEncoder.of(settings)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error; standard output is for the report."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def tell(step: str, done: int, total: int) -> None:
            bar.update(task, description=step, completed=done, total=total)

        yield tell


# -- rules ----------------------------------------------------------------------------------


@rules_app.command("show")
def show_rules(url: Url = LOCAL, api_key: Key = None, as_json: AsJson = False) -> None:
    """Show the rules that hold, as a file that `set` takes."""
    held = client_of(url, api_key).get("/v1/rules")
    if as_json:
        print_json(held)
        return
    import yaml

    say(f"# of the {held['source']}, revision {held['revision']}")
    say(yaml.safe_dump({"rules": held["rules"]}, sort_keys=False, allow_unicode=True).rstrip())
    _warn(held)


@rules_app.command("set")
def set_rules(
    file: RulesFile,
    revision: Annotated[
        int | None, typer.Option(help="Only if they have this one still, as `show` told it.")
    ] = None,
    url: Url = LOCAL,
    api_key: Key = None,
) -> None:
    """Have the rules of a file hold, in place of all that held; nothing is restarted."""
    sent = {"rules": _read_rules(file)}
    held = client_of(url, api_key).put(
        "/v1/rules", sent if revision is None else sent | {"revision": revision}
    )
    say(f"rules that hold: {len(held['rules'])}, revision {held['revision']}")
    _warn(held)


@rules_app.command("reset")
def reset_rules(url: Url = LOCAL, api_key: Key = None) -> None:
    """Have the rules of the settings (`router.rules`) hold again."""
    held = client_of(url, api_key).delete("/v1/rules")
    say(f"rules that hold, of the settings: {len(held['rules'])}")


@rules_app.command("test")
def check_rules(
    file: RulesFile,
    text: Annotated[str, typer.Argument(help="A prompt.")],
    tenant: Tenant = None,
    header: Header = None,
    as_json: AsJson = False,
) -> None:
    """Show which rules of a file speak of a prompt; needs no cluster, so knows no adapters."""
    from cluster.rules import RuleSet
    from router.rules.matching import Asked
    from router.rules.rulebook import Rulebook

    book = Rulebook(parse(RuleSet, {"rules": _read_rules(file)}).rules)
    ruling = book.judge(Asked(text, headers_of(header)), tenant or "", lambda _: True)
    speaking = [*ruling.narrowing, *([ruling.chosen] if ruling.chosen else [])]
    said = [r.model_dump(mode="json", exclude_defaults=True, exclude={"when"}) for r in speaking]
    if as_json:
        print_json(said)
        return
    for rule in said:
        ((what, who),) = ((key, value) for key, value in rule.items() if key != "name")
        names = ", ".join(who) if isinstance(who, list) else who
        say(f"{rule['name']}: {what} {'(the default one)' if names is True else names}")
    if ruling.chosen is None:
        say("the prompt router chooses" + (" among what they leave" if said else "; no rule"))


def trial(text: str, rules: Path | None, tenant: str | None) -> dict[str, Any]:
    """What `/v1/route` is asked."""
    tried = {} if rules is None else {"rules": _read_rules(rules)}
    return {"input": text} | tried | ({} if tenant is None else {"tenant": tenant})


def headers_of(lines: Sequence[str] | None) -> dict[str, str]:
    """From `NAME: VALUE`."""
    found = {}
    for line in lines or ():
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise InvalidRequest(f"--header {line!r}: write NAME: VALUE", param="header")
        found[name.strip().lower()] = value.strip()
    return found


def _read_rules(file: Path) -> list[Any]:
    import yaml

    try:
        tree = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise ConfigError(f"{file} cannot be read as YAML: {e}") from e
    rules = tree.get("rules") if isinstance(tree, dict) else tree
    if not isinstance(rules, list):
        raise ConfigError(f"{file}: a list of rules is needed, or one below `rules:`")
    return rules


def _warn(held: dict[str, Any]) -> None:
    for name in held["unknown"]:
        errors.print(f"[yellow]warning:[/] there is no adapter {escape(repr(name))}")
    if held["problem"]:
        errors.print(f"[yellow]warning:[/] {escape(held['problem'])}")
