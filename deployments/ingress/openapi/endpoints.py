"""What the endpoint offers: one entry for each method of each path."""

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
from deployments.ingress.openapi.calls import CALLED
from deployments.ingress.openapi.endpoint import (
    BYTES,
    EVENTS,
    FORM,
    JSON,
    TEXT,
    TUS_BODY,
    Endpoint,
    Schema,
    json_of,
    listed,
    object_of,
    ref,
)
from router.adapters.constraints import Constraints

_TEXT: Schema = {"type": "string"}
_STATUS = object_of({"status": {"type": "string"}})
_READY = object_of(
    {"status": {"type": "string"}},
    not_preloaded={
        "type": "object",
        "additionalProperties": {"type": "string"},
        "description": "folders of `preload` whose adapters are not there, and why",
    },
)
_COUNT: Schema = {"type": "integer", "minimum": 0}
_ANY: Schema = {"type": "object"}
_ADAPTER = ref("Adapter")
_INPUT: Schema = {
    "description": "prompts and conversations to decide on; a list has at most 1024 of them",
    "anyOf": [
        _TEXT,
        {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 1024},
        {"type": "array", "items": ref("Turn"), "minItems": 1},
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
            "versions": {"type": "array", "items": ref("Version")},
            "aliases": {"type": "object", "additionalProperties": {"type": "integer"}},
            "revision": _COUNT,
            "previous": {"type": "array", "items": {"type": "integer"}},
            "rollout": {"anyOf": [ref("Rollout"), {"type": "null"}]},
            "last_rollout": {"anyOf": [ref("RolloutEnd"), {"type": "null"}]},
        },
        "required": ["name", "base_model", "versions", "aliases", "revision"],
    },
    "Batch": {
        "type": "object",
        "properties": {
            "id": _TEXT,
            "object": {"const": "batch"},
            "status": {"enum": [status.value for status in Status]},
            "request_counts": ref("Counts"),
            "output_file_id": {"type": ["string", "null"]},
            "error_file_id": {"type": ["string", "null"]},
        },
        "required": ["id", "object", "endpoint", "input_file_id", "status", "request_counts"],
    },
    "Encoders": object_of(
        {
            "held": {"type": ["string", "null"], "description": "null: that of the settings"},
            "previous": {"type": "array", "items": {"type": ["string", "null"]}},
            "encoders": {"type": "array", "items": ref("TrainedEncoder")},
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
_RULES = object_of({name: {} for name in ("rules", "source", "revision", "unknown", "problem")})
_REGISTERED = {
    **json_of(_ADAPTER, 201),
    **json_of(_ADAPTER, 200),
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
        body=ref("ChatCompletionRequest"),
        answers={200: {JSON: ref("ChatCompletionResponse"), EVENTS: _TEXT}},
        differs=_OURS + "an error before the first token of a stream is an answer with its status, "
        f"not an event; {_STREAMED}. Beside OpenAI's, it takes all of vLLM's fields.",
    ),
    "POST /v1/completions": Endpoint(
        "Continue a text, by the adapter that is named or that `auto` chooses.",
        body=ref("CompletionRequest"),
        answers={200: {JSON: ref("CompletionResponse"), EVENTS: _TEXT}},
        differs=_OURS
        + "errors as those of chats. As in vLLM, `suffix` only for models that fill in.",
    ),
    **CALLED,
    "POST /v1/files": Endpoint(
        "Bring a file of requests.",
        body=object_of(
            {"file": {"type": "string", "format": "binary"}, "purpose": {"const": PURPOSE}},
            **{"expires_after[seconds]": {"type": "integer", "minimum": 3600}},
        ),
        body_type=FORM,
        answers=json_of(ref("StoredFile")),
        differs="only the purpose `batch`.",
    ),
    "GET /v1/files": Endpoint(
        "List your files, the newest first.", answers=json_of(listed(ref("StoredFile"), **_PAGE))
    ),
    "GET /v1/files/{file_id}": Endpoint("One of them.", answers=json_of(ref("StoredFile"))),
    "GET /v1/files/{file_id}/content": Endpoint(
        "What is in it.", answers={200: {BYTES: {"type": "string", "format": "binary"}}}
    ),
    "DELETE /v1/files/{file_id}": Endpoint(
        "Remove it; not while a batch reads it.",
        answers=json_of(object_of({"id": _TEXT, "deleted": {"const": True}})),
    ),
    "POST /v1/batches": Endpoint(
        "Have the requests of a file answered in idle places.",
        body=BatchRequest,
        answers=json_of(ref("Batch")),
        differs="any model, adapter and `auto` in one batch; `completion_window` in minutes, hours "
        "or days. See [batches](batches.md).",
    ),
    "GET /v1/batches": Endpoint(
        "List your batches, the newest first.", answers=json_of(listed(ref("Batch"), **_PAGE))
    ),
    "GET /v1/batches/{batch_id}": Endpoint("How far a batch is.", answers=json_of(ref("Batch"))),
    "POST /v1/batches/{batch_id}/cancel": Endpoint(
        "Call it off; what is answered is kept.", answers=json_of(ref("Batch"))
    ),
    "GET /v1/models": Endpoint(
        "List `auto`, the base models, and the adapters that the key may see.",
        answers=json_of(listed(ref("Model"))),
        differs="`auto` is one of them.",
    ),
    "GET /v1/models/{model}": Endpoint(
        "One of them; a version as `name@version`, too.",
        answers=json_of(ref("Model")),
        differs="vLLM has no such call.",
    ),
    "POST /v1/route": Endpoint(
        "What `auto` would choose, without an answer.",
        body=object_of(
            {"input": _INPUT},
            constraints=ref("Constraints"),
            rules={"type": "array", "items": ref("Rule"), "description": "tried; for admins"},
            tenant={**_TEXT, "description": "as whom they are tried; for admins"},
        ),
        answers=json_of(object_of({"decisions": {"type": "array", "items": ref("Decision")}})),
    ),
    "GET /v1/rules": Endpoint("The rules before the choice that hold.", answers=json_of(_RULES)),
    "PUT /v1/rules": Endpoint("Have others hold.", body=RuleSet, answers=json_of(_RULES)),
    "DELETE /v1/rules": Endpoint("Go back to those of the settings.", answers=json_of(_RULES)),
    "GET /v1/router/encoders": Endpoint(
        "Encoders that the catalogue has taught, and which one reads prompts.",
        answers=json_of(ref("Encoders")),
    ),
    "PUT /v1/router/encoders": Endpoint(
        "Have one of them read prompts, or that of the settings.",
        body=Use,
        answers=json_of(ref("Encoders")),
    ),
    "POST /v1/router/encoders/rollback": Endpoint(
        "Go back to the one that read before.", answers=json_of(ref("Encoders"))
    ),
    "POST /v1/feedback": Endpoint(
        "Say how good an answer was, for the router to learn from.",
        body=Rated,
        answers=json_of(object_of({"request_id": _TEXT, "candidate": _TEXT, "score": {}})),
    ),
    "GET /v1/decisions": Endpoint(
        "The newest decisions.", answers=json_of(listed(ref("RoutedRequest")))
    ),
    "GET /v1/decisions/{request_id}": Endpoint(
        "Why a request to `auto` went where it went.", answers=json_of(ref("RoutedRequest"))
    ),
    "GET /v1/adapters": Endpoint(
        "List adapters page by page; `next` is the cursor of the next one.",
        answers=json_of(listed(_ANY, next={"type": ["string", "null"]})),
    ),
    "POST /v1/adapters": Endpoint(
        "Register an adapter; with `accept: text/event-stream`, its progress is told.",
        body=Registration,
        answers=_REGISTERED,
    ),
    "GET /v1/adapters/{name}": Endpoint("One adapter, whole.", answers=json_of(_ADAPTER)),
    "PUT /v1/adapters/{name}": Endpoint(
        "Register an adapter, or a version of it where there is one.",
        body=Registration,
        answers=_REGISTERED,
    ),
    "PATCH /v1/adapters/{name}": Endpoint(
        "Change fields of its card.", body=ref("Edit"), answers=json_of(_ADAPTER)
    ),
    "DELETE /v1/adapters/{name}": Endpoint(
        "Remove an adapter.",
        answers=json_of(object_of({"name": _TEXT, "deleted": {"const": True}})),
    ),
    "GET /v1/adapters/{name}/versions": Endpoint(
        "Its versions.", answers=json_of(listed(ref("Version"), aliases=_ANY))
    ),
    "POST /v1/adapters/{name}/versions": Endpoint(
        "Register a version of it.", body=Registration, answers=_REGISTERED
    ),
    "DELETE /v1/adapters/{name}/versions/{version}": Endpoint(
        "Remove a version.", answers=json_of(_ADAPTER)
    ),
    "PUT /v1/adapters/{name}/aliases/{alias}": Endpoint(
        "Have an alias name another version.", body=AliasRequest, answers=json_of(_ADAPTER)
    ),
    "DELETE /v1/adapters/{name}/aliases/{alias}": Endpoint(
        "Remove an alias.", answers=json_of(_ADAPTER)
    ),
    "POST /v1/adapters/{name}/rollout": Endpoint(
        "Move `stable` to a version by shares of the requests, watched by a gate.",
        body=RolloutRequest,
        answers=json_of(_ADAPTER),
    ),
    "POST /v1/adapters/{name}/rollback": Endpoint(
        "Have the version before be `stable` again, at once.",
        body=RollbackRequest,
        needs_body=False,
        answers=json_of(_ADAPTER),
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
        "Begin a resumable upload (tus 1.0).", headers=_TOKENS, answers=json_of(_ANY, 201)
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
        answers=json_of({"type": "object", "required": ["members", "store"]}),
    ),
    "GET /v1/dashboard": Endpoint("What the page shows.", answers=json_of(_ANY)),
    "GET /v1/history": Endpoint("Traffic over time.", answers=json_of(listed(_ANY))),
    "GET /metrics": Endpoint("Of all processes, for Prometheus.", answers={200: {TEXT: _TEXT}}),
    "GET /healthz": Endpoint("Whether this process lives.", answers=json_of(_STATUS)),
    "HEAD /healthz": Endpoint("Likewise, without a body.", answers={200: None}),
    "GET /readyz": Endpoint("Whether requests are answered.", answers=json_of(_READY)),
    "HEAD /readyz": Endpoint("Likewise, without a body.", answers={200: None}),
    "GET /health": Endpoint("As `/readyz`, where vLLM's clients ask.", answers=json_of(_READY)),
    "HEAD /health": Endpoint("Likewise, without a body.", answers={200: None}),
    "GET /ping": Endpoint("As `/readyz`, where SageMaker asks.", answers=json_of(_READY)),
    "HEAD /ping": Endpoint("Likewise, without a body.", answers={200: None}),
    "POST /ping": Endpoint("Likewise.", answers=json_of(_READY)),
    "GET /version": Endpoint(
        "The release that answers.",
        answers=json_of(object_of({"version": _TEXT})),
        differs="Roundhouse's version, not vLLM's.",
    ),
    "HEAD /version": Endpoint("Likewise, without a body.", answers={200: None}),
    "GET /": Endpoint("The page.", answers={200: {"text/html": _TEXT}}),
    "HEAD /": Endpoint("Likewise, without a body.", answers={200: None}),
    "GET /openapi.json": Endpoint("This document.", answers=json_of(_ANY)),
}
