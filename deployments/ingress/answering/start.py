"""The start of an answer, as clients see it."""

from collections.abc import Sequence

from cluster.names import in_header
from deployments.ingress.answering.fallback import Answered
from deployments.process.call import REPLICA_HEADER, RESIDENCY_HEADER, ResponseStart
from router.adapters.constraints import HEADER_PREFIX

# The base model that answers, and those that should have and could not.
MODEL_HEADER, FALLBACK_HEADER = "x-roundhouse-model", "x-roundhouse-fallback"
# Whether the conversation stayed with what had answered it.
CONVERSATION_HEADER = f"{HEADER_PREFIX}conversation"
# Of the engine's own headers.
_PASSED = ("content-type", "retry-after", REPLICA_HEADER, RESIDENCY_HEADER)

# Of a header, in characters: proxies hold some kilobytes for all of them.
_LONGEST = 1000


def start_of_all(answered: Sequence[Answered]) -> ResponseStart:
    """Of several answers to one request: each header has a value for each, in their order, where
    they differ. A list that is too long for a proxy ends in `...`."""
    first, *others = [start_of(one) for one in answered]
    names = dict.fromkeys(name for start in (first, *others) for name in start.headers)
    told = {name: [start.headers.get(name, "") for start in (first, *others)] for name in names}
    return ResponseStart(first.status, {name: _listed(told[name]) for name in names})


def _listed(values: Sequence[str]) -> str:
    if len(set(values)) == 1:
        return values[0]
    text = ",".join(values)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST].rpartition(',')[0]},..."


def start_of(answered: Answered) -> ResponseStart:
    """Of the engine's headers those that are for clients, and who answers."""
    chosen, start = answered.chosen, answered.reply.start
    adapter = chosen.adapter
    told = {
        MODEL_HEADER: chosen.base_model,
        "x-roundhouse-adapter": in_header(adapter.name) if adapter else "base",
        "x-roundhouse-version": str(adapter.version) if adapter else "",
        "x-roundhouse-route": chosen.route,
    }
    if chosen.decision is not None and chosen.decision.conversation is not None:
        told[CONVERSATION_HEADER] = chosen.decision.conversation
    if answered.failed:
        told[FALLBACK_HEADER] = ",".join(map(in_header, answered.failed))
    passed = {name: value for name, value in start.headers.items() if name in _PASSED}
    return ResponseStart(int(start.status), {**told, **passed})
