"""Every error that Roundhouse raises on purpose, in one tree, each knowing how HTTP should say it.

The wire shape is OpenAI's: ``{"error": {"message", "type", "param", "code"}}``.
"""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

_LONGEST_MESSAGE = 2000
_LONGEST_COMPARED = 130
_MOST_COMPARED = 1000

Model = TypeVar("Model", bound=BaseModel)


class RoundhouseError(Exception):
    """Base of the tree.

    Args:
        message: what is wrong and how to mend it, for the caller's eyes.
        param: the request field or setting at fault, when there is one.
    """

    status = 500
    type = "server_error"
    code: str | None = None
    retry_after_s: float | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        if len(message) > _LONGEST_MESSAGE:
            message = f"{message[:_LONGEST_MESSAGE]}..."
        super().__init__(message)
        self.message = message
        self.param = param

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.param, self.retry_after_s)

    def body(self) -> dict[str, Any]:
        """The OpenAI error object. Half characters, which a client may send, have no UTF-8."""
        message = self.message.encode(errors="replace").decode()
        error = {"message": message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    def headers(self) -> dict[str, str]:
        if self.retry_after_s is None:
            return {}
        return {"retry-after": str(max(1, round(self.retry_after_s)))}


def _rebuild(
    cls: type[RoundhouseError], message: str, param: str | None, retry_after_s: float | None
) -> RoundhouseError:
    """Unpickle an error: Ray carries it from a replica to the ingress."""
    error = cls.__new__(cls)
    RoundhouseError.__init__(error, message, param=param)
    error.retry_after_s = retry_after_s
    return error


class InvalidRequest(RoundhouseError):
    """The request has a field that is missing, malformed or out of range."""

    status = 400
    type = "invalid_request_error"

    @classmethod
    def of(cls, error: ValidationError, *within: str) -> "InvalidRequest":
        """The first problem of a validation, named by its field (inside the fields `within`)."""
        problems = error.errors()
        place = _place(problems[0])
        # A value that may be one thing or another has a problem with each.
        said = dict.fromkeys(_in_words(p) for p in problems if _place(p) == place)
        message = " or ".join(said)
        if not place and (named := _NAMED.match(message)):
            place, message = (named[1],), named[2]
        field = ".".join((*within, *place)).replace(".[", "[")
        return cls(f"{field}: {message}", param=field)


# What pydantic puts into a path beside fields and indices: the alternatives of a union.
_ALTERNATIVE = re.compile(r"^(literal\[.*|int|str|bool|float|constrained-.*|function-.*|[A-Z]\w*)$")
# A check of several fields begins its message with the one to mend.
_NAMED = re.compile(r"^(\w+): (.*)", re.DOTALL)
_PATTERNS = {
    "sha256": "64 hexadecimal digits are needed",
    "alias": "begin with a lower-case letter; then lower-case letters, digits, '.', '_' and '-'",
}
_NAME_PATTERN = (
    "up to 64 lower-case letters, digits, '.', '_' and '-' are allowed, with a letter or digit at "
    "both ends"
)


def _place(problem: Mapping[str, Any]) -> tuple[str, ...]:
    """Fields, and the indices of lists as clients write them."""
    parts = (p for p in problem["loc"] if not _ALTERNATIVE.match(str(p)))
    return tuple(f"[{p}]" if isinstance(p, int) else str(p) for p in parts)


def _in_words(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "string_pattern_mismatch":
        return _PATTERNS.get(str(problem["loc"][-1]), _NAME_PATTERN)
    return str(problem["msg"]).removeprefix("Value error, ")


def parse(model: type[Model], fields: Any, *within: str, keep_unknown: bool = False) -> Model:
    """A value from what a client sent (inside the fields `within`); raises InvalidRequest, which
    names the field.

    Args:
        keep_unknown: a part comes from the store, where a newer release may have added fields.
    """
    try:
        return model.model_validate(fields, extra=None if keep_unknown else "forbid")
    except ValidationError as e:
        raise InvalidRequest.of(e, *within) from e


class AdapterRefused(InvalidRequest):
    """An adapter did not pass the checks at the door; nothing of it was stored."""

    code = "adapter_refused"


class SourceMissing(AdapterRefused):
    """There is nothing at the place that a source names, or nothing that may be read."""


class OutOfScope(InvalidRequest):
    """No adapter fits the prompt, and the settings say to refuse such ones."""

    status = 422
    code = "out_of_scope"


class Unauthenticated(RoundhouseError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class Forbidden(RoundhouseError):
    status = 403
    type = "permission_error"
    code = "insufficient_scope"


class HostRefused(Forbidden):
    """The request names a host that this endpoint is not: a page elsewhere may have sent it."""

    code = "host_not_allowed"


class OriginRefused(Forbidden):
    """A web page elsewhere has sent the request."""

    code = "origin_not_allowed"


class LocalOnly(Forbidden):
    """What is asked for is elsewhere, and the request or its key says that nothing may leave."""

    code = "local_only"


class NotFound(RoundhouseError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(NotFound):
    """No base model, adapter or version answers to that name."""

    code = "model_not_found"

    def __init__(self, name: str, known: Iterable[str] = (), *, param: str = "model") -> None:
        near = get_close_matches(name, _likely(name, known), n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
        shown = name if len(name) <= 80 else name[:77] + "..."
        super().__init__(
            f"The model {shown!r} does not exist.{hint} GET /v1/models lists what does.",
            param=param,
        )


class CannotAnswer(InvalidRequest):
    """The model is there, and does not do what is asked of it.

    Args:
        call: its path; task: that it needs.
        able: base models that can.
    """

    code = "model_not_supported"

    def __init__(self, model: str, call: str, task: str, able: Iterable[str] = ()) -> None:
        names = ", ".join(able)
        others = f"of the base models here, {names} can" if names else "no base model here can"
        super().__init__(
            f"{model} does not answer {call}, which needs a model that can {task!r}; {others}",
            param="model",
        )


def _likely(name: str, known: Iterable[str]) -> list[str]:
    """The names worth comparing: that takes time, and anybody may ask for anything."""
    if len(name) > _LONGEST_COMPARED:
        return []
    names = list(known)
    if len(names) > _MOST_COMPARED:
        names = [n for n in names if n[:1] == name[:1]][:_MOST_COMPARED]
    return names


class Conflict(RoundhouseError):
    """The write contradicts what is stored: a name taken, a stale revision."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"


class Stale(Conflict):
    """What the writer has read was changed by another one meanwhile."""


class RequestTimedOut(RoundhouseError):
    """The client has not sent all of its request in time."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class PayloadTooLarge(RoundhouseError):
    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class UnsupportedMediaType(RoundhouseError):
    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class Overloaded(RoundhouseError):
    """Every replica is at its limit; try again after ``retry_after_s``."""

    status = 429
    type = "rate_limit_error"
    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(RoundhouseError):
    """A part that this request needs is down; it is expected back."""

    status = 503
    type = "service_unavailable_error"
    code = "unavailable"
    retry_after_s = 2.0


class BeingFetched(Unavailable):
    """An adapter is on its way in, for longer than the request would wait."""

    code = "being_fetched"
    retry_after_s = 5.0


class ReplicaLost(Unavailable):
    """The replica that had the request died; another one can take it."""

    code = "replica_lost"


class EndpointUnavailable(Unavailable):
    """An endpoint elsewhere does not answer, or not as it should."""

    code = "endpoint_unavailable"

    def __init__(self, message: str, *, retry_after_s: float = 2.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoreUnavailable(Unavailable):
    """The adapter store does not answer: reads go on from the last snapshot, writes wait."""

    code = "store_unavailable"


class StorageFull(Unavailable):
    """There is no room for files where this cluster writes them; somebody must make some."""

    status = 507
    code = "storage_full"
    retry_after_s = 60.0


class AdapterLoadFailed(Unavailable):
    """The engine refused or could not read a registered adapter."""

    code = "adapter_load_failed"


class EngineRefused(AdapterLoadFailed):
    """The files are there, and the engine does not take them."""

    code = "engine_refused"


class ConfigError(RoundhouseError):
    """The settings cannot be used; the message names the key."""

    code = "config_error"
