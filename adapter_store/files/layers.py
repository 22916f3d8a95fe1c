"""What an adapter does to one layer of the base model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AdaptedLayer:
    """A layer of the base model, and the tensors that adapt it: W x + scale B A x.

    Attributes:
        module: the base model's path of it.
        a, b: names of the tensors in the file, of shapes (rank, in) and (out, rank).
        rank: as the configuration says.
        is_embedding: `in` is the vocabulary, and x a token.
        experts: whose pairs are stacked in these two; A has the rows of all of them.
    """

    module: str
    a: str
    b: str
    rank: int
    scale: float
    is_embedding: bool
    experts: int
