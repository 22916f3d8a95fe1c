"""The command `roundhouse eval-router`: how well the router chooses. Needs no running cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from cluster.errors import ConfigError
from deployments.command.cli_common import AsJson, console, errors, print_json

if TYPE_CHECKING:
    from cluster.settings import BaseModelSettings, RouterSettings
    from router.adapters.encoder import SentenceEncoder

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
    as_json: AsJson = False,
) -> None:
    """Measure the choice: of adapters (CARDS and PROMPTS) or of expert models (OUTCOMES, TEST)."""
    from cluster.settings import RouterSettings, load_settings

    settings = load_settings(config) if config else None
    chosen = settings.router if settings else RouterSettings()
    models = settings.models if settings else ()
    _check_writable("--out", out)
    _check_writable("--pareto", pareto)
    if pareto is not None and pareto.suffix not in _PICTURES:
        raise ConfigError(f"--pareto {pareto}: the name must end in {', '.join(_PICTURES)}")
    match (cards, prompts, outcomes, test):
        case (Path(), Path(), None, None) if pareto is None:
            report = _of_cards(cards, prompts, out, chosen, models)
        case (None, None, Path(), Path()) if out is None:
            report = _of_outcomes(outcomes, test, pareto, chosen)
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
    train: Path, test: Path, pareto: Path | None, settings: RouterSettings
) -> dict[str, Any]:
    from router.adapters.evaluation import OutcomeLine, draw, evaluate_outcomes, read_lines

    learnt, asked = read_lines(train, OutcomeLine), read_lines(test, OutcomeLine)
    with _progress() as progress:
        report, curve = evaluate_outcomes(learnt, asked, _encoder(settings), progress)
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
