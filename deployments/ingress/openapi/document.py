"""The document, made of the routes that there are and of what `endpoints` says of each."""

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from cluster.calls import CALLS
from deployments.ingress.openapi import endpoints
from deployments.ingress.openapi.endpoint import JSON, MODEL, Endpoint, Schema
from deployments.ingress.openapi.endpoints import ENDPOINTS
from router.adapters.constraints import HEADER_PREFIX, OURS

_REF = "#/components/schemas/{model}"
_KEY = "key"
_ERROR: Schema = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string", "description": "what is wrong, and the remedy"},
                "type": {"type": "string"},
                "param": {
                    "type": ["string", "null"],
                    "description": "the field at fault, as messages[0].content",
                },
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
        }
    },
    "required": ["error"],
    "additionalProperties": False,
}
# As Anthropic words it.
_MESSAGE_ERROR: Schema = {
    "type": "object",
    "properties": {"type": {"const": "error"}, **_ERROR["properties"]},
    "required": ["type", "error"],
    "additionalProperties": False,
}
# By the beginning of the status; HEAD has no body, whatever the status.
_REFUSALS = {"4XX": "The request is at fault.", "5XX": "The cluster is, or a part of it is away."}
_INFERENCE = ("ChatCompletionRequest", "CompletionRequest")
# What a request may say of the constraints, beside its body.
_HEADERS = ("adapters", "exclude", "tags", "base-model")


def document(app: FastAPI, *, asks_for_keys: bool) -> dict[str, Any]:
    """Of all routes of an application; raises KeyError for one that `endpoints` does not have."""
    with warnings.catch_warnings():
        # Of a route that takes two methods; its operations get names of their own below.
        warnings.filterwarnings("ignore", "Duplicate Operation ID")
        made = get_openapi(
            title="Roundhouse",
            version=version("roundhouse"),
            description=(
                "Many LoRA adapters on few base models, behind one OpenAI-compatible endpoint."
            ),
            routes=app.routes,
        )
    scopes = _scopes(app)
    for path, operations in made["paths"].items():
        for method, operation in operations.items():
            offered = f"{method.upper()} {path}"
            scope = scopes[offered] if asks_for_keys else None
            operations[method] = _operation(offered, operation, ENDPOINTS[offered], scope)
    made["components"] = {"schemas": _schemas()}
    if asks_for_keys:
        made["components"]["securitySchemes"] = {_KEY: {"type": "http", "scheme": "bearer"}}
    return made


def routes(app: FastAPI) -> Iterator[tuple[str, APIRoute]]:
    """All that are offered, as ``METHOD /path``."""
    for route in app.routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            for method in sorted(route.methods):
                yield f"{method} {route.path_format}", route


def _scopes(app: FastAPI) -> dict[str, str | None]:
    """By what is offered: the scope that a key must have, or None where no key is needed."""
    return {
        offered: next(
            (scope for d in route.dependencies if (scope := getattr(d.dependency, "scope", None))),
            None,
        )
        for offered, route in routes(app)
    }


def _operation(
    offered: str, found: Mapping[str, Any], described: Endpoint, scope: str | None
) -> dict[str, Any]:
    method = offered.partition(" ")[0]
    # Some of vLLM's calls have a name with and one without.
    short = offered.replace("/v1/", "/")
    name = re.sub(r"\W+", "_", (offered if short in ENDPOINTS else short).lower()).strip("_")
    made: dict[str, Any] = {"operationId": name, "summary": described.summary}
    if described.differs:
        made["description"] = f"Differs: {described.differs}"
    if parameters := [*found.get("parameters", ()), *_headers(offered, described)]:
        made["parameters"] = parameters
    if described.body is not None:
        content = {described.body_type: {"schema": _schema(described.body)}}
        made["requestBody"] = {"content": content, "required": described.needs_body}
    made["responses"] = _responses(described, _error_of(offered) if method != "HEAD" else "")
    if scope is not None:
        made["security"] = [{_KEY: []}]
        made["x-scope"] = scope
    return made


def _headers(offered: str, described: Endpoint) -> list[Schema]:
    headers = dict(described.headers)
    if offered.removeprefix("POST ") in CALLS:
        headers |= {HEADER_PREFIX + name: {"type": "string"} for name in _HEADERS}
    is_required = {"upload-length", "upload-offset"}
    return [
        {"name": name, "in": "header", "schema": schema, "required": name in is_required}
        for name, schema in headers.items()
    ]


def _error_of(offered: str) -> str:
    """The schema of its errors."""
    kind = CALLS.get(offered.removeprefix("POST "))
    return "MessageError" if kind is not None and kind.is_anthropic else "Error"


def _responses(described: Endpoint, errors: str) -> dict[str, Any]:
    answers = {
        str(status): {
            "description": "Done.",
            **({"content": {t: {"schema": s} for t, s in content.items()}} if content else {}),
        }
        for status, content in described.answers.items()
    }
    error = {"content": {JSON: {"schema": {"$ref": _REF.format(model=errors)}}}}
    refusals = {
        status: {"description": said, **(error if errors else {})}
        for status, said in _REFUSALS.items()
    }
    return answers | refusals


def _schema(body: type[BaseModel] | Schema) -> Schema:
    return body if isinstance(body, dict) else {"$ref": _REF.format(model=body.__name__)}


def _schemas() -> dict[str, Schema]:
    theirs = json.loads(files(__package__).joinpath("vllm.json").read_text())
    for name in _INFERENCE:
        _extend(theirs[name])
    sent, answered = _of(endpoints.SENT, "validation"), _of(endpoints.ANSWERED, "serialization")
    # Not a client's to send: the endpoint knows who asks, and who can answer.
    for name in OURS:
        del sent["Constraints"]["properties"][name]
    for schema in answered.values():
        # A newer release may have stored more.
        schema.pop("additionalProperties", None)
    ours = answered | sent | endpoints.SCHEMAS | {"Error": _ERROR, "MessageError": _MESSAGE_ERROR}
    return dict(sorted((theirs | ours).items()))


def _extend(request: Schema) -> None:
    """A request of vLLM's as this endpoint takes it."""
    request["properties"]["model"] = MODEL
    request["properties"]["constraints"] = {"$ref": _REF.format(model="Constraints")}
    request["required"] = sorted({*request.get("required", ()), "model"})
    for name in ("messages", "prompt"):
        if name in request["properties"]:
            request["required"] = sorted({*request["required"], name})


def _of(models: Sequence[type[BaseModel]], mode: JsonSchemaMode) -> dict[str, Schema]:
    _, made = models_json_schema([(model, mode) for model in models], ref_template=_REF)
    found: dict[str, Schema] = made["$defs"]
    return found
