"""`roundhouse router train` works on the store itself, with or without a cluster; `roundhouse
router encoders ...` asks the endpoint."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

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
    say,
)

app = typer.Typer(help="Have the catalogue teach the router's encoder.", no_args_is_help=True)
encoders_app = typer.Typer(
    help="Which trained encoders there are, and which one reads.", no_args_is_help=True
)
app.add_typer(encoders_app, name="encoders")

_PATH = "/v1/router/encoders"
_OF_SETTINGS = "settings"


@app.command()
def train(
    config: Config = DEFAULT_CONFIG,
    use: Annotated[
        bool, typer.Option(help="Have prompts read with it, if it is better; else only keep it.")
    ] = True,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Instead of the settings' router.training.seed.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tune the encoder on the cards and on positive feedback, and keep it if it is better.

    Cross-validation decides: it must be right about more of the examples that it was not tuned on,
    by more than the standard error of that. Takes minutes on a CPU.
    """
    done = _train(config, use=use, seed=seed)
    if as_json:
        print_json(done)
        return
    marks = done["marks"]
    say(
        f"held-out examples whose own adapter comes first: {marks['before']:.1%} untrained, "
        f"{marks['after']:.1%} trained ({marks['examples']} examples; {100 * marks['gain']:+.1f} "
        f"± {100 * marks['error']:.1f} points)"
    )
    losses = marks["loss_before"], marks["loss_after"]
    say("log-loss of these: {:.3f} untrained, {:.3f} trained".format(*losses))
    if not marks["is_better"]:
        say("not better by more than its standard error: the encoder stays as it was")
        return
    made = done["encoder"]
    say(f"kept as {made['id']}, after {made['took_s']:.0f} s of training")
    if done["is_used"]:
        say("the prompt routers take it over; `roundhouse router encoders rollback` undoes that")
    else:
        say(f"`roundhouse router encoders use {made['id']}` has prompts read with it")


def _train(config: Any, *, use: bool, seed: int | None) -> dict[str, Any]:
    from adapter_store.embedded import store_at_hand
    from cluster.settings import load_settings
    from deployments.chooser.training.running import Task, train

    settings = load_settings(config)
    if seed is not None:
        terms = settings.router.training.model_copy(update={"seed": seed})
        chosen = settings.router.model_copy(update={"training": terms})
        settings = settings.model_copy(update={"router": chosen})
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        *(TextColumn("loss {task.fields[loss]:.3f}"), TimeElapsedColumn(), TimeRemainingColumn()),
    )
    with (
        store_at_hand(settings.store) as store,
        Progress(*columns, console=errors, transient=True) as bar,
    ):
        row = bar.add_task("starting", total=None, loss=0.0)

        def tell(doing: str, done: int, total: int, loss: float) -> None:
            bar.update(row, description=doing, completed=done, total=total, loss=loss)

        task = Task(settings.model_copy(update={"store": store}), use=use)
        return asyncio.run(train(task, tell))


@encoders_app.command("list")
def list_encoders(url: Url = LOCAL, api_key: Key = None, as_json: AsJson = False) -> None:
    """List the trained encoders, the newest first."""
    _show(client_of(url, api_key).get(_PATH), as_json=as_json)


@encoders_app.command("use")
def use_encoder(
    encoder: Annotated[str, typer.Argument(help="Its id; `settings`: the settings' own.")],
    url: Url = LOCAL,
    api_key: Key = None,
) -> None:
    """Have prompts read with one; the one before answers until it has learnt the cards."""
    wanted = None if encoder == _OF_SETTINGS else encoder
    _show(client_of(url, api_key).put(_PATH, {"id": wanted}))


@encoders_app.command("rollback")
def roll_back(url: Url = LOCAL, api_key: Key = None) -> None:
    """Have prompts read with the one that did so before."""
    _show(client_of(url, api_key).post(f"{_PATH}/rollback", {}))


def _show(told: dict[str, Any], *, as_json: bool = False) -> None:
    if as_json:
        print_json(told)
        return
    table = Table("", "encoder", "made", "adapters", "texts", "before", "after", "seed")
    for one in told["encoders"]:
        table.add_row(
            "held" if one["id"] == told["held"] else "",
            one["id"],
            _when(one["made_at"]),
            *(str(one[name]) for name in ("adapters", "texts")),
            *(f"{one[name]:.1%}" for name in ("before", "after")),
            str(one["seed"]),
        )
    console.print(table)
    say(f"held: {told['held'] or 'the encoder of the settings'}")


def _when(made_at: float) -> str:
    from datetime import UTC, datetime

    return f"{datetime.fromtimestamp(made_at, UTC):%Y-%m-%d %H:%M} UTC"
