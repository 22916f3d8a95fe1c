"""`python -m deployments.chooser.training.child`: one training, for :mod:`.running`.

Reads a pickled :class:`Task` from standard input, writes events as lines of JSON, ends with one
that tells what came of it. Lowest priority, few threads, bounded memory.
"""

import asyncio
import json
import os
import pickle
import resource
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adapter_store.files.blob_stores import open_blobs
from adapter_store.files.blobs import CONFIG, WEIGHTS, digest_of
from adapter_store.routing_log import OutcomeReader, RoutingLog
from adapter_store.store import Store
from cluster.encoders.kept import TrainedEncoder
from cluster.errors import Conflict, RoundhouseError, Unavailable
from cluster.settings import Settings
from cluster.tasks import renewed
from deployments.chooser.training.running import Task
from router.adapters.encoder import SentenceEncoder
from router.adapters.index import texts_of
from router.adapters.reader import Reader
from router.adapters.training.lessons import Lessons
from router.adapters.training.schooling import Schooled, school
from router.adapters.training.trained import write

_LEASE_S = 60.0


async def train(store: Store, task: Task) -> dict[str, Any]:
    """Train, and keep what is better; returns what `running.train` does.

    Raises:
        Conflict: nothing to learn from, nothing new, or somebody else trains.
    """
    who = f"{os.uname().nodename}-{os.getpid()}"

    async def renew() -> bool:
        return await store.encoders.may_train(who, for_s=_LEASE_S)

    if not await renew():
        raise Conflict("an encoder is being trained already; wait until that has ended")
    try:
        async with renewed("training", renew, every_s=_LEASE_S / 3):
            return await _train(store, task)
    finally:
        await store.encoders.has_trained(who)


async def _train(store: Store, task: Task) -> dict[str, Any]:
    started = time.monotonic()
    position, lessons = await _lessons(store, task.settings)
    known = {encoder.lessons for encoder in (await store.encoders.newest()).kept}
    if task.only_new and lessons.digest in known:
        return {"told": "the cards are what an encoder was trained on already"}
    parent, reader, made = await asyncio.to_thread(_school, task.settings, lessons)
    marks = made.marks
    told = asdict(marks) | {"gain": marks.gain, "is_better": marks.is_better}
    if made.encoder is None:
        return {"marks": told}
    terms = task.settings.router.training
    lineage = TrainedEncoder(
        id="",
        made_at=time.time(),
        parent=parent,
        reader=reader,
        position=position,
        lessons=lessons.digest,
        adapters=len(lessons.names),
        texts=len(lessons.texts),
        of_feedback=len(lessons.texts) - lessons.of_cards,
        steps=terms.steps,
        folds=terms.folds,
        seed=terms.seed,
        before=marks.before,
        after=marks.after,
        error=marks.error,
        loss_before=marks.loss_before,
        loss_after=marks.loss_after,
        took_s=round(time.monotonic() - started, 1),
    )
    kept = await keep(store, task, lineage, lessons, made)
    return {"marks": told, "encoder": kept.model_dump(mode="json"), "is_used": task.use}


async def _lessons(store: Store, settings: Settings) -> tuple[str, Lessons]:
    position, _ = await store.registry.position()
    models = {model.id for model in settings.models}
    cards = {
        adapter.name: texts_of(adapter.card)
        async for adapter in store.registry.all()
        if adapter.card.base_model in models
    }
    outcomes = OutcomeReader(RoutingLog(store.server, keep_s=settings.router.keep_decisions_s))
    await outcomes.read()
    return position, Lessons.of(cards, outcomes.known, shared=settings.router.shared_feedback)


def _school(settings: Settings, lessons: Lessons) -> tuple[str, str, Schooled]:
    """Versions of what was there before, and what came of it."""
    import torch

    chosen = settings.router
    torch.set_num_threads(chosen.training.threads)
    encoder = SentenceEncoder.of(chosen)
    reader = Reader.of(chosen, settings.models)
    made = school(encoder, reader, lessons, chosen.training, chosen.max_landmarks, _tell)
    return encoder.version, reader.version if reader else "", made


async def keep(
    store: Store, task: Task, lineage: TrainedEncoder, lessons: Lessons, made: Schooled
) -> TrainedEncoder:
    """Into the blob store, and, if the task says so, into use; returns what is kept."""
    blobs = open_blobs(task.settings.store)
    with tempfile.TemporaryDirectory(prefix="rh-encoder-") as folder:
        staged = Path(folder)
        text = lineage.model_dump_json(exclude={"id", "digest"}, indent=2)
        await asyncio.to_thread(write, staged, (CONFIG, WEIGHTS), text, lessons, made)
        digest = await asyncio.to_thread(digest_of, staged)
        reservation = await store.blob_refs.reserve(digest)
        if reservation is None:
            raise Unavailable("the same encoder is being removed; try again in two minutes")
        await asyncio.to_thread(blobs.commit, staged, digest)
        kept = lineage.model_copy(update={"id": digest[:12], "digest": digest})
        await store.encoders.change(lambda encoders: encoders.with_new(kept, use=task.use))
        await store.blob_refs.release(digest, reservation)
    return kept


def _tell(doing: str, done: int, total: int, loss: float) -> None:
    _say({"doing": doing, "done": done, "total": total, "loss": round(loss, 4)})


def _say(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def _step_back(task: Task) -> None:
    """What serves comes first."""
    os.nice(19)
    memory = task.settings.router.training.memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


async def _main(task: Task) -> None:
    async with Store(task.settings.store) as store:
        await store.registry.migrate()
        _say({"result": await train(store, task)})


if __name__ == "__main__":
    task: Task = pickle.load(sys.stdin.buffer)
    _step_back(task)
    try:
        asyncio.run(_main(task))
    except RoundhouseError as e:
        _say({"error": e.message, "code": e.code})
    except MemoryError:
        _say({"error": "router.training.memory_bytes is not enough for this", "code": "memory"})
