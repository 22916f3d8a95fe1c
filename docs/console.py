"""Pages that show commands with what they print: `python -m docs.console PAGE` records them anew.

A page's fenced `console` blocks hold commands, each behind `$ `, and their output. Beside a running
`make demo`, from the project's folder, this runs the commands and writes what they print. A test
runs them on real engines and holds the output against the page.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

WIDTH = 96
_BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
# What differs from run to run; the lengths differ with it, and so does the space around.
_VOLATILE = re.compile(
    "|".join(
        (
            r"[0-9a-f]{64}",
            r'replica [a-z0-9]{8}|"replica": "[a-z0-9]{8}"',
            r"[0-9]+\.[0-9]+|\b[0-9]{4,}\b",
            r"revision [0-9]+|\b[0-9]+ (?=adapters|blobs)",
            r'in a slot|in host memory|"(slot|host)"',
        )
    )
)


@dataclass
class Step:
    command: str
    output: str


def steps(block: str) -> list[Step]:
    """The commands of a block, with the output that it shows."""
    found: list[Step] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append(Step(line[2:], ""))
        elif found and found[-1].command.endswith("\\"):
            found[-1].command += f"\n{line}"
        else:
            found[-1].output += f"{line}\n"
    return found


def page_steps(page: str) -> list[Step]:
    return [step for block in _BLOCK.findall(page) for step in steps(block)]


def run(command: str, **environment: str) -> str:
    """What a command prints, its standard error included."""
    done = subprocess.run(
        command,
        shell=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": str(WIDTH), **environment},
    )
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    return "".join(f"{line}\n" for line in lines if line)


def settled(output: str) -> list[str]:
    """The lines of an output without what differs from run to run, in an order that does not."""
    lines = _VOLATILE.sub("~", output).splitlines()
    return sorted(" ".join(line.split()) for line in lines if line.strip())


def record(page: str, execute: Callable[[str], str]) -> str:
    """The page with new output in its blocks."""

    def redo(match: re.Match[str]) -> str:
        done = [f"$ {s.command}\n{execute(s.command)}" for s in steps(match.group(1))]
        return "```console\n" + "".join(done) + "```"

    return _BLOCK.sub(redo, page)


def main() -> None:
    page = Path(sys.argv[1])
    page.write_text(record(page.read_text(), run))


if __name__ == "__main__":
    main()
