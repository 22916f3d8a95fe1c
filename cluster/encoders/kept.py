"""Encoders that catalogues have taught, and which of them reads prompts."""

from pydantic import Field

from cluster.errors import Conflict, NotFound
from cluster.values import Record

# Older ones are forgotten, and their files are collected.
MOST = 8


class TrainedEncoder(Record):
    """One, and where it comes from.

    Attributes:
        digest: of its files in the blob store.
    """

    id: str
    digest: str = Field("", description="of its files in the blob store")
    made_at: float
    parent: str = Field(description="version of the encoder that it was tuned from")
    reader: str = Field("", description="version of the reader beside which it was calibrated")
    position: str = Field(description="of the catalogue that it was tuned on")
    lessons: str = Field(description="sha256 of the examples")
    adapters: int
    texts: int = Field(description="of cards and of feedback")
    of_feedback: int = 0
    steps: int
    folds: int
    seed: int
    before: float = Field(description="held-out examples whose own adapter came first, untrained")
    after: float = Field(description="the same, trained")
    error: float = Field(description="standard error of the difference")
    loss_before: float = Field(description="log-loss of the held-out examples, untrained")
    loss_after: float = Field(description="the same, trained")
    took_s: float


class Encoders(Record):
    """All that are kept; pure: each change gives another.

    Attributes:
        held: id of the one that shall read; None: the one of the settings.
        previous: what was held before, the last at the end.
    """

    held: str | None = None
    previous: tuple[str | None, ...] = ()
    kept: tuple[TrainedEncoder, ...] = ()
    revision: int = Field(0, exclude=True)

    @property
    def current(self) -> TrainedEncoder | None:
        return self._found(self.held)

    def with_new(self, made: TrainedEncoder, *, use: bool) -> "Encoders":
        """With one more; beyond :data:`MOST`, the oldest that is not held goes."""
        kept = [encoder for encoder in self.kept if encoder.id != made.id] + [made]
        grown = self.model_copy(update={"kept": tuple(kept)})
        changed = grown.using(made.id) if use else grown
        while len(kept) > MOST:
            kept.remove(next(e for e in kept if e.id not in (changed.held, made.id)))
        ids = {None, *(e.id for e in kept)}
        previous = tuple(p for p in changed.previous if p in ids)
        return changed.model_copy(update={"kept": tuple(kept), "previous": previous})

    def using(self, which: str | None) -> "Encoders":
        """Another is held; raises NotFound."""
        if which is not None and self._found(which) is None:
            raise NotFound(
                f"there is no trained encoder {which!r}; see `roundhouse router encoders list`",
                param="id",
            )
        if which == self.held:
            return self
        previous = (*self.previous, self.held)[-MOST:]
        return self.model_copy(update={"held": which, "previous": previous})

    def rolled_back(self) -> "Encoders":
        """What was held before is held again; raises Conflict."""
        if not self.previous:
            raise Conflict("no other encoder was in use before this one")
        *earlier, last = self.previous
        return self.model_copy(update={"held": last, "previous": tuple(earlier)})

    def _found(self, which: str | None) -> TrainedEncoder | None:
        return next((encoder for encoder in self.kept if encoder.id == which), None)
