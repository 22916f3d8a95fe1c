"""Record the picture of the README: `python -m docs.record_session` beside a running `make demo`.

It runs real commands and draws what they print.
"""

import io
import os
import re
import subprocess
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 104
_SPINNER = re.compile("[\u2800-\u28ff]")
THIRTEENTH = "chmod"
COMMANDS = [
    'roundhouse chat "every weekday at half past nine"',
    'roundhouse chat "what is the capital of France?"',
    'roundhouse route "undo my last commit but keep the changes staged"',
    f"roundhouse adapters add examples/adapters/{THIRTEENTH}",
    'roundhouse chat "only I may read and change secrets.txt"',
    "roundhouse status",
]


def main() -> None:
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(WIDTH)}
    for command in COMMANDS:
        done = subprocess.run(
            command, shell=True, capture_output=True, text=True, env=environment, check=True
        )
        console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
        console.print(Text.from_ansi(_settled(done.stdout)))
    console.save_svg(str(Path(__file__).parent / "session.svg"), title="roundhouse")


def _settled(output: str) -> str:
    """Without the frames of spinners (Braille characters), which only make sense live."""
    output = re.sub(r"\x1b\[\?25[lh]|\x1b\[2K|\x1b\[1A", "", output)
    lines = [line for line in re.split(r"[\r\n]+", output) if not _SPINNER.search(line)]
    return "\n".join(lines).strip() + "\n"


if __name__ == "__main__":
    main()
