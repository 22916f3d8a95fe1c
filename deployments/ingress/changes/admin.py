"""Changing adapters: registration, cards, aliases, rollouts, removal, uploads."""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adapter_store.catalogue import Catalogue
from adapter_store.files.inbound.confined import warm
from adapter_store.registration import Prove, Registrar, sweep, unproven
from adapter_store.registry import Changed, Stored
from adapter_store.store import Store
from cluster import rollouts
from cluster.adapters import Adapter, AdapterKey, AliasName, Card, Gate, Tier, Version
from cluster.errors import (
    Conflict,
    InvalidRequest,
    ModelNotFound,
    NotFound,
    StoreUnavailable,
    Unavailable,
    parse,
)
from cluster.members import Replica
from cluster.requests import AliasRequest, Registration, RollbackRequest, RolloutRequest, edited
from cluster.settings import Settings
from cluster.values import Value

logger = logging.getLogger(__name__)

WAIT_S = 600.0
# With the tenant, who waits for what requests have named: none of those who register.
_ASKED_FOR = "(asked for)"

Tell = Callable[[dict[str, Any]], None]


class _Alias(Value):
    alias: AliasName


class AdapterAdmin:
    """The operations that change adapters.

    Each returns when this process answers by the change: its caller reads its own writes.

    Args:
        prove: that a replica can load what is to be registered.
    """

    def __init__(
        self, settings: Settings, store: Store, catalogue: Catalogue, prove: Prove = unproven
    ) -> None:
        self._settings = settings
        self._registry = store.registry
        self._members = store.members
        self._catalogue = catalogue
        self._registrar = Registrar(store, settings.store, prove)
        self.uploads = self._registrar.uploads
        self.blobs = self._registrar.blobs
        self.arrivals = self._registrar.sources.arrivals

    async def start(self) -> None:
        """Remove what an ingress that was killed has left, and have ready what registrations need:
        its imports take seconds of a processor."""
        await asyncio.to_thread(sweep, self._settings.store)
        try:
            await warm()
        except Unavailable as e:
            logger.warning("the first registration will wait: %s", e)

    async def stop(self) -> None:
        await self._registrar.stop()

    def check(self) -> None:
        """Nothing runs here that could end."""

    # -- registration -----------------------------------------------------------------------

    async def register(
        self,
        registration: Registration,
        *,
        mode: str,
        wait: bool,
        tell: Tell,
        tenant: str = "",
        default_base: str | None = None,
        resolved_from: str = "",
    ) -> Stored:
        """Store an adapter; with `wait`, return when every live process has taken it in."""

        def progress(what: str, done: int, total: int | None) -> None:
            tell({"event": what, "done": done, "total": total})

        stored = await self._registrar.register(
            registration,
            mode=mode,
            progress=progress,
            tenant=tenant,
            default_base=default_base,
            resolved_from=resolved_from,
        )
        tell({"event": "stored", "version": stored.version.number})
        await self._settle(stored.position)
        if wait:
            await self._confirmed(stored.adapter, stored.version, stored.position, tell)
        return stored

    async def resolve(self, source: str, name: str, tenant: str) -> None:
        """Register what a tenant's request has asked for; it leaves again when nobody does."""
        await self.register(
            parse(Registration, {"source": source, "name": name}),
            mode="create",
            wait=False,
            tell=nobody,
            tenant=f"{tenant} {_ASKED_FOR}",
            default_base=self._settings.local_model,
            resolved_from=source,
        )

    async def load(
        self,
        name: str,
        path: str,
        *,
        replace: bool,
        tenant: str = "",
        base_model: str | None = None,
    ) -> None:
        """What vLLM calls loading an adapter; returns when every replica has it.

        Args:
            base_model: as the client calls it: by its id here, or by its path.
        """
        if not replace and name in self._catalogue.adapters:
            raise InvalidRequest(
                f"The lora adapter '{name}' has already been loaded. If you want to load the "
                "adapter in place, set 'load_inplace' to True.",
                param="lora_name",
            )
        # As vLLM does: what is not a place on the disk is a name on the model hub.
        is_name = path.count("/") == 1 and path[0] not in "/.~"
        is_hub_id = is_name and not await asyncio.to_thread(Path(path).exists)
        source = f"hf://{path}" if is_hub_id else path
        named = {} if base_model is None else {"base_model": self._base_called(base_model)}
        registration = parse(Registration, {"source": source, "name": name, **named})
        # vLLM has one base model, and most of its clients never name it.
        await self.register(
            registration,
            mode="upsert",
            wait=True,
            tell=nobody,
            tenant=tenant,
            default_base=self._settings.local_model,
        )

    def _base_called(self, name: str) -> str:
        """The base model that a client of vLLM's means. Where one alone takes adapters it is that
        one, however it is called there: vLLM, too, looks no further.

        Raises:
            ModelNotFound: there are several, and none is called so.
        """
        here = [model for model in self._settings.models if not model.is_elsewhere]
        found = [model.id for model in here if name in (model.id, model.path)]
        if not found and len(here) == 1:
            return here[0].id
        if not found:
            raise ModelNotFound(name, [model.id for model in here], param="base_model_name")
        return found[0]

    # -- one adapter ------------------------------------------------------------------------

    async def edit(self, name: str, changes: dict[str, Any]) -> Adapter:
        """Change fields of the card; `revision` in `changes` must be the adapter's, when given."""
        revision = take_revision(changes)
        if unknown := changes.keys() - Card.model_fields.keys():
            field = min(unknown)
            raise InvalidRequest(f"{field}: a card has no such field", param=field)

        def edit(adapter: Adapter) -> Adapter:
            return rollouts.edit_card(adapter, edited(adapter.card, changes))

        return (await self._change(name, edit, revision)).adapter

    async def delete(self, name: str, *, revision: int | None = None) -> None:
        await self._settle(await self._registry.delete(name, revision=revision))

    async def delete_version(self, name: str, selector: str) -> Adapter:
        def edit(adapter: Adapter) -> Adapter:
            return rollouts.remove_version(adapter, _version(adapter, selector))

        return (await self._change(name, edit)).adapter

    async def set_alias(self, name: str, alias: str, request: AliasRequest) -> Adapter:
        parse(_Alias, {"alias": alias})

        def edit(adapter: Adapter) -> Adapter:
            return rollouts.set_alias(adapter, alias, _version(adapter, request.version))

        return (await self._change(name, edit, request.revision)).adapter

    async def delete_alias(self, name: str, alias: str) -> Adapter:
        changed = await self._change(name, lambda a: rollouts.remove_alias(a, alias))
        return changed.adapter

    # -- versions in motion -----------------------------------------------------------------

    async def roll_out(
        self, name: str, request: RolloutRequest, *, wait: bool, tell: Tell
    ) -> Adapter:
        """Begin a rollout; with `wait`, return when it has ended or holds its last share, and
        every live process has taken that in."""
        gate = Gate() if request.gate is True else request.gate or None

        def begin(adapter: Adapter) -> Adapter:
            return rollouts.begin(
                adapter,
                _version(adapter, request.version),
                percents=request.percent,
                step_s=request.step_s,
                gate=gate,
                now=time.time(),
            )

        changed = await self._change(name, begin, request.revision)
        if not wait:
            return changed.adapter
        version = changed.adapter.versions[rollouts.under_way(changed.adapter).version]
        adapter = await self._rolled_out(name, tell)
        position, _ = await self._registry.position()
        await self._confirmed(adapter, version, position, tell)
        return adapter

    async def roll_back(self, name: str, request: RollbackRequest, *, wait: bool) -> Adapter:
        """Stop the rollout under way, or make an earlier version stable again."""

        def edit(adapter: Adapter) -> Adapter:
            to = None if request.version is None else _version(adapter, request.version)
            return rollouts.roll_back(adapter, to, time.time())

        changed = await self._change(name, edit, request.revision)
        if wait:
            adapter = changed.adapter
            await self._confirmed(adapter, adapter.stable, changed.position, nobody)
        return changed.adapter

    async def _rolled_out(self, name: str, tell: Tell) -> Adapter:
        """Wait until a rollout has ended, or holds its last share: as long as its steps take."""
        told: tuple[int, Any] | None = None
        async for adapter in self._catalogue.watch(name):
            if adapter is None:
                raise Conflict(f"{name} was deleted while it was rolled out")
            rollout = adapter.rollout
            if rollout is None:
                return adapter
            if told != (rollout.step, rollout.evaluation):
                told = (rollout.step, rollout.evaluation)
                tell({"event": "rollout", **rollout.model_dump(mode="json")})
            if rollout.step == len(rollout.percents) - 1:
                return adapter
        raise AssertionError("a catalogue is watched for ever")

    # -- waiting ----------------------------------------------------------------------------

    async def _change(
        self, name: str, edit: Callable[[Adapter], Adapter], revision: int | None = None
    ) -> Changed:
        changed = await self._registry.change(name, edit, revision=revision)
        await self._settle(changed.position)
        return changed

    async def _settle(self, position: str) -> None:
        """Wait until this process answers by the change."""
        try:
            async with asyncio.timeout(WAIT_S):
                await self._catalogue.wait_for(position)
        except TimeoutError as e:
            raise StoreUnavailable("stored, but this endpoint has not seen it yet") from e

    async def _confirmed(
        self, adapter: Adapter, version: Version, position: str, tell: Tell
    ) -> None:
        """Wait until every live process has taken a change in, and tell of each that has.

        Raises:
            Unavailable: one cannot load the version, or does not answer in time.
        """
        key = adapter.key(version)
        refusals = []
        async for member in self._members.confirmations(position, timeout_s=WAIT_S, loaded=key):
            if not isinstance(member, Replica) or member.model != adapter.card.base_model:
                continue
            refusal = member.problems.get(key)
            tell({"event": "replica", "replica": member.id, "state": _state(member, key)})
            if refusal is not None:
                refusals.append(f"replica {member.id} cannot load it: {refusal}")
        if refusals:
            raise Unavailable(f"{key} is registered, but {'; '.join(refusals)}")


def take_revision(fields: dict[str, Any]) -> int | None:
    """Take the expected revision out of a body."""
    revision = fields.pop("revision", None)
    if revision is None:
        return None
    if not isinstance(revision, int) or isinstance(revision, bool) or revision < 0:
        raise InvalidRequest("revision must be a number, as GET shows it", param="revision")
    return revision


def _version(adapter: Adapter, selector: int | str) -> Version:
    version = adapter.resolve(str(selector))
    if version is None:
        known = ", ".join(str(n) for n in adapter.versions)
        raise NotFound(
            f"{adapter.name} has no version {str(selector)[:40]!r}; it has {known}", param="version"
        )
    return version


def _state(member: Replica, key: AdapterKey) -> str:
    if key in member.problems:
        return "failed"
    tier = member.residency.tier(key)
    return tier if tier in (Tier.SLOT, Tier.HOST) else "on demand"


def nobody(_: dict[str, Any]) -> None:
    """Nobody follows the progress."""
