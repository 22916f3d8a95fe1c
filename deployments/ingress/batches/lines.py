"""The lines of a batch's files: one request each, one answer each. Pure."""

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.batches import Problem
from cluster.errors import InvalidRequest, RoundhouseError
from deployments.ingress.bodies import parse_json

_MOST_PROBLEMS = 100
_LONGEST_ID = 512


@dataclass(frozen=True)
class Line:
    """A request of a batch.

    Attributes:
        number: of the line, from 1.
        custom_id: by which the client knows its answer.
    """

    number: int
    custom_id: str
    body: Mapping[str, Any]


class BadLine(Exception):
    """A line that is no request."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def read_line(number: int, text: bytes, endpoint: str) -> Line:
    """Raises BadLine, which names the field."""

    def bad(code: str, message: str, param: str | None = None) -> BadLine:
        return BadLine(Problem(code=code, message=message, param=param, line=number))

    try:
        sent = parse_json(text, "the line")
    except InvalidRequest as e:
        raise bad("invalid_json_line", e.message, e.param) from e
    custom_id, body = sent.get("custom_id"), sent.get("body")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _LONGEST_ID:
        message = f"custom_id must be a string of 1 to {_LONGEST_ID} characters"
        raise bad("invalid_custom_id", message, "custom_id")
    if sent.get("method") != "POST":
        raise bad("invalid_method", "method must be 'POST'", "method")
    if sent.get("url") != endpoint:
        raise bad("mismatched_endpoint", f"url must be the batch's endpoint, {endpoint}", "url")
    if not isinstance(body, dict):
        raise bad("missing_required_parameter", "body must be a JSON object", "body")
    if body.get("stream"):
        raise bad("invalid_request", "answers of a batch are not streamed", "body.stream")
    return Line(number, custom_id, body)


def examine(
    lines: Iterable[bytes], endpoint: str, most: int, longest: int
) -> tuple[int, list[Problem]]:
    """How many requests there are, and what is wrong: the first hundred problems.

    Args:
        most: requests that there may be.
        longest: bytes that one may have.
    """
    problems: list[Problem] = []
    known: set[str] = set()
    total = 0
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        total += 1
        if total > most:
            message = f"there are more than {most} requests (batch.max_requests)"
            return total, [Problem(code="too_many_requests", message=message), *problems]
        try:
            if len(text) > longest:
                message = f"the line has more than {longest} bytes (batch.max_request_bytes)"
                raise BadLine(Problem(code="line_too_long", message=message, line=number))
            line = read_line(number, text, endpoint)
            if line.custom_id in known:
                message = f"custom_id {line.custom_id[:80]!r} is that of an earlier line, too"
                raise BadLine(
                    Problem(
                        code="duplicate_custom_id", message=message, param="custom_id", line=number
                    )
                )
            known.add(line.custom_id)
        except BadLine as e:
            problems.append(e.problem)
            if len(problems) == _MOST_PROBLEMS:
                break
    if not total:
        problems.append(Problem(code="empty_file", message="there is no request in the file"))
    return total, problems


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    Attributes:
        content: of the answer; None where there is none.
        error: why there is none.
    """

    custom_id: str
    request_id: str
    status: int = 0
    content: bytes | None = None
    error: Mapping[str, str] | None = None

    @classmethod
    def refused(cls, custom_id: str, request_id: str, error: RoundhouseError) -> "Answer":
        content = json.dumps(error.body()).encode()
        return cls(custom_id, request_id, error.status, content)

    @property
    def is_good(self) -> bool:
        return self.status == 200

    def line(self) -> bytes:
        """As a line of the output or the error file."""
        response = None
        if self.content is not None:
            response = {
                "status_code": self.status,
                "request_id": self.request_id,
                "body": _body(self.content),
            }
        said = {
            "id": f"batch_req_{uuid.uuid4().hex}",
            "custom_id": self.custom_id,
            "response": response,
            "error": self.error,
        }
        return json.dumps(said).encode() + b"\n"


def custom_id_of(line: bytes) -> str:
    """Of a line that :meth:`Answer.line` made."""
    return str(json.loads(line)["custom_id"])


def _body(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content.decode(errors="replace")
