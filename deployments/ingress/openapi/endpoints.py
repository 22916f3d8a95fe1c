"""What the endpoint offers: one entry for each method of each path."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from cluster.adapters import Card, Rollout, RolloutEnd, Version
from cluster.batches import Counts, Status, StoredFile
from cluster.decisions import Decision, RoutedRequest
from cluster.encoders.kept import TrainedEncoder
from cluster.requests import AliasRequest, Registration, RollbackRequest, RolloutRequest
from cluster.rules import Rule, RuleSet
from deployments.ingress.batches.jobs import PURPOSE, BatchRequest
from deployments.ingress.changes.vllm import Load, Unload
from deployments.ingress.encoders.http import Use
from deployments.ingress.feedback import Rated
from router.adapters.constraints import Constraints

Schema = dict[str, Any]

JSON, TEXT, EVENTS = "application/json", "text/plain", "text/event-stream"
TUS_BODY = "application/offset+octet-stream"
FORM, BYTES = "multipart/form-data", "application/octet-stream"


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


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: Mapping[str, Schema], **optional: Schema) -> Schema:
    properties = {**required, **optional}
    return {"type": "object", "properties": properties, "required": list(required)}


def _listed(items: Schema, **more: Schema) -> Schema:
    return _object({"object": {"const": "list"}, "data": {"type": "array", "items": items}, **more})


def _json(schema: Schema, status: int = 200) -> dict[int, Mapping[str, Schema] | None]:
    return {status: {JSON: schema}}


_TEXT: Schema = {"type": "string"}
_STATUS = _object({"status": {"type": "string"}})
_READY = _object(
    {"status": {"type": "string"}},
    not_preloaded={
        "type": "object",
        "additionalProperties": {"type": "string"},
        "description": "folders of `preload` whose adapters are not there, and why",
    },
)
_COUNT: Schema = {"type": "integer", "minimum": 0}
_ANY: Schema = {"type": "object"}
_ADAPTER = _ref("Adapter")
MODEL: Schema = {
    **_TEXT,
    "minLength": 1,
    "description": "auto, a base model, an adapter, name@version or base:name",
}
_INPUT: Schema = {
    "description": "prompts and conversations to decide on; a list has at most 1024 of them",
    "anyOf": [
        _TEXT,
        {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 1024},
        {"type": "array", "items": _ref("Turn"), "minItems": 1},
    ],
}

# Schemas beside those of the models.
SCHEMAS: dict[str, Schema] = {
    "Turn": {
        "type": "object",
        "properties": {"role": {"enum": ["system", "user", "assistant"]}, "content": _TEXT},
        "required": ["role", "content"],
        "additionalProperties": False,
    },
    "Model": {
        "type": "object",
        "properties": {
            "id": _TEXT,
            "object": {"const": "model"},
            "created": {"type": "integer", "description": "Unix time"},
            "owned_by": _TEXT,
            "root": {"type": ["string", "null"]},
            "parent": {"type": ["string", "null"], "description": "an adapter's base model"},
            "max_model_len": {
                "type": ["integer", "null"],
                "description": "tokens; null where no replica has told yet",
            },
        },
        "required": ["id", "object", "created", "owned_by"],
    },
    "Adapter": {
        "type": "object",
        "properties": {
            **{name: {} for name in Card.model_fields},
            "name": _TEXT,
            "base_model": _TEXT,
            "versions": {"type": "array", "items": _ref("Version")},
            "aliases": {"type": "object", "additionalProperties": {"type": "integer"}},
            "revision": _COUNT,
            "previous": {"type": "array", "items": {"type": "integer"}},
            "rollout": {"anyOf": [_ref("Rollout"), {"type": "null"}]},
            "last_rollout": {"anyOf": [_ref("RolloutEnd"), {"type": "null"}]},
        },
        "required": ["name", "base_model", "versions", "aliases", "revision"],
    },
    "Batch": {
        "type": "object",
        "properties": {
            "id": _TEXT,
            "object": {"const": "batch"},
            "status": {"enum": [status.value for status in Status]},
            "request_counts": _ref("Counts"),
            "output_file_id": {"type": ["string", "null"]},
            "error_file_id": {"type": ["string", "null"]},
        },
        "required": ["id", "object", "endpoint", "input_file_id", "status", "request_counts"],
    },
    "Encoders": _object(
        {
            "held": {"type": ["string", "null"], "description": "null: that of the settings"},
            "previous": {"type": "array", "items": {"type": ["string", "null"]}},
            "encoders": {"type": "array", "items": _ref("TrainedEncoder")},
        }
    ),
    "Edit": {
        "type": "object",
        "description": "fields of the card, and the revision as the client last read it",
        "properties": {
            "description": {**_TEXT, "maxLength": 4000},
            "license": {**_TEXT, "maxLength": 200},
            "pinned": {"type": "boolean"},
            "visibility": {"enum": ["public", "private"]},
            "revision": _COUNT,
            **{
                name: {}
                for name in Card.model_fields
                if name not in ("description", "license", "pinned", "visibility")
            },
        },
        "additionalProperties": False,
    },
}
# Models whose schemas are referred to, for what is sent and for what is answered.
SENT: tuple[type[BaseModel], ...] = (
    *(Constraints, Rule, RuleSet, Registration, RolloutRequest, RollbackRequest, AliasRequest),
    *(Load, Unload, Rated, BatchRequest, Use),
)
ANSWERED: tuple[type[BaseModel], ...] = (
    *(Decision, RoutedRequest, Version, Rollout, RolloutEnd),
    *(StoredFile, Counts, TrainedEncoder),
)

_STREAMED = "a stream ends with one error event, whatever has happened"
_OURS = "`constraints`, the headers `x-roundhouse-*`, and `model: auto`; "
_RULES = _object({name: {} for name in ("rules", "source", "revision", "unknown", "problem")})
_REGISTERED = {
    **_json(_ADAPTER, 201),
    **_json(_ADAPTER, 200),
}
_PAGE: dict[str, Schema] = {
    "first_id": {"type": ["string", "null"]},
    "last_id": {"type": ["string", "null"]},
    "has_more": {"type": "boolean"},
}
_TOKENS = {"upload-length": _COUNT, "upload-metadata": _TEXT}

ENDPOINTS: dict[str, Endpoint] = {
    "POST /v1/chat/completions": Endpoint(
        "Answer a conversation, by the adapter that is named or that `auto` chooses.",
        body=_ref("ChatCompletionRequest"),
        answers={200: {JSON: _ref("ChatCompletionResponse"), EVENTS: _TEXT}},
        differs=_OURS + "an error before the first token of a stream is an answer with its status, "
        f"not an event; {_STREAMED}. Beside OpenAI's, it takes all of vLLM's fields.",
    ),
    "POST /v1/completions": Endpoint(
        "Continue a text, by the adapter that is named or that `auto` chooses.",
        body=_ref("CompletionRequest"),
        answers={200: {JSON: _ref("CompletionResponse"), EVENTS: _TEXT}},
        differs=_OURS
        + "errors as those of chats. As in vLLM, `suffix` only for models that fill in.",
    ),
    "POST /v1/files": Endpoint(
        "Bring a file of requests.",
        body=_object(
            {"file": {"type": "string", "format": "binary"}, "purpose": {"const": PURPOSE}},
            **{"expires_after[seconds]": {"type": "integer", "minimum": 3600}},
        ),
        body_type=FORM,
        answers=_json(_ref("StoredFile")),
        differs="only the purpose `batch`.",
    ),
    "GET /v1/files": Endpoint(
        "List your files, the newest first.", answers=_json(_listed(_ref("StoredFile"), **_PAGE))
    ),
    "GET /v1/files/{file_id}": Endpoint("One of them.", answers=_json(_ref("StoredFile"))),
    "GET /v1/files/{file_id}/content": Endpoint(
        "What is in it.", answers={200: {BYTES: {"type": "string", "format": "binary"}}}
    ),
    "DELETE /v1/files/{file_id}": Endpoint(
        "Remove it; not while a batch reads it.",
        answers=_json(_object({"id": _TEXT, "deleted": {"const": True}})),
    ),
    "POST /v1/batches": Endpoint(
        "Have the requests of a file answered in idle places.",
        body=BatchRequest,
        answers=_json(_ref("Batch")),
        differs="any model, adapter and `auto` in one batch; `completion_window` in minutes, hours "
        "or days. See [batches](batches.md).",
    ),
    "GET /v1/batches": Endpoint(
        "List your batches, the newest first.", answers=_json(_listed(_ref("Batch"), **_PAGE))
    ),
    "GET /v1/batches/{batch_id}": Endpoint("How far a batch is.", answers=_json(_ref("Batch"))),
    "POST /v1/batches/{batch_id}/cancel": Endpoint(
        "Call it off; what is answered is kept.", answers=_json(_ref("Batch"))
    ),
    "GET /v1/models": Endpoint(
        "List `auto`, the base models, and the adapters that the key may see.",
        answers=_json(_listed(_ref("Model"))),
        differs="`auto` is one of them.",
    ),
    "GET /v1/models/{model}": Endpoint(
        "One of them; a version as `name@version`, too.",
        answers=_json(_ref("Model")),
        differs="vLLM has no such call.",
    ),
    "POST /v1/route": Endpoint(
        "What `auto` would choose, without an answer.",
        body=_object(
            {"input": _INPUT},
            constraints=_ref("Constraints"),
            rules={"type": "array", "items": _ref("Rule"), "description": "tried; for admins"},
            tenant={**_TEXT, "description": "as whom they are tried; for admins"},
        ),
        answers=_json(_object({"decisions": {"type": "array", "items": _ref("Decision")}})),
    ),
    "GET /v1/rules": Endpoint("The rules before the choice that hold.", answers=_json(_RULES)),
    "PUT /v1/rules": Endpoint("Have others hold.", body=RuleSet, answers=_json(_RULES)),
    "DELETE /v1/rules": Endpoint("Go back to those of the settings.", answers=_json(_RULES)),
    "GET /v1/router/encoders": Endpoint(
        "Encoders that the catalogue has taught, and which one reads prompts.",
        answers=_json(_ref("Encoders")),
    ),
    "PUT /v1/router/encoders": Endpoint(
        "Have one of them read prompts, or that of the settings.",
        body=Use,
        answers=_json(_ref("Encoders")),
    ),
    "POST /v1/router/encoders/rollback": Endpoint(
        "Go back to the one that read before.", answers=_json(_ref("Encoders"))
    ),
    "POST /v1/feedback": Endpoint(
        "Say how good an answer was, for the router to learn from.",
        body=Rated,
        answers=_json(_object({"request_id": _TEXT, "candidate": _TEXT, "score": {}})),
    ),
    "GET /v1/decisions": Endpoint(
        "The newest decisions.", answers=_json(_listed(_ref("RoutedRequest")))
    ),
    "GET /v1/decisions/{request_id}": Endpoint(
        "Why a request to `auto` went where it went.", answers=_json(_ref("RoutedRequest"))
    ),
    "GET /v1/adapters": Endpoint(
        "List adapters page by page; `next` is the cursor of the next one.",
        answers=_json(_listed(_ANY, next={"type": ["string", "null"]})),
    ),
    "POST /v1/adapters": Endpoint(
        "Register an adapter; with `accept: text/event-stream`, its progress is told.",
        body=Registration,
        answers=_REGISTERED,
    ),
    "GET /v1/adapters/{name}": Endpoint("One adapter, whole.", answers=_json(_ADAPTER)),
    "PUT /v1/adapters/{name}": Endpoint(
        "Register an adapter, or a version of it where there is one.",
        body=Registration,
        answers=_REGISTERED,
    ),
    "PATCH /v1/adapters/{name}": Endpoint(
        "Change fields of its card.", body=_ref("Edit"), answers=_json(_ADAPTER)
    ),
    "DELETE /v1/adapters/{name}": Endpoint(
        "Remove an adapter.",
        answers=_json(_object({"name": _TEXT, "deleted": {"const": True}})),
    ),
    "GET /v1/adapters/{name}/versions": Endpoint(
        "Its versions.", answers=_json(_listed(_ref("Version"), aliases=_ANY))
    ),
    "POST /v1/adapters/{name}/versions": Endpoint(
        "Register a version of it.", body=Registration, answers=_REGISTERED
    ),
    "DELETE /v1/adapters/{name}/versions/{version}": Endpoint(
        "Remove a version.", answers=_json(_ADAPTER)
    ),
    "PUT /v1/adapters/{name}/aliases/{alias}": Endpoint(
        "Have an alias name another version.", body=AliasRequest, answers=_json(_ADAPTER)
    ),
    "DELETE /v1/adapters/{name}/aliases/{alias}": Endpoint(
        "Remove an alias.", answers=_json(_ADAPTER)
    ),
    "POST /v1/adapters/{name}/rollout": Endpoint(
        "Move `stable` to a version by shares of the requests, watched by a gate.",
        body=RolloutRequest,
        answers=_json(_ADAPTER),
    ),
    "POST /v1/adapters/{name}/rollback": Endpoint(
        "Have the version before be `stable` again, at once.",
        body=RollbackRequest,
        needs_body=False,
        answers=_json(_ADAPTER),
    ),
    "POST /v1/load_lora_adapter": Endpoint(
        "Register an adapter, as clients of vLLM do.",
        body=Load,
        answers={200: {TEXT: _TEXT}},
        differs="In all replicas of its base model at once, kept over restarts, and for admins. "
        "`base_model_name` says which, where there are several. "
        "The path is looked at by the rules of `store.sources`. Errors are OpenAI's.",
    ),
    "POST /v1/unload_lora_adapter": Endpoint(
        "Remove an adapter, as clients of vLLM do.",
        body=Unload,
        answers={200: {TEXT: _TEXT}},
        differs="The engines really let go of it. Errors are OpenAI's.",
    ),
    "OPTIONS /v1/uploads": Endpoint("What of tus 1.0 there is.", answers={204: None}),
    "POST /v1/uploads": Endpoint(
        "Begin a resumable upload (tus 1.0).", headers=_TOKENS, answers=_json(_ANY, 201)
    ),
    "HEAD /v1/uploads/{upload_id}": Endpoint("How far it has come.", answers={200: None}),
    "PATCH /v1/uploads/{upload_id}": Endpoint(
        "Send a part of it.",
        body={"type": "string", "format": "binary"},
        body_type=TUS_BODY,
        needs_body=False,
        headers={"upload-offset": _COUNT},
        answers={204: None},
    ),
    "DELETE /v1/uploads/{upload_id}": Endpoint("Leave it.", answers={204: None}),
    "GET /v1/cluster": Endpoint(
        "Replicas, slots, residency, demand.",
        answers=_json({"type": "object", "required": ["members", "store"]}),
    ),
    "GET /v1/dashboard": Endpoint("What the page shows.", answers=_json(_ANY)),
    "GET /v1/history": Endpoint("Traffic over time.", answers=_json(_listed(_ANY))),
    "GET /metrics": Endpoint("Of all processes, for Prometheus.", answers={200: {TEXT: _TEXT}}),
    "GET /healthz": Endpoint("Whether this process lives.", answers=_json(_STATUS)),
    "HEAD /healthz": Endpoint("Likewise, without a body.", answers={200: None}),
    "GET /readyz": Endpoint("Whether requests are answered.", answers=_json(_READY)),
    "HEAD /readyz": Endpoint("Likewise, without a body.", answers={200: None}),
    "GET /health": Endpoint("As `/readyz`, where vLLM's clients ask.", answers=_json(_READY)),
    "HEAD /health": Endpoint("Likewise, without a body.", answers={200: None}),
    "GET /ping": Endpoint("As `/readyz`, where SageMaker asks.", answers=_json(_READY)),
    "HEAD /ping": Endpoint("Likewise, without a body.", answers={200: None}),
    "POST /ping": Endpoint("Likewise.", answers=_json(_READY)),
    "GET /version": Endpoint(
        "The release that answers.",
        answers=_json(_object({"version": _TEXT})),
        differs="Roundhouse's version, not vLLM's.",
    ),
    "HEAD /version": Endpoint("Likewise, without a body.", answers={200: None}),
    "GET /": Endpoint("The page.", answers={200: {"text/html": _TEXT}}),
    "HEAD /": Endpoint("Likewise, without a body.", answers={200: None}),
    "GET /openapi.json": Endpoint("This document.", answers=_json(_ANY)),
}
