"""The calls of `cluster/calls.py` beside OpenAI's two for completions, as the document has them.

Of a body it has what this endpoint reads: the engine knows of more fields, and checks them.
"""

from collections.abc import Mapping

from cluster.calls import CALLS, CHAT_PATH, COMPLETIONS_PATH, CallKind, Shape
from deployments.ingress.calls.reading import READINGS
from deployments.ingress.openapi.endpoint import (
    EVENTS,
    FORM,
    JSON,
    MODEL,
    Endpoint,
    Schema,
    object_of,
    ref,
)

_ANY: Schema = {"type": "object"}
_COUNT: Schema = {"type": "integer", "minimum": 1}
_FILE: Schema = {"type": "string", "format": "binary"}
# Beside the model; where one of several will do, none is.
_NEEDED: Mapping[Shape, tuple[str, ...]] = {
    Shape.RESPONSE: ("input",),
    Shape.MESSAGE: ("messages", "max_tokens"),
    Shape.MESSAGE_COUNT: ("messages",),
    Shape.DETOKENIZE: ("tokens",),
    Shape.RERANK: ("query", "documents"),
    Shape.AUDIO: ("file",),
}
_DIFFERS: Mapping[Shape, str] = {
    Shape.RESPONSE: "nothing is kept: `previous_response_id`, `conversation`, `background` and "
    "`store: true` are refused; a stream begins with the first token.",
    Shape.MESSAGE: "`param` and `code` stand beside what errors say; the key may come as "
    "`x-api-key`.",
}


def _endpoint(kind: CallKind) -> Endpoint:
    """What a call takes and answers."""
    names = (*READINGS[kind.shape].fields, *kind.spends, *_NEEDED.get(kind.shape, ()))
    fields: dict[str, Schema] = {name: {} for name in names}
    fields |= {name: _COUNT for name in kind.spends}
    if kind.shape is Shape.AUDIO:
        fields["file"] = _FILE
    needed = {name: fields.pop(name) for name in _NEEDED.get(kind.shape, ())}
    is_form = kind.shape is Shape.AUDIO
    more = {} if is_form else {"constraints": ref("Constraints")}
    streams: dict[str, Schema] = {EVENTS: {"type": "string"}} if kind.spends or is_form else {}
    return Endpoint(
        f"{kind.says[0].upper()}{kind.says[1:]}.",
        body=object_of({"model": MODEL, **needed}, **fields, **more),
        body_type=FORM if is_form else JSON,
        answers={200: {JSON: _ANY, **streams}},
        differs=_DIFFERS.get(kind.shape, ""),
    )


CALLED = {
    f"POST {path}": _endpoint(kind)
    for path, kind in CALLS.items()
    if path not in (CHAT_PATH, COMPLETIONS_PATH)
}
