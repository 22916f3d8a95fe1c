"""One thing that the endpoint offers, and what its schemas are made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]

JSON, TEXT, EVENTS = "application/json", "text/plain", "text/event-stream"
TUS_BODY = "application/offset+octet-stream"
FORM, BYTES = "multipart/form-data", "application/octet-stream"
MODEL: Schema = {
    "type": "string",
    "minLength": 1,
    "description": "auto, a base model, an adapter, name@version or base:name",
}


@dataclass(frozen=True)
class Endpoint:
    """A method of a path.

    Attributes:
        summary: what it does, in a line.
        body: of the request: a model, or a schema; None where there is none.
        body_type: its media type.
        needs_body: false: it may be left out.
        answers: status -> media type -> schema; None for an answer without a body.
        headers: of the request, which FastAPI does not know of: name -> schema.
        differs: from OpenAI's and vLLM's, for those that they have.
    """

    summary: str
    body: type[BaseModel] | Schema | None = None
    body_type: str = JSON
    needs_body: bool = True
    answers: Mapping[int, Mapping[str, Schema] | None] = field(default_factory=dict)
    headers: Mapping[str, Schema] = field(default_factory=dict)
    differs: str = ""


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def object_of(required: Mapping[str, Schema], **optional: Schema) -> Schema:
    properties = {**required, **optional}
    return {"type": "object", "properties": properties, "required": list(required)}


def listed(items: Schema, **more: Schema) -> Schema:
    return object_of(
        {"object": {"const": "list"}, "data": {"type": "array", "items": items}, **more}
    )


def json_of(schema: Schema, status: int = 200) -> dict[int, Mapping[str, Schema] | None]:
    return {status: {JSON: schema}}
