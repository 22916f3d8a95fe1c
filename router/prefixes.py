"""Which replica has the start of a prompt in its prefix cache, as far as this process knows.

A prompt is cut into blocks, each hashed with all before it, as vLLM does with tokens. What a
replica was last asked is likely to be still there; nothing depends on it.
"""

import hashlib
from collections import OrderedDict

# About 128 tokens of English; vLLM's own blocks are of 16 and more tokens.
BLOCK_BYTES, BLOCK_TOKENS = 512, 128
_MOST_BLOCKS = 64


def chain_of(prompt: bytes) -> tuple[bytes, ...]:
    """A hash per full block of the prompt, each of everything up to its end."""
    digest, chain = hashlib.blake2b(digest_size=8), []
    for end in range(BLOCK_BYTES, min(len(prompt), _MOST_BLOCKS * BLOCK_BYTES) + 1, BLOCK_BYTES):
        digest.update(prompt[end - BLOCK_BYTES : end])
        chain.append(digest.digest())
    return tuple(chain)


class PrefixIndex:
    """Block -> the replica that had it last; the least recently used are forgotten."""

    def __init__(self, most: int = 50_000) -> None:
        self._most = most
        self._replicas: OrderedDict[tuple[str | None, bytes], str] = OrderedDict()

    def note(self, key: str | None, chain: tuple[bytes, ...], replica: str) -> None:
        """Remember that `replica` works on a prompt for the adapter version `key`."""
        for block in chain:
            self._replicas[key, block] = replica
            self._replicas.move_to_end((key, block))
        while len(self._replicas) > self._most:
            self._replicas.popitem(last=False)

    def cached(self, key: str | None, chain: tuple[bytes, ...]) -> dict[str, int]:
        """Replica -> tokens of the prompt's start that it has; others have none."""
        tokens: dict[str, int] = {}
        for length, block in enumerate(chain, start=1):
            replica = self._replicas.get((key, block))
            if replica is None:
                break
            tokens[replica] = length * BLOCK_TOKENS
        return tokens
