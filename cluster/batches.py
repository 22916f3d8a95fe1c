"""Work that nobody waits for: batches of requests and their files, in OpenAI's shapes."""

import time
import uuid
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from cluster.adapters import Viewer
from cluster.values import Record


class Status(StrEnum):
    """Where a batch is on its way."""

    VALIDATING = "validating"
    FAILED = "failed"  # its file is no batch
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (Status.FAILED, Status.COMPLETED, Status.EXPIRED, Status.CANCELLED)


def new_id(kind: Literal["file", "batch"]) -> str:
    """An id that nobody can guess, which OpenAI's clients know by its beginning."""
    return f"{kind}{'_' if kind == 'batch' else '-'}{uuid.uuid4().hex}"


def now() -> int:
    """Unix time in seconds, as OpenAI's objects have it."""
    return int(time.time())


class StoredFile(Record):
    """A file that a batch reads or has written; the content is under its id."""

    id: str
    owner: str = Field("", exclude=True)
    object: Literal["file"] = "file"
    bytes: int
    created_at: int = Field(default_factory=now)
    expires_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"


class Counts(Record):
    """Of the requests of a batch, how many there are, and how they ended so far."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class Order(Record):
    """What a client wants done; never changes."""

    id: str
    viewer: Viewer = Field(description="as whom its requests are made")
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int = Field(default_factory=now)
    expires_at: int = Field(description="what has not been done by then is not done any more")
    metadata: dict[str, str] | None = None
    keep_results_s: int = Field(description="what its results are kept for")


class Problem(Record):
    """Why a file is no batch."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class Progress(Record):
    """How far a batch is; only who works on it writes it.

    Attributes:
        writes_to: ids of the files that results and errors go to, before they are anybody's.
        ends_as: what it will be when those files are handed over.
    """

    status: Status = Status.VALIDATING
    request_counts: Counts = Counts()
    errors: tuple[Problem, ...] = ()
    writes_to: tuple[str, str] | None = None
    ends_as: Status | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelled_at: int | None = None

    def moved(self, status: Status, **changes: Any) -> "Progress":
        """Another status, with the time at which it was reached."""
        return self.model_copy(update={"status": status, f"{status}_at": now(), **changes})


class Batch(Record):
    """A batch as the store has it.

    Attributes:
        cancelling_at: when somebody asked for its end, or None.
    """

    order: Order
    progress: Progress = Progress()
    cancelling_at: int | None = None

    @property
    def status(self) -> Status:
        """With what is asked for, and not done yet."""
        if self.cancelling_at is not None and not self.progress.status.is_final:
            return Status.CANCELLING
        return self.progress.status

    def told(self) -> dict[str, Any]:
        """OpenAI's object."""
        errors = [problem.model_dump() for problem in self.progress.errors]
        progress = self.progress.model_dump(
            mode="json", exclude={"errors", "status", "writes_to", "ends_as"}
        )
        return {
            "object": "batch",
            **self.order.model_dump(mode="json", exclude={"viewer", "keep_results_s"}),
            **progress,
            "status": self.status.value,
            "cancelling_at": self.cancelling_at,
            "errors": {"object": "list", "data": errors} if errors else None,
        }
