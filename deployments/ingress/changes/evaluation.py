"""Asking a version one of its evaluation prompts, before and while it is rolled out."""

import json
import uuid
from collections.abc import Mapping
from contextlib import AsyncExitStack

from cluster.adapters import Adapter, AdapterRef, Version
from cluster.calls import CHAT_PATH
from cluster.errors import AdapterLoadFailed, EngineRefused, InvalidRequest, Unavailable
from deployments.ingress.answering.pools import ReplicaPool, answered_by
from deployments.ingress.completion import encode_json
from deployments.ingress.directory import Directory
from deployments.ingress.terms import Terms
from deployments.process.call import REPLICA_HEADER, Call

# Long enough for what evaluation prompts expect, short enough for a version that babbles.
EVALUATION_TOKENS = 256
_OK = 200


class Evaluation:
    """Args: pools: by base model."""

    def __init__(self, pools: Mapping[str, ReplicaPool], directory: Directory) -> None:
        self._pools = pools
        self._directory = directory

    async def ask(self, adapter: Adapter, version: Version, prompt: str) -> tuple[str, str]:
        """What a version answers to a prompt, and the replica that gave it.

        Raises:
            AdapterLoadFailed: a replica cannot load it.
            InvalidRequest: the engine refuses the prompt.
            Unavailable, Overloaded: it cannot be asked now.
        """
        ref = AdapterRef.of(adapter, version)
        body = {
            "model": ref.key,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": EVALUATION_TOKENS,
        }
        call = Call(CHAT_PATH, uuid.uuid4().hex, encode_json(body), ref, self._directory.position)
        pool, terms = self._pools[adapter.card.base_model], Terms(tokens=EVALUATION_TOKENS)
        async with AsyncExitStack() as held:
            reply = await answered_by(pool, call, terms, held)
            content = json.loads(await reply.read())
        status = reply.start.status
        if status != _OK:
            error = content["error"]
            if error["code"] in (AdapterLoadFailed.code, EngineRefused.code):
                raise AdapterLoadFailed(error["message"])
            is_refused = 400 <= status < 500 and status != 429
            raise (InvalidRequest if is_refused else Unavailable)(error["message"])
        text = content["choices"][0]["message"]["content"] or ""
        return text, reply.start.headers.get(REPLICA_HEADER, "")
