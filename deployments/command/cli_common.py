"""What the commands share: the terminal, common options, the client."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from cluster.errors import InvalidRequest
from cluster.names import in_address, is_whole

if TYPE_CHECKING:
    from deployments.command.client import Client

DEFAULT_CONFIG = Path("roundhouse.yaml")
LOCAL = "http://127.0.0.1:8000"

# What stands between two colons in a name is no picture.
console = Console(emoji=False)
errors = Console(stderr=True, emoji=False)

Config = Annotated[
    Path, typer.Argument(envvar="ROUNDHOUSE_CONFIG", help="The settings file.", show_default=True)
]
Url = Annotated[
    str, typer.Option("--url", envvar="ROUNDHOUSE_URL", help="The endpoint.", show_default=True)
]
Key = Annotated[
    str | None, typer.Option("--api-key", envvar="ROUNDHOUSE_API_KEY", help="An API key.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Name = Annotated[str, typer.Argument(help="The adapter.")]


def client_of(url: str, api_key: str | None) -> Client:
    from deployments.command.client import Client

    return Client(url, api_key)


def quoted(name: str) -> str:
    """A name as one segment of a URL, whatever characters it has."""
    if name in (".", "..") or not is_whole(name):
        raise InvalidRequest(f"{name!r} is not the name of an adapter", param="name")
    return in_address(name)


def say(text: str) -> None:
    """A line as it is: names may have what is markup elsewhere."""
    console.print(text, markup=False, highlight=False)


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
