"""The rules that hold now: those in the store, or else those of the settings."""

import logging
import re
from typing import Any

from adapter_store.rules import KeptRules, RuleStore
from cluster.adapters import OPERATOR
from cluster.errors import InvalidRequest, parse
from cluster.rules import Rule, RuleSet, strange_base_model
from cluster.tasks import Background
from deployments.ingress.directory import Directory
from router.rules.rulebook import Rulebook

logger = logging.getLogger(__name__)


class Book:
    """Follows the store; while it is away, what was last read holds."""

    def __init__(
        self, configured: tuple[Rule, ...], store: RuleStore, directory: Directory
    ) -> None:
        self._configured = configured
        self._store = store
        self._directory = directory
        self._kept = KeptRules()
        self._problem: str | None = None
        self._background = Background()
        self.current = Rulebook(configured)

    async def start(self) -> None:
        """Read them (raises :class:`StoreUnavailable`), then follow in the background."""
        self._take(await self._store.newest())
        self._background.repeat("rules", self._follow, otherwise="the rules stay as they were")

    def check(self) -> None:
        self._background.check()

    async def stop(self) -> None:
        await self._background.stop()

    async def put(self, sent: dict[str, Any]) -> dict[str, Any]:
        """Have other rules hold; returns what :meth:`show` does.

        Raises:
            InvalidRequest: names the rule and its field.
            Stale: they were changed since the client read them.
        """
        wanted = self._checked(sent)
        await self._store.put(wanted.rules, wanted.revision)
        return await self._replaced()

    def tried(self, rules: Any) -> Rulebook:
        """Those of a client that only wants to see what they would do; raises InvalidRequest."""
        return Rulebook(self._checked({"rules": rules}).rules)

    def _checked(self, sent: dict[str, Any]) -> RuleSet:
        wanted = parse(RuleSet, sent)
        if problem := strange_base_model(wanted.rules, self._directory.base_models):
            # As settings name it; clients write indices in brackets.
            place, _, said = re.sub(r"^rules\.(\d+)", r"rules[\1]", problem).partition(":")
            raise InvalidRequest(f"{place}:{said}", param=place)
        return wanted

    async def reset(self) -> dict[str, Any]:
        """Have those of the settings hold."""
        await self._store.put(None)
        return await self._replaced()

    async def _replaced(self) -> dict[str, Any]:
        self._take(await self._store.newest())
        return self.show()

    def show(self) -> dict[str, Any]:
        """What holds, where it is from, and which adapters it names that there are not."""
        rules = self.current.rules
        named = dict.fromkeys(name for rule in rules for name in rule.adapters)
        return {
            "rules": [rule.model_dump(mode="json", exclude_defaults=True) for rule in rules],
            "source": "settings" if self._kept.rules is None else "store",
            "revision": self._kept.revision,
            "unknown": [name for name in named if not self._directory.shows(name, OPERATOR)],
            "problem": self._problem,
        }

    async def _follow(self) -> None:
        async for kept in self._store.follow():
            self._take(kept)

    def _take(self, kept: KeptRules) -> None:
        if kept == self._kept:
            return
        rules = self._configured
        try:
            if kept.rules is not None:
                rules = parse(RuleSet, {"rules": kept.rules}).rules
        except InvalidRequest as e:
            # A condition that is not known here must not be taken for one that holds.
            self._problem = f"revision {kept.revision} is of a newer release: {e.message}"
            logger.error("the rules stay as they were: %s", self._problem)
            return
        self.current, self._kept, self._problem = Rulebook(rules), kept, None
        logger.info("%d rules hold, revision %d", len(rules), kept.revision)
