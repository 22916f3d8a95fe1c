"""Long matter that is pasted beside a question: code, logs, tables, mail that is quoted, articles.

It does not say what is wanted of it, and there may be a hundred times as much of it. So where there
is much, and something beside it, what stands beside it is the question. Short matter stays: it is
part of what is asked.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

# So much of it at least, and this share of the text.
_LEAST_CHARS, _LEAST_SHARE = 200, 0.5
# Of unmarked text, a paragraph at an end that asks something of all the rest.
_LONG_TEXT, _LONGEST_ASKING, _LEAST_WORDS = 1200, 300, 4
# Lines of one kind that follow each other.
_LEAST_LINES = 3
# Of a line, what is looked at.
_LINE_CHARS = 300
_FENCE = re.compile(r"[ \t>]{0,8}(?:```|~~~)")
_WORD = re.compile(r"[^\W\d_]{2,}")
# A word or a number, for what may be a sum.
_SAID = re.compile(r"[^\W_]+")
_KINDS = {
    "quoted text": r"[ \t]*>|(?:From|To|Cc|Sent|Date|Subject): |-{3,} ?(?:Original|Forwarded)|"
    r"On .{5,80} wrote:$",
    "a table": r"[ \t]*\|.*\||[ \t]*[+|][-=+|: ]{4,}|[^\t]*\t[^\t]*\t|[^,]*(?:,[^ ,][^,]*){3}",
    "a log": r"[ \t\[]*(?:\d{4}-\d\d-\d\d[ T]|(?:[A-Z][a-z]{2} [ \d]\d )?\d\d:\d\d:\d\d\b)|"
    r"[ \t\[]*(?:TRACE|DEBUG|INFO|WARN|WARNING|ERROR|FATAL|CRITICAL)\b[\]: ]|"
    r"[ \t]*(?:at [\w.$<>]+\(|File \"|Traceback \(|Caused by: |\.\.\. \d+ more)",
    "a listing": r"[-dl][rwx-]{9}|[ \t]*[│├└]|[ \t]*(?:[-*] )?[\w.@~+-]*[/\\][\w.@~+/\\-]*$|"
    r"[ \t]*[\w@+-]+\.[a-z]{1,4}$",
    "markup": r"[ \t]*</?[A-Za-z!?]",
    "a diff": r"diff --git |@@ |(?:---|\+\+\+) [\w/.]|index [0-9a-f]+\.\.",
    "code": r".*[{};]\s*$|[^(\[{]*[(\[{].*[)\]}],?\s*$|[ \t]*[)\]}]|.*\):\s*$|"
    r"[ \t]+\S.*[=(:{\[]|\t\S| {4,}\S|"
    r"[ \t]*(?:import|from|#include|package|using) [\w.<\"/]+(?: import .*)?$|"
    r"[ \t]*[\w.]+ ?(?:[-+*|]|:)?= ?\S|[ \t]*[\"'][\w-]+[\"'] ?:|[ \t]*(?://|/\*)|\$ \S",
}
_LINE = re.compile("|".join(f"(?P<k{i}>{kind})" for i, kind in enumerate(_KINDS.values())))
_NAMES = tuple(_KINDS)
CODE, TEXT = "code", "a long text"


@dataclass(frozen=True)
class Beside:
    """Of a text, what stands beside the matter that is pasted into it.

    Attributes:
        pasted: what kinds of matter were left out.
    """

    text: str
    pasted: tuple[str, ...] = ()


def beside_pasted(text: str) -> Beside:
    """The text without its pasted matter, where that is long and not all of it."""
    if len(text) < _LEAST_CHARS:
        return Beside(text)
    lines = text.strip().split("\n")
    kinds = _blocks(_kinds(lines))
    pasted = sum(len(line) + 1 for line, kind in zip(lines, kinds, strict=True) if kind)
    found = Beside(text)
    if pasted >= max(_LEAST_CHARS, _LEAST_SHARE * len(text)):
        kept = "\n".join(line for line, kind in zip(lines, kinds, strict=True) if not kind)
        if _says_something(kept):
            names = dict.fromkeys(kind for kind in kinds if kind)
            found = Beside(re.sub(r"\n\s*\n", "\n\n", kept).strip(), tuple(names))
    return _beside_text(found)


def _kinds(lines: Sequence[str]) -> list[str]:
    """Of each line, what it looks like; "" for what is said, and " " for blanks."""
    fences = [i for i, line in enumerate(lines) if _FENCE.match(line)]
    paired = frozenset(fences[: len(fences) // 2 * 2])
    kinds, is_fenced = [], False
    for i, line in enumerate(lines):
        if i in paired:
            is_fenced = not is_fenced
            kinds.append(CODE)
        elif is_fenced:
            kinds.append(CODE)
        elif not line or line.isspace():
            kinds.append(" ")
        else:
            found = _LINE.match(line[:_LINE_CHARS])
            kinds.append(_NAMES[int((found.lastgroup or "k0")[1:])] if found else "")
    for i, beside in ((0, 1), (-1, -2)):
        # What is said may end in a bracket :)
        stands_alone = len(kinds) > 2 and kinds[i] == CODE and kinds[beside] == " "
        if stands_alone and not _FENCE.match(lines[i]):
            kinds[i] = ""
    return kinds


def _blocks(kinds: Sequence[str]) -> list[str]:
    """The kinds of lines that stand together; the odd one among what is said is said, too."""
    runs = [[*run] for _, run in groupby(kinds, key=lambda kind: not kind)]
    for before, run, after in zip(runs, runs[1:], runs[2:], strict=False):
        is_within = not run[0] and before[-1].strip() and after[0].strip()
        if is_within and len(run) < _LEAST_LINES:
            run[:] = [before[-1]] * len(run)
    found: list[str] = []
    for is_said, group in groupby((k for run in runs for k in run), key=lambda kind: not kind):
        run = [*group]
        marks = [kind for kind in run if kind.strip()]
        stays = is_said or len(marks) < _LEAST_LINES
        found += [""] * len(run) if stays else [kind.strip() or marks[0] for kind in run]
    return found


def _says_something(text: str) -> bool:
    return len(_SAID.findall(text)) >= 2


def _beside_text(found: Beside) -> Beside:
    """Of a long text, the paragraph at one of its ends that asks something of the rest."""
    if len(found.text) < _LONG_TEXT:
        return found
    parts = [part.strip() for part in re.split(r"\n[ \t]*\n", found.text) if part.strip()]
    if len(parts) < 2:
        return found
    asking = [part for part in dict.fromkeys((parts[0], parts[-1])) if _asks(part)]
    return Beside("\n".join(asking), (*found.pasted, TEXT)) if asking else found


def _asks(part: str) -> bool:
    if len(part) > _LONGEST_ASKING or len(_WORD.findall(part)) < _LEAST_WORDS:
        return False
    return part.endswith(("?", ":"))
