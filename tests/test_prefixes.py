"""Which replica has the start of a prompt."""

from cluster.means import MovingMean
from cluster.settings import DispatchSettings
from router.replicas.prefixes import PrefixIndex, chain_of

SETTINGS = DispatchSettings(prefix_block_bytes=64, prefix_blocks=4, prefix_memory=6)
TOKENS = 16  # of a block


def prompt(*blocks: str) -> bytes:
    return b"".join(block.encode() * 64 for block in blocks)


def chain(*blocks: str) -> tuple[bytes, ...]:
    return chain_of(prompt(*blocks), SETTINGS)


def test_a_block_is_known_by_all_before_it():
    assert chain("a", "b")[0] == chain("a", "c")[0]
    assert chain("a", "b")[1] != chain("c", "b")[1]
    assert chain_of(prompt("a") + b"rest", SETTINGS) == chain("a"), "full blocks only"
    assert len(chain(*"abcdefgh")) == SETTINGS.prefix_blocks
    assert chain_of(prompt("a"), DispatchSettings(prefix_blocks=0)) == ()


def test_the_longest_start_counts_and_only_for_the_same_adapter():
    index = PrefixIndex(SETTINGS)
    index.note("cron@1", chain("a", "b"), "r1")
    index.note("cron@1", chain("a", "c"), "r2")
    assert index.cached("cron@1", chain("a", "b", "d")) == {"r2": TOKENS, "r1": 2 * TOKENS}
    assert index.cached("sql@1", chain("a", "b")) == {}


def test_what_was_long_not_used_is_forgotten():
    index = PrefixIndex(SETTINGS)
    index.note(None, chain("a", "b"), "r1")
    index.note(None, chain("c", "d", "e", "f"), "r2")
    assert index.cached(None, chain("a")) == {"r1": TOKENS}
    index.note(None, chain("g"), "r3")
    assert index.cached(None, chain("a")) == {}


def test_a_moving_mean_begins_with_the_first_value_and_follows():
    mean = MovingMean(newest=0.5)
    assert mean.value == 0
    for value in (4, 8, 8):
        mean.add(value)
    assert mean.value == 7
