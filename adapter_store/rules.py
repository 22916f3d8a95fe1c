"""The rules of the choice, as every ingress follows them."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from adapter_store.server import BLOCK_S, Server
from cluster.errors import Stale
from cluster.rules import Rule


@dataclass(frozen=True)
class KeptRules:
    """What is in the store.

    Attributes:
        rules: as they were written, perhaps by a newer release; None: those of the settings hold.
        revision: 0 before anything was written.
    """

    rules: list[dict[str, Any]] | None = None
    revision: int = 0


class RuleStore:
    """Every method raises :class:`StoreUnavailable` when the server does not answer."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._key = server.keys.rules

    async def newest(self) -> KeptRules:
        entries = await self._server.read_back(self._key, 1)
        if not entries:
            return KeptRules()
        fields = entries[0][1]
        rules = json.loads(fields["record"]) if fields["record"] else None
        return KeptRules(rules, int(fields["revision"]))

    async def put(self, rules: tuple[Rule, ...] | None, revision: int | None = None) -> None:
        """Replace them; None: by those of the settings.

        Args:
            revision: of the rules that the caller has read. None takes any.

        Raises:
            Stale: they have another one.
        """
        record = ""
        if rules is not None:
            record = json.dumps([rule.model_dump(exclude_defaults=True) for rule in rules])
        expected = "" if revision is None else revision
        try:
            keys = [self._key, self._server.once()]
            await self._server.run("put_rules", keys, [expected, record])
        except ResponseError as e:
            if not str(e).endswith("STALE"):
                raise
            raise Stale(
                "the rules were changed meanwhile; read them and try again", param="revision"
            ) from e

    async def follow(self) -> AsyncIterator[KeptRules]:
        """The rules now, and newer ones as soon as they are there."""
        while True:
            seen = await self._server.newest(self._key)
            yield await self.newest()
            while not await self._server.read(self._key, seen, block_s=BLOCK_S):
                pass
