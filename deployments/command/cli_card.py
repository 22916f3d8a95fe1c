"""What `roundhouse adapters add` and `edit` can both say of an adapter."""

import functools
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.errors import InvalidRequest


@dataclass(frozen=True)
class CardOptions:
    """The options, as they were typed."""

    description: Annotated[str | None, typer.Option(help="What it is for.")] = None
    example: Annotated[
        list[str] | None, typer.Option(help="A prompt it is for; may be given many times.")
    ] = None
    evaluation: Annotated[
        Path | None,
        typer.Option(help='File of prompts with known answers, {"prompt", "expected"} a line.'),
    ] = None
    tag: Annotated[list[str] | None, typer.Option(help="May be given many times.")] = None
    owner: Annotated[str | None, typer.Option(help="The tenant that it belongs to.")] = None
    visibility: Annotated[str | None, typer.Option(help="public, or private to its owner.")] = None
    pinned: Annotated[
        bool | None, typer.Option("--pin/--no-pin", help="Keep it in the memory of its replicas.")
    ] = None
    replicas: Annotated[str | None, typer.Option(help="How many replicas hold it, or auto.")] = None

    def given(self) -> dict[str, Any]:
        """The card's fields that were given, as the API takes them."""
        count = self.replicas
        return without_none(
            {
                "description": self.description,
                "examples": self.example or None,
                "evaluation": _read_lines(self.evaluation) if self.evaluation else None,
                "tags": self.tag or None,
                "owner": self.owner,
                "visibility": self.visibility,
                "pinned": self.pinned,
                "replicas": int(count) if count and count.isdecimal() else count,
            }
        )


def takes_card(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with the options of a card where it has the parameter `card`."""
    options = [
        option.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for option in inspect.signature(CardOptions).parameters.values()
    ]
    signature = inspect.signature(command, eval_str=True)
    shown: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        shown += options if parameter.name == "card" else [parameter]

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        card = CardOptions(**{option.name: given.pop(option.name) for option in options})
        command(card=card, **given)

    # Typer reads the options off the signature.
    vars(with_options)["__signature__"] = signature.replace(parameters=shown)
    return with_options


def without_none(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def _read_lines(path: Path) -> list[Any]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except OSError as e:
        raise InvalidRequest(f"{path} cannot be read: {e.strerror}") from e
    except ValueError as e:
        raise InvalidRequest(f"{path}: a JSON object a line is needed: {e}") from e
