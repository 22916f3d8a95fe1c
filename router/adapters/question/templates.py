"""Prompts that programs make of a question: `Context information is below.{}Query: {question}`.

`{question}` is what the user asked, `{}` any text. What is written is looked for as it stands, but
for the blanks between words. It begins the text, unless the template begins with `{}`; where no
`{question}` is in it, nothing that follows is the user's. Each piece is looked for once, from one
end: no matcher goes back and tries again.
"""

import re

from cluster.foreign.wrappers import ANYTHING, QUESTION


class Template:
    """Args: written: as settings have it, checked there."""

    def __init__(self, written: str) -> None:
        before, self._asks, after = written.partition(QUESTION)
        first, *rest = before.split(ANYTHING)
        self._is_anywhere = not first
        if not first and rest:
            first, *rest = rest
        *between, label = rest or [""]
        end, *more = after.split(ANYTHING)
        self._label, self._end = _line_of(label), _line_of(end)
        self._first = _line_of(first)
        self._between = [re.compile(_words_of(piece)) for piece in between if piece.strip()]
        # Where any text follows the question, what stands before it is met first of all; else last.
        self._is_followed = bool(more)

    def question_in(self, text: str) -> str | None:
        """What the user asked, "" where that is nothing; None for a text of another kind."""
        start = 0
        if self._first is not None:
            find = self._first.search if self._is_anywhere else self._first.match
            found = find(text, 0 if self._is_anywhere else _first_of(text))
            if found is None:
                return None
            start = found.end()
        for piece in self._between:
            found = piece.search(text, start)
            if found is None:
                return None
            start = found.end()
        if self._label is not None:
            ends = [found.end() for found in self._label.finditer(text, start)]
            if not ends:
                return None
            start = ends[0 if self._is_followed else -1]
        end = self._end_in(text, start)
        if end is None:
            return None
        return text[start:end].strip() if self._asks else ""

    def _end_in(self, text: str, start: int) -> int | None:
        if self._end is None:
            return len(text)
        begins = [found.start() for found in self._end.finditer(text, start)]
        if self._is_followed:
            return begins[0] if begins else None
        return begins[-1] if begins else len(text)  # a last word may be missing


def _first_of(text: str) -> int:
    """Where the line begins that is not blank."""
    said = len(text) - len(text.lstrip())
    return text.rfind("\n", 0, said) + 1


def _line_of(piece: str) -> re.Pattern[str] | None:
    """The words of a piece, at the beginning of a line."""
    return re.compile(rf"^[ \t]*{_words_of(piece)}", re.MULTILINE) if piece.strip() else None


def _words_of(piece: str) -> str:
    return r"\s+".join(map(re.escape, piece.split()))
