"""How a request wants to be served: whose turn it takes, how urgent it is, what it may cost."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.adapters import Viewer
from cluster.calls import CALLS, CHAT_PATH
from cluster.errors import InvalidRequest
from cluster.settings import DispatchSettings
from deployments.ingress.apart import SALT
from router.replicas.prefixes import chain_of

PRIORITY_HEADER = "x-roundhouse-priority"
FIRST_TOKEN_HEADER = "x-roundhouse-first-token-s"
_PRIORITIES = range(-100, 101)
# Whoever asks with the lowest gets what is idle.
IDLE_WORK = _PRIORITIES[0]
_BYTES_PER_TOKEN = 4
# Of an answer whose length the client leaves open.
_USUAL_TOKENS = 256
# As in OpenAI's own.
_MOST_ANSWERS = 128
# No answer is longer, whatever is asked for.
_MOST_TOKENS = 1_000_000


@dataclass(frozen=True)
class Terms:
    """What the queue needs to know of a request.

    Attributes:
        tenant: whose turn it takes.
        priority: higher ones come first.
        first_token_s: the answer is of no use when it starts later than this.
        since: when the request came, of the monotonic clock.
        tokens: of the prompt, and of the answer at most; about.
        prompt_tokens: of the prompt alone.
        sequences: answers that are asked for: `n` to each prompt.
        prefix: of the prompt, see `router/replicas/prefixes.py`.
    """

    tenant: str = ""
    priority: int = 0
    first_token_s: float = math.inf
    since: float = field(default_factory=time.monotonic)
    tokens: float = 1.0
    prompt_tokens: float = 0.0
    sequences: int = 1
    prefix: tuple[bytes, ...] = ()

    @property
    def is_idle_work(self) -> bool:
        """Whether it takes only places that nobody else wants."""
        return self.priority == IDLE_WORK


def terms_of(
    body: Mapping[str, Any],
    prompt: bytes,
    viewer: Viewer,
    headers: Mapping[str, str],
    dispatch: DispatchSettings,
    spends: Sequence[str] = CALLS[CHAT_PATH].spends,
    prompts: int = 1,
) -> Terms:
    """Read them off a request.

    Args:
        prompt: the messages or the prompt, as JSON.
        spends: see `CallKind`.
        prompts: how many there are.

    Raises:
        InvalidRequest: a header, or `n`, that cannot be what it should be; names it.
    """
    answer: Any = 0
    if spends:
        answer = next(filter(None, map(body.get, spends)), None)
        if not isinstance(answer, int) or answer <= 0:
            answer = _USUAL_TOKENS
    prompt_tokens = len(prompt) / _BYTES_PER_TOKEN
    sequences = _answers(body) * prompts
    return Terms(
        tenant=viewer.owner,
        priority=_priority(headers, viewer),
        first_token_s=_first_token_s(headers),
        tokens=prompt_tokens + sequences * min(answer, _MOST_TOKENS),
        prompt_tokens=prompt_tokens,
        sequences=sequences,
        prefix=chain_of(prompt, dispatch, json.dumps(body.get(SALT)).encode()),
    )


def _answers(body: Mapping[str, Any]) -> int:
    n = body.get("n")
    if n is None:
        return 1
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= _MOST_ANSWERS:
        raise InvalidRequest(
            f"n must be a whole number from 1 to {_MOST_ANSWERS}; for more, send further requests",
            param="n",
        )
    return n


def _priority(headers: Mapping[str, str], viewer: Viewer) -> int:
    sent = headers.get(PRIORITY_HEADER, "0")
    try:
        priority = int(sent)
    except ValueError:
        priority = _PRIORITIES.stop
    if priority not in _PRIORITIES:
        raise InvalidRequest(
            f"{PRIORITY_HEADER} must be a whole number from {_PRIORITIES[0]} to {_PRIORITIES[-1]}",
            param=PRIORITY_HEADER,
        )
    if priority > 0 and not viewer.sees_all:
        raise InvalidRequest(
            f"{PRIORITY_HEADER} above 0 needs an admin key: it passes other tenants; leave it out, "
            "or send a negative one for work that can wait",
            param=PRIORITY_HEADER,
        )
    return priority


def _first_token_s(headers: Mapping[str, str]) -> float:
    sent = headers.get(FIRST_TOKEN_HEADER, "inf")
    try:
        first_token_s = float(sent)
    except ValueError:
        first_token_s = -1.0
    if not first_token_s > 0:
        raise InvalidRequest(
            f"{FIRST_TOKEN_HEADER} must be a number of seconds above 0: after so long the answer "
            "is of no use any more",
            param=FIRST_TOKEN_HEADER,
        )
    return first_token_s
