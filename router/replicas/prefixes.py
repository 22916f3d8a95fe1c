"""Which replica has the start of a prompt in its prefix cache, as far as this process knows.

A prompt is cut into blocks, each hashed with all before it, as vLLM does with tokens. What a
replica was last asked is likely to be still there; nothing depends on it.
"""

import hashlib
from collections import OrderedDict

from cluster.adapters import AdapterKey
from cluster.settings import DispatchSettings

# Of English text, about.
_BYTES_PER_TOKEN = 4


def chain_of(prompt: bytes, settings: DispatchSettings, salt: bytes = b"") -> tuple[bytes, ...]:
    """A hash per full block of the prompt, each of everything up to its end.

    Args:
        salt: of the request's part of the prefix cache; no part has blocks of another.
    """
    digest, chain = hashlib.blake2b(salt, digest_size=8), []
    size = settings.prefix_block_bytes
    for end in range(size, min(len(prompt), settings.prefix_blocks * size) + 1, size):
        digest.update(prompt[end - size : end])
        chain.append(digest.digest())
    return tuple(chain)


class PrefixIndex:
    """Block -> the replica that had it last; the least recently used are forgotten."""

    def __init__(self, settings: DispatchSettings) -> None:
        self._most = settings.prefix_memory
        self._block_tokens = settings.prefix_block_bytes // _BYTES_PER_TOKEN
        self._replicas: OrderedDict[tuple[AdapterKey | None, bytes], str] = OrderedDict()

    def note(self, key: AdapterKey | None, chain: tuple[bytes, ...], replica: str) -> None:
        """Remember that `replica` works on a prompt for the adapter version `key`."""
        for block in chain:
            self._replicas[key, block] = replica
            self._replicas.move_to_end((key, block))
        while len(self._replicas) > self._most:
            self._replicas.popitem(last=False)

    def cached(self, key: AdapterKey | None, chain: tuple[bytes, ...]) -> dict[str, int]:
        """Replica -> tokens of the prompt's start that it has; others have none."""
        tokens: dict[str, int] = {}
        for length, block in enumerate(chain, start=1):
            replica = self._replicas.get((key, block))
            if replica is None:
                break
            tokens[replica] = length * self._block_tokens
        return tokens
