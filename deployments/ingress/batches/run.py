"""The work on one batch: ask its requests, keep the answers, until its end.

Answers are kept every two seconds, and what is kept is what is done: whoever goes on after a crash
asks again only what had no answer in the files.
"""

import asyncio
import itertools
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Protocol

from adapter_store.batches.contents import Contents
from adapter_store.batches.ledger import Ledger
from cluster.adapters import Viewer
from cluster.batches import Batch, Counts, Progress, Status, StoredFile, new_id, now
from cluster.errors import RoundhouseError, Unavailable
from cluster.settings import BatchSettings
from cluster.tasks import cancel
from deployments.ingress.batches.lines import Answer, Line, custom_id_of, examine, read_line
from deployments.ingress.terms import IDLE_WORK, PRIORITY_HEADER
from deployments.process import metrics
from deployments.process.call import Reply

logger = logging.getLogger(__name__)

_KEEP_EVERY_S = 2.0
_AT_A_TIME = 256
_MOST_WAIT_S = 30.0
# Of what fails on our side. Who is told to come later comes as often as it takes.
_TRIES = 5
_HEADERS = {PRIORITY_HEADER: str(IDLE_WORK)}
_LATER = 429


class Ask(Protocol):
    """The gateway's way to an answer."""

    async def __call__(
        self,
        path: str,
        body: dict[str, Any],
        request_id: str,
        viewer: Viewer,
        headers: dict[str, str],
        held: AsyncExitStack,
    ) -> Reply: ...


class Run:
    """One batch in the hands of one process.

    Args:
        renew: holds the lease on the batch for another term; False when it is another's.
    """

    def __init__(
        self,
        batch: Batch,
        ledger: Ledger,
        contents: Contents,
        ask: Ask,
        settings: BatchSettings,
        renew: Callable[[], Awaitable[bool]],
    ) -> None:
        self._order = batch.order
        self._progress = batch.progress
        self._ledger = ledger
        self._contents = contents
        self._ask = ask
        self._settings = settings
        self._renew = renew
        self._answers: list[Answer] = []

    async def go(self) -> None:
        """Work until it has ended.

        Raises:
            RoundhouseError: it cannot go on now; another run will, from what is kept.
        """
        if self._progress.status is Status.VALIDATING:
            await self._validate()
        if self._progress.status is Status.IN_PROGRESS:
            ended = await self._until_ended()
            if ended is Status.EXPIRED:
                await self._give_up_the_rest()
            await self._report(self._progress.moved(Status.FINALIZING, ends_as=ended))
        if self._progress.status is Status.FINALIZING:
            await self._finish()

    async def _validate(self) -> None:
        order = self._order
        lines = self._contents.lines(order.input_file_id)
        most, longest = self._settings.max_requests, self._settings.max_request_bytes
        total, problems = await asyncio.to_thread(examine, lines, order.endpoint, most, longest)
        if problems:
            await self._report(self._progress.moved(Status.FAILED, errors=tuple(problems)))
            return
        begun = self._progress.moved(
            Status.IN_PROGRESS,
            request_counts=Counts(total=total),
            writes_to=(new_id("file"), new_id("file")),
        )
        await self._report(begun)

    async def _until_ended(self) -> Status:
        """Ask all that has no answer yet; returns how it ended."""
        work = asyncio.create_task(self._answer_all(), name=f"batch {self._order.id}")
        try:
            while True:
                done, _ = await asyncio.wait([work], timeout=_KEEP_EVERY_S)
                batch = await self._keep()
                if done:
                    work.result()
                    return Status.COMPLETED
                if batch.cancelling_at is not None:
                    return Status.CANCELLED
                if now() >= self._order.expires_at:
                    return Status.EXPIRED
        finally:
            await cancel(work)

    async def _answer_all(self) -> None:
        places = asyncio.Semaphore(self._settings.at_once)

        async def answer(line: Line) -> None:
            try:
                found = await self._answer(line)
                self._answers.append(found)  # to the list as it is now: it is emptied meanwhile
            finally:
                places.release()

        async with asyncio.TaskGroup() as tasks:
            async for line in self._unanswered():
                await places.acquire()
                tasks.create_task(answer(line))

    async def _unanswered(self) -> AsyncIterator[Line]:
        done = await asyncio.to_thread(self._answered)
        lines = enumerate(self._contents.lines(self._order.input_file_id), 1)

        def some() -> list[Line]:
            texts = itertools.islice(lines, _AT_A_TIME)
            return [read_line(n, text, self._order.endpoint) for n, text in texts if text.strip()]

        while found := await asyncio.to_thread(some):
            for line in found:
                if line.custom_id not in done:
                    yield line

    def _answered(self) -> set[str]:
        """The requests whose answers are kept; and counts them."""
        outputs, errors = (
            {custom_id_of(line) for line in self._contents.lines(i)} for i in self._files
        )
        self._count(completed=len(outputs), failed=len(errors - outputs))
        return outputs | errors

    async def _answer(self, line: Line) -> Answer:
        """Ask as often as it takes."""
        for tries in itertools.count(1):
            answer, wait_s = await self._asked(line)
            if answer.status != _LATER and (answer.status < 500 or tries == _TRIES):
                return answer
            pause_s = min(_MOST_WAIT_S, max(wait_s, 2.0 ** min(tries, 10) / 2))
            await asyncio.sleep(pause_s * random.uniform(0.75, 1.25))
        raise AssertionError

    async def _asked(self, line: Line) -> tuple[Answer, float]:
        """The answer to one try, and how long to wait before another."""
        order = self._order
        request_id = f"{order.id}-{line.number}"
        try:
            async with AsyncExitStack() as held:
                reply = await self._ask(
                    order.endpoint, dict(line.body), request_id, order.viewer, _HEADERS, held
                )
                content = await reply.read()
            return Answer(line.custom_id, request_id, reply.start.status, content), 0.0
        except RoundhouseError as e:
            return Answer.refused(line.custom_id, request_id, e), e.retry_after_s or 0.0
        except Exception:
            # One request that we cannot serve must not keep the others from being answered.
            logger.exception("request %s failed", request_id)
            error = RoundhouseError("internal error; the log names this request id")
            return Answer.refused(line.custom_id, request_id, error), 0.0

    async def _keep(self) -> Batch:
        """Write the answers that came since, and say how far it is.

        Raises:
            Unavailable: another process has taken the batch over.
        """
        if not await self._renew():
            raise Unavailable("another process works on it")
        answers, self._answers = self._answers, []
        for file_id, is_good in zip(self._files, (True, False), strict=True):
            lines = b"".join(a.line() for a in answers if a.is_good is is_good)
            if lines:
                await asyncio.to_thread(self._contents.add, file_id, lines)
        good = sum(answer.is_good for answer in answers)
        metrics.batch_requests.labels("completed").inc(good)
        metrics.batch_requests.labels("failed").inc(len(answers) - good)
        counts = self._progress.request_counts
        self._count(completed=counts.completed + good, failed=counts.failed + len(answers) - good)
        return await self._report(self._progress)

    async def _give_up_the_rest(self) -> None:
        error = {"code": "batch_expired", "message": "there was no time for this request"}
        async for line in self._unanswered():
            request_id = f"{self._order.id}-{line.number}"
            self._answers.append(Answer(line.custom_id, request_id, error=error))
        await self._keep()

    async def _finish(self) -> None:
        """Have the files be the tenant's, and the batch ended."""
        output, error = [await self._handed_over(i) for i in self._files]
        ended = self._progress.ends_as or Status.COMPLETED
        await self._report(
            self._progress.moved(ended, output_file_id=output, error_file_id=error, writes_to=None)
        )

    async def _handed_over(self, file_id: str) -> str | None:
        size = await asyncio.to_thread(self._contents.size, file_id)
        if not size:
            return None
        await self._ledger.put_file(
            StoredFile(
                id=file_id,
                owner=self._order.viewer.owner,
                bytes=size,
                expires_at=now() + self._order.keep_results_s,
                filename=f"{self._order.id}.jsonl",
                purpose="batch_output",
            )
        )
        return file_id

    @property
    def _files(self) -> tuple[str, str]:
        """Where results go, and errors."""
        assert self._progress.writes_to is not None
        return self._progress.writes_to

    def _count(self, *, completed: int, failed: int) -> None:
        counts = self._progress.request_counts
        counts = counts.model_copy(update={"completed": completed, "failed": failed})
        self._progress = self._progress.model_copy(update={"request_counts": counts})

    async def _report(self, progress: Progress) -> Batch:
        self._progress = progress
        batch = await self._ledger.report(self._order, progress)
        if batch is None:
            raise Unavailable("the store does not know this batch any more")
        return batch
