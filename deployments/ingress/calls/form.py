"""Bodies of calls that come as a form with a file, and bodies as engines get them."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import httpx
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from cluster.errors import InvalidRequest, UnsupportedMediaType

FORM_TYPE = "multipart/form-data"
_MOST_FIELDS = 100


@dataclass(frozen=True)
class Sent:
    """A body, and what it is sent as."""

    body: bytes
    content_type: str = "application/json"


@dataclass(frozen=True)
class SentFile:
    """A file of a form."""

    name: str
    content_type: str
    content: bytes


async def fields_of_form(body: bytes, content_type: str) -> dict[str, Any]:
    """The fields of a form: texts, lists of them where a name comes again, and one file.

    Raises:
        UnsupportedMediaType: it is sent as something else.
        InvalidRequest: it is no form.
    """
    if content_type.partition(";")[0].strip().lower() != FORM_TYPE:
        raise UnsupportedMediaType(
            f"the body is sent as {content_type[:80] or 'nothing in particular'}; this call takes "
            f"a form with a file ({FORM_TYPE}; curl: -F file=@NAME -F model=NAME)"
        )
    headers = Headers({"content-type": content_type})
    parser = MultiPartParser(headers, _whole(body), max_files=1, max_fields=_MOST_FIELDS)
    # It is in memory already, and no disk needs to have it.
    parser.spool_max_size = len(body) + 1
    try:
        form = await parser.parse()
    except MultiPartException as e:
        raise InvalidRequest(f"the body is not a form: {e.message}") from e
    fields: dict[str, Any] = {}
    try:
        for name in form:
            values = [await _value(value) for value in form.getlist(name)]
            fields[name] = values if len(values) > 1 else values[0]
    finally:
        await form.close()
    if str(fields.get("n", "")).isdecimal():
        fields["n"] = int(fields["n"])
    return fields


async def _whole(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


async def _value(value: str | UploadFile) -> str | SentFile:
    if isinstance(value, str):
        return value
    name, content_type = value.filename or "file", value.content_type or "application/octet-stream"
    return SentFile(name, content_type, await value.read())


def packed_form(fields: dict[str, Any]) -> Sent:
    """A form again."""
    files = {
        name: (value.name, value.content, value.content_type)
        for name, value in fields.items()
        if isinstance(value, SentFile)
    }
    texts = {name: value for name, value in fields.items() if name not in files}
    request = httpx.Request("POST", "http://engine", data=texts, files=files)
    return Sent(request.read(), request.headers["content-type"])
