"""Write the parts of the docs that the code knows best: `python -m docs.generate` (`make docs`).

A test holds the committed files against what this would write.
"""

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from benchmarks.report import page, router_table
from cluster.calls import CALLS
from cluster.settings import Settings
from deployments.command.cli import app
from deployments.process import metrics
from k8s import generate as kubernetes
from k8s import monitoring
from tests.adapter_kinds import table

HERE = Path(__file__).parent


def main() -> None:
    # In this order: the overlays are rendered from what is written before.
    for make in (pages, kubernetes.chart_files, kubernetes.overlay_files):
        for name, content in make().items():
            (HERE / name).parent.mkdir(parents=True, exist_ok=True)
            (HERE / name).write_text(content)


def pages() -> dict[str, str]:
    """File name -> content, of every generated page."""
    return {
        "benchmarks.md": page(),
        "cli.md": cli_page(),
        "metrics.md": metrics_page(),
        "settings.md": settings_page(),
        "../README.md": readme(),
        "adapters.md": adapters_page(),
        "calls.md": calls_page(),
        **{
            f"../k8s/chart/monitoring/{name}": content
            for name, content in monitoring.files().items()
        },
    }


def readme() -> str:
    """The README, with the benchmark's table in its place."""
    start, end = "<!-- router:start -->\n", "<!-- router:end -->"
    head, _, rest = (HERE.parent / "README.md").read_text().partition(start)
    _, _, tail = rest.partition(end)
    return head + start + "\n".join(router_table()) + "\n\n" + end + tail


def adapters_page() -> str:
    """The page, with what became of each kind of adapter in its place."""
    start, end = "<!-- kinds:start -->\n", "<!-- kinds:end -->"
    head, _, rest = (HERE / "adapters.md").read_text().partition(start)
    _, _, tail = rest.partition(end)
    return head + start + "\n".join(table()) + "\n\n" + end + tail


def calls_page() -> str:
    """The page, with the table of the calls in its place."""
    start, end = "<!-- calls:start -->\n", "<!-- calls:end -->"
    head, _, rest = (HERE / "calls.md").read_text().partition(start)
    _, _, tail = rest.partition(end)
    rows = ["| `POST` | | a model that can | `auto` goes by | adapters |", "|---|---|---|---|---|"]
    for kind in CALLS.values():
        choice = "the prompt" if kind.by_prompt else "the first model that can"
        adapters = "yes" if kind.adapters else "change nothing"
        rows.append(f"| `{kind.path}` | {kind.says} | `{kind.task}` | {choice} | {adapters} |")
    return head + start + "\n".join(rows) + "\n" + end + tail


def cli_page() -> str:
    lines = ["# The command line", "", "Generated from the commands by `make docs`.", ""]
    for path, command in _commands(typer.main.get_command(app), "roundhouse"):
        lines += [f"## `{path}`", "", command.help.splitlines()[0], ""]
        rows = [_option_row(p) for p in command.params if p.name != "help"]
        if rows:
            lines += ["| | default | meaning |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def metrics_page() -> str:
    lines = [
        "# Metrics",
        "",
        "Generated from `deployments/process/metrics.py` by `make docs`. `GET /metrics` of the",
        "endpoint tells those of all processes, each with the label `process`, and vLLM's own",
        "(`vllm:...`).",
        "",
        "| metric | type | labels | meaning |",
        "|---|---|---|---|",
    ]
    for metric in metrics.all_metrics().values():
        described = metric.describe()[0]
        name = described.name + ("_total" if described.type == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in metrics.labels_of(metric))
        lines.append(f"| `{name}` | {described.type} | {labels} | {described.documentation} |")
    return "\n".join([*lines, ""])


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for name, sub in sorted(command.commands.items()):
            yield from _commands(sub, f"{path} {name}")
    else:
        yield path, command


def _option_row(param: Any) -> str:
    if param.param_type_name == "argument":
        name = f"`{param.name.upper()}`"
    else:
        name = f"`{'` / `'.join([*param.opts, *param.secondary_opts])}`"
    default = param.default() if callable(param.default) else param.default
    shown = "" if default in (None, False) else f"`{default}`"
    variable = f" (`{param.envvar}`)" if getattr(param, "envvar", None) else ""
    return f"| {name} | {shown} | {getattr(param, 'help', '') or ''}{variable} |"


def settings_page() -> str:
    lines = [
        "# Settings",
        "",
        "Generated from `cluster/settings.py` by `make docs`. One YAML file holds them all; a key",
        "that is not listed here is refused. Any of them can be overridden by an environment",
        "variable: `ROUNDHOUSE_HTTP__PORT=9000` sets `http.port`. In strings, `${NAME}` and",
        "`${NAME:-default}` are replaced from the environment.",
        "",
        "| setting | type | default | meaning |",
        "|---|---|---|---|",
        *_setting_rows(Settings, ""),
        "",
    ]
    return "\n".join(lines)


def _setting_rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        nested, many = _section_of(field.annotation)
        path = f"{prefix}{name}{'[]' if many else ''}"
        if nested:
            yield f"| **`{path}`** | | | {field.description} |"
            yield from _setting_rows(nested, f"{path}.")
            continue
        if field.default is PydanticUndefined:
            default = "required" if field.default_factory is None else "`{}`"
        else:
            default = "" if field.default is None else f"`{_plain(field.default)}`"
        kind = _type_name(field.annotation).replace("|", "or")
        yield f"| `{path}` | {kind} | {default} | {field.description} |"


def _section_of(annotation: object) -> tuple[type[BaseModel] | None, bool]:
    """The section behind an annotation, which may be left out, and whether it is a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    inner = next(iter(typing.get_args(annotation)), None)
    if isinstance(inner, type) and issubclass(inner, BaseModel):
        return inner, typing.get_origin(annotation) is tuple
    return None, False


def _type_name(annotation: object) -> str:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return "one of " + ", ".join(f"`{a}`" for a in args)
    if origin in (typing.Union, types.UnionType):
        return _type_name(next(a for a in args if a is not type(None)))
    if origin is typing.Annotated:
        return _type_name(args[0])
    if origin is tuple:
        return f"list of {_type_name(args[0])}"
    if origin is dict:
        return "mapping"
    return {"Path": "path", "str": "text", "int": "integer", "float": "number"}.get(
        annotation.__name__, annotation.__name__
    )


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "[]" if value == () else str(value)


if __name__ == "__main__":
    main()
