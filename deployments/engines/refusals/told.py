"""Every error of an engine's answer in OpenAI's shape: the one place where that is done.

vLLM has types and codes of its own, a parameter that begins with "body.", and tells an error that
comes before the first token of a stream inside of the stream.
"""

import json
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from cluster.errors import (
    InvalidRequest,
    ModelNotFound,
    NotFound,
    Overloaded,
    RoundhouseError,
    Unavailable,
)
from deployments.process.call import Reply

logger = logging.getLogger(__name__)

# What our changes of vLLM name as the parameter; the request says which field that is.
GRAMMAR, CONTENT, TEMPLATE = "the_grammar", "the_content", "the_template"
TOOLS = "the_tools"
TOO_LONG = "context_length_exceeded"

_ERROR_EVENT = b'data: {"error"'
_LONGEST = 1000
# Where in a library it was found.
_ORIGIN = re.compile(r"\[[\d:]+\] \S+:\d+: (?:Check failed: .* is false: )?")
# vLLM's exceptions say their fields in their words, too.
_EXTRAS = re.compile(r" \((?:parameter=[\w.\[\]]+)?(?:, )?(?:value=.*)?\)$", re.DOTALL)
_IS_TOO_LONG = re.compile(r"maximum (context|model) length|longer than the maximum|max_model_len")
# A field at the beginning of what is said, as most of vLLM's checks begin.
_NAMED = re.compile(
    r"^`?([a-z]+(?:_[a-z]+)+|temperature|seed|n|stop|logprobs)`? (?:must|should|can|is)"
)
_OF_CONTENT = re.compile(r"^Token id|\bprompts?\b")
_OF_TOOLS = re.compile(r"^tool_choice=|tool choice.* requires")
_CONTENT = ("prompt_embeds", "messages", "prompt")
_NAMES: Mapping[str | None, tuple[str, ...]] = {
    CONTENT: _CONTENT,
    TEMPLATE: ("chat_template_kwargs", "chat_template", *_CONTENT),
    TOOLS: ("tool_choice", "tools"),
}
_KINDS: Mapping[int, type[RoundhouseError]] = {404: NotFound, 429: Overloaded, 503: Unavailable}
# Of what the model cannot do; that another try would not change.
_NOT_IMPLEMENTED = 501


def error_of(status: int, said: Mapping[str, Any], body: bytes = b"{}") -> RoundhouseError:
    """An engine's error object as one of ours.

    Args:
        said: its `message`, and `param` and `code` where it has them.
        body: the request, which says the field where the engine does not.
    """
    message = str(said.get("message") or "the request is refused")
    message = _ORIGIN.sub("", _EXTRAS.sub("", message))[:_LONGEST]
    if status == _NOT_IMPLEMENTED or (400 <= status < 500 and status not in _KINDS):
        return _of_client(status, message, said, body)
    error = _KINDS.get(status, RoundhouseError)(message)
    if status == 404 and "model" in message:
        error.code, error.param = ModelNotFound.code, "model"
    elif status not in _KINDS:
        error.status = status
    return error


def _of_client(status: int, message: str, said: Mapping[str, Any], body: bytes) -> RoundhouseError:
    param, code = said.get("param"), said.get("code")
    error = InvalidRequest(message)
    error.status = 400 if status == _NOT_IMPLEMENTED else status
    error.code = code if isinstance(code, str) and not code.isdecimal() else None
    if _IS_TOO_LONG.search(message):
        error.code = TOO_LONG
        is_of_answer = message.startswith("max_tokens")
        param = "max_tokens" if is_of_answer else _field(CONTENT, body) or param
    if isinstance(param, str):
        param = re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", param.removeprefix("body."))
    elif found := _NAMED.match(message):
        param = found[1]
    elif _OF_CONTENT.search(message):
        param = CONTENT
    elif "hat template" in message:
        param = TEMPLATE
    elif _OF_TOOLS.search(message):
        param = TOOLS
    error.param = _field(param, body)
    if " --" in message:
        error.message = f"{message} (models[].server_args)"
    if error.param and error.param not in message:
        error.message = f"{error.param}: {error.message}"
    return error


def _field(param: str | None, body: bytes) -> str | None:
    """The request's own name of what the engine names by another one."""
    if param == GRAMMAR:
        return grammar_field(_fields(body))
    if param not in _NAMES:
        return param
    fields = _fields(body)
    return next((name for name in _NAMES[param] if fields.get(name)), None)


def _fields(body: bytes) -> Mapping[str, Any]:
    """Of a request; a form has none of those that are looked for."""
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def grammar_field(fields: Mapping[str, Any]) -> str | None:
    """Where a request says what its answer must look like."""
    outputs, wanted = fields.get("structured_outputs"), fields.get("response_format")
    if isinstance(outputs, dict):
        kinds = ("json", "regex", "choice", "grammar", "structural_tag", "json_object")
        kind = next((kind for kind in kinds if outputs.get(kind) is not None), None)
        return f"structured_outputs.{kind}" if kind else "structured_outputs"
    if isinstance(wanted, dict):
        is_schema = isinstance(wanted.get("json_schema"), dict)
        return "response_format.json_schema.schema" if is_schema else "response_format"
    return "tools" if fields.get("tools") else None


@asynccontextmanager
async def in_our_shape(
    answering: AbstractAsyncContextManager[Reply], body: bytes
) -> AsyncIterator[Reply]:
    """The reply to a request of that body, with its errors in our shape.

    A stream that begins with an error is an answer with that error's status.
    """
    async with answering as reply:
        if reply.start.status >= 400:
            told = error_of(reply.start.status, _error_in(await _whole(reply)), body)
            yield Reply.refusal(told)
            return
        if not reply.start.is_stream:
            yield reply
            return
        first = await anext(reply.body, b"")
        if first.startswith(_ERROR_EVENT):
            yield Reply.refusal(_of_event(first, body))
            return
        yield Reply(reply.start, _events(first, reply.body, body))


async def _whole(reply: Reply) -> bytes:
    """An error's body; an application may raise what it has answered."""
    said = bytearray()
    try:
        async for chunk in reply.body:
            said += chunk
    except Exception as e:
        if not said:
            raise
        logger.warning("the engine's application failed", exc_info=e)
    return bytes(said)


async def _events(
    first: bytes, rest: AsyncGenerator[bytes, None], body: bytes
) -> AsyncGenerator[bytes, None]:
    if first:
        yield first
    async for chunk in rest:
        if chunk.startswith(_ERROR_EVENT):
            told = _of_event(chunk, body)
            chunk = b"data: " + json.dumps(told.body()).encode() + b"\n\n"
        yield chunk


def _of_event(event: bytes, body: bytes) -> RoundhouseError:
    said = _error_in(event.partition(b"\n")[0].removeprefix(b"data: "))
    code = said.get("code")
    return error_of(code if isinstance(code, int) else 500, said, body)


def _error_in(data: bytes) -> Mapping[str, Any]:
    """An error object; an empty one where there is none."""
    try:
        found = json.loads(data)
    except ValueError:
        return {"message": data.decode(errors="replace")}
    error = found.get("error", found) if isinstance(found, dict) else {}
    return error if isinstance(error, dict) else {"message": str(error)}
