"""Write the parts of the docs that the code knows best: `python -m docs.generate` (`make docs`).

A test holds the committed files against what this would write.
"""

import contextlib
import dataclasses
import json
import types
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from benchmarks.report import page, router_table
from cluster.calls import CALLS
from cluster.settings import AuthSettings, HttpSettings, Settings
from deployments.command.cli import app
from deployments.ingress.http import build_http
from deployments.ingress.openapi.document import document
from deployments.ingress.operations import Operations
from deployments.process import metrics
from k8s import generate as kubernetes
from k8s import monitoring
from tests.adapter_kinds import table

HERE = Path(__file__).parent


def main() -> None:
    # In this order: the document has vLLM's schemas, the overlays are rendered from the chart.
    for make in (engine_schemas, pages, kubernetes.chart_files, kubernetes.overlay_files):
        for name, content in make().items():
            (HERE / name).parent.mkdir(parents=True, exist_ok=True)
            (HERE / name).write_text(content)


def engine_schemas() -> dict[str, str]:
    """What the ingress, which has no vLLM, knows of its requests. To import vLLM takes long, so
    that they are no part of `pages`."""
    from deployments.engines.request_schemas import schemas

    return {"../deployments/ingress/openapi/vllm.json": json.dumps(schemas(), indent=1) + "\n"}


def pages() -> dict[str, str]:
    """File name -> content, of every generated page."""
    return {
        "benchmarks.md": page(),
        "cli.md": cli_page(),
        "endpoint.md": endpoint_page(),
        "metrics.md": metrics_page(),
        "openapi.json": json.dumps(openapi(), indent=1) + "\n",
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


@cache
def openapi() -> dict[str, Any]:
    """The document of an endpoint that asks for keys; handlers are never called."""
    parts = {f.name: None for f in dataclasses.fields(Operations)}
    offered = Operations(**{**parts, "admin": types.SimpleNamespace(uploads=None)})
    made = build_http(offered, HttpSettings(), AuthSettings(), lifespan=contextlib.nullcontext)
    return document(made, asks_for_keys=True)


def endpoint_page() -> str:
    lines = [
        "# The endpoint",
        "",
        "Generated from [openapi.json](openapi.json), which `GET /openapi.json` answers with, by",
        "`make docs`. Where keys are asked for, `client` is any key and `admin` one of that scope.",
        "",
        "| call | key | body | what it does |",
        "|---|---|---|---|",
    ]
    differs = []
    for path, operations in openapi()["paths"].items():
        for method, operation in operations.items():
            call = f"`{method.upper()} {path}`"
            lines.append(
                f"| {call} | {operation.get('x-scope', '')} | {_body(operation)} "
                f"| {operation['summary']} |"
            )
            if said := operation.get("description"):
                differs.append(f"| {call} | {said.removeprefix('Differs: ')} |")
    return "\n".join([*lines, *_errors_section(), *differs, ""])


def _body(operation: dict[str, Any]) -> str:
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        name = content["schema"].get("$ref", "").rpartition("/")[2]
        return f"`{name or kind}`"
    return ""


def _errors_section() -> list[str]:
    return [
        "",
        "## Errors",
        "",
        "Everywhere OpenAI's shape, in streams too (as their last event):",
        '`{"error": {"message", "type", "param", "code"}}`. `param` is the bare field',
        "(`messages[0].content`) or null, `code` a text or null: `context_length_exceeded`,",
        "`model_not_found`, `invalid_api_key`, `overloaded`. A request that the engine cannot",
        "serve because of what is in it is a 4xx: to send it again does not help. 5xx is the",
        "cluster's.",
        "",
        "## What differs from OpenAI's and vLLM's",
        "",
        "| call | |",
        "|---|---|",
    ]


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
