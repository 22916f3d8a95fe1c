"""Moves rollouts on: runs the gate when a step is due, takes the next step or stops.

Every ingress has a driver; a lease in the store makes one of them act for an adapter, and another
one goes on when that one dies. All there is to know is in the adapter's record.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

from adapter_store.catalogue import Catalogue, Changes
from adapter_store.store import Store
from cluster import rollouts
from cluster.adapters import Adapter, AdapterKey, Evaluation, EvaluationPrompt, Rollout, Version
from cluster.errors import (
    AdapterLoadFailed,
    InvalidRequest,
    ModelNotFound,
    RoundhouseError,
    StoreUnavailable,
    Unavailable,
)
from cluster.members import Replica
from cluster.tasks import Background, renewed

logger = logging.getLogger(__name__)

_LEASE_S = 15.0
_LOOK_S = 1.0
_CONVERGE_S = 30.0
# What cannot be evaluated for this long is not fit to take over.
_PATIENCE_S = 120.0
_RETRY_S = 2.0
_PAUSE_S = 30.0
_LOAD_TRIES = 3
_AT_ONCE = 4

# Asks one version one prompt; returns the text and the replica that answered.
Ask = Callable[[Adapter, Version, str], Awaitable[tuple[str, str]]]


class _Superseded(Exception):
    """Somebody else changed or ended the rollout."""


class RolloutDriver:
    """One process's part in moving rollouts on.

    Args:
        driver_id: names this process in the store.
        ask: generates with a version of an adapter. Raises AdapterLoadFailed when the replica
            cannot load it, InvalidRequest when the engine refuses the prompt, and another
            RoundhouseError when it cannot be asked now.
    """

    def __init__(self, store: Store, catalogue: Catalogue, driver_id: str, ask: Ask) -> None:
        self._registry = store.registry
        self._members = store.members
        self._catalogue = catalogue
        self._id = driver_id
        self._ask = ask
        self._rolling: set[str] = set()
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._background = Background()
        self._heard = asyncio.Event()
        # When to look again at a rollout that could not go on; by the monotonic clock.
        self._paused_until: dict[str, float] = {}
        catalogue.on_change(self._heed)

    async def start(self) -> None:
        self._background.start("rollouts", self._run())

    async def stop(self) -> None:
        await self._background.stop()

    def check(self) -> None:
        """Raise what ended the driver, so that a health check sees it."""
        self._background.check()

    async def _heed(self, changes: Changes) -> None:
        """Hear of changed adapters."""
        for name, adapter in changes.items():
            if adapter is not None and adapter.rollout is not None:
                self._rolling.add(name)
            else:
                self._rolling.discard(name)
        self._heard.set()

    async def _run(self) -> None:
        while True:
            for name in self._rolling - self._busy.keys():
                adapter = self._catalogue.adapters.get(name)
                if adapter is not None and adapter.rollout is not None:
                    self._begin_step(adapter, adapter.rollout)
            # Nothing to look at without a rollout: sleep until one is heard of.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S if self._rolling else None):
                    await self._heard.wait()
            self._heard.clear()

    def _begin_step(self, adapter: Adapter, rollout: Rollout) -> None:
        is_paused = time.monotonic() < self._paused_until.get(adapter.name, 0.0)
        if is_paused or not rollouts.is_due(rollout, time.time()):
            return
        step = self._background.spawn(
            f"rollout {adapter.name}", self._step_quietly(adapter, rollout)
        )
        self._busy[adapter.name] = step
        step.add_done_callback(lambda _: self._busy.pop(adapter.name, None))

    async def _step_quietly(self, adapter: Adapter, rollout: Rollout) -> None:
        try:
            if await self._registry.drive(adapter.name, self._id, for_s=_LEASE_S):
                async with self._driving(adapter.name):
                    await self._step(adapter, rollout)
        except (_Superseded, ModelNotFound):
            logger.info("the rollout of %s was changed meanwhile", adapter.name)
        except StoreUnavailable as e:
            logger.warning("the rollout of %s waits: %s", adapter.name, e)
        except Exception:
            # Whatever it is, it must not be tried at every look, and not end other rollouts.
            logger.exception("the rollout of %s cannot go on yet", adapter.name)
            self._paused_until[adapter.name] = time.monotonic() + _PAUSE_S

    def _driving(self, name: str) -> AbstractAsyncContextManager[None]:
        renew = partial(self._registry.drive, name, self._id, for_s=_LEASE_S)
        return renewed(f"drive {name}", renew, every_s=_LEASE_S / 3)

    async def _step(self, adapter: Adapter, rollout: Rollout) -> None:
        evaluation = refusal = None
        try:
            await self._see_it_loaded(adapter, rollout)
            if rollout.gate is not None and adapter.card.evaluation:
                evaluation = await self._evaluate(adapter, rollout)
                refusal = rollouts.why_not(evaluation, rollout.gate)
        except AdapterLoadFailed as e:
            refusal = e.message

        def move(now: Adapter) -> Adapter:
            if now.rollout is None or now.rollout != rollout:
                raise _Superseded
            if refusal is not None:
                return rollouts.stop(now, refusal, evaluation, time.time())
            return rollouts.advance(now, evaluation, time.time())

        changed = await self._registry.change(adapter.name, move)
        after, end = changed.adapter.rollout, changed.adapter.last_rollout
        outcome = f"at {after.percent} %" if after else end and end.outcome
        logger.info("rollout of %s@%d: %s", adapter.name, rollout.version, refusal or outcome)

    async def _see_it_loaded(self, adapter: Adapter, rollout: Rollout) -> None:
        """Every replica has had its chance to load the version; raises AdapterLoadFailed when none
        could. One that does not answer holds nothing up: it loads when it is asked."""
        key = AdapterKey.of(adapter.name, rollout.version)
        position, _ = await self._registry.position()
        try:
            members = await self._members.converged(position, timeout_s=_CONVERGE_S, loaded=key)
        except StoreUnavailable:
            raise
        except Unavailable as e:
            logger.warning("%s", e)
            members = await self._members.all()
        replicas = [m for m in members if isinstance(m, Replica)]
        failures = [f"replica {m.id}: {m.problems[key]}" for m in replicas if key in m.problems]
        if failures and not any(m.residency.tier(key) for m in replicas):
            raise AdapterLoadFailed("; ".join(failures))

    async def _evaluate(self, adapter: Adapter, rollout: Rollout) -> Evaluation:
        new = adapter.versions[rollout.version]
        turns = asyncio.Semaphore(_AT_ONCE)
        replicas: set[str] = set()

        broken: set[int] = set()

        async def is_right(version: Version, item: EvaluationPrompt) -> bool:
            async with turns:
                if version.number in broken:
                    return False
                try:
                    text, replica = await self._patiently(adapter, version, item.prompt)
                except InvalidRequest:
                    return False  # too long for the engine, for example
                except AdapterLoadFailed:
                    # A stable version that cannot be loaded is what the new one is to mend.
                    if version == new:
                        raise
                    broken.add(version.number)
                    return False
            replicas.add(replica)
            return item.accepts(text)

        prompts = adapter.card.evaluation
        before = await _all(is_right(adapter.stable, item) for item in prompts)
        after = await _all(is_right(new, item) for item in prompts)
        return rollouts.compare(before, after, replica=", ".join(sorted(replicas)), at=time.time())

    async def _patiently(self, adapter: Adapter, version: Version, prompt: str) -> tuple[str, str]:
        """A full queue is not the version's fault; nor is one replica that cannot load it."""
        deadline = time.monotonic() + _PATIENCE_S
        loads_left = _LOAD_TRIES
        while True:
            try:
                return await self._ask(adapter, version, prompt)
            except InvalidRequest:
                raise
            except RoundhouseError as e:
                loads_left -= isinstance(e, AdapterLoadFailed)
                if not loads_left:
                    raise
                if time.monotonic() > deadline:
                    raise AdapterLoadFailed(
                        f"{adapter.name}@{version.number} could not be evaluated: {e.message}"
                    ) from e
                await asyncio.sleep(e.retry_after_s or _RETRY_S)


async def _all(work: Iterable[Coroutine[Any, Any, bool]]) -> list[bool]:
    """Results in order; when one fails, the others are called off."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
