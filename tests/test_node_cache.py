"""The node cache with real processes: bounded, shared, and whole after a crash."""

import multiprocessing
import threading
import time
from pathlib import Path

import pytest

from adapter_store.files.node_cache import NodeCache

BYTES = 1000


def build(folder: Path) -> None:
    (folder / "data").write_bytes(b"x" * BYTES)


@pytest.fixture
def cache(tmp_path) -> NodeCache:
    return NodeCache(tmp_path / "node", 3 * BYTES)


def use(cache: NodeCache, key: str) -> None:
    with cache.entry(key, build) as folder:
        assert (folder / "data").stat().st_size == BYTES


def test_an_entry_is_built_once(cache):
    built = []

    def count(folder: Path) -> None:
        built.append(folder)
        build(folder)

    for _ in range(3):
        with cache.entry("a", count) as folder:
            assert (folder / "data").is_file()
    assert len(built) == 1


def test_the_least_recently_used_go_first(cache):
    for key in "abc":
        use(cache, key)
        time.sleep(0.02)  # the file system's clock is coarse
    use(cache, "a")
    time.sleep(0.02)
    use(cache, "d")
    assert [key for key in "abcd" if cache.has(key)] == ["a", "c", "d"]
    assert cache.size_bytes() == 3 * BYTES


def test_what_is_in_use_stays_even_over_the_bound(cache):
    with cache.entry("a", build) as folder:
        for key in "bcde":
            use(cache, key)
        assert (folder / "data").is_file()
    use(cache, "f")
    assert cache.size_bytes() <= 3 * BYTES
    assert not cache.has("a")


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError])
def test_a_failed_build_leaves_nothing(cache, tmp_path, error):
    def fail(folder: Path) -> None:
        build(folder)
        raise error("damaged")

    with pytest.raises(error, match="damaged"), cache.entry("a", fail):
        raise AssertionError("the block must not run")
    assert list((tmp_path / "node").iterdir()) == []
    use(cache, "a")


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError])
def test_an_error_of_the_user_is_the_users(cache, error):
    with pytest.raises(error, match="mine"), cache.entry("a", build):
        raise error("mine")
    use(cache, "a")


def test_what_is_discarded_is_built_anew(cache):
    use(cache, "a")
    cache.discard("a")
    assert not cache.has("a")
    cache.discard("a")
    use(cache, "a")


def test_those_who_want_the_same_wait_for_the_one_who_builds(cache):
    built = []

    def slowly(folder: Path) -> None:
        built.append(folder)
        time.sleep(0.2)
        build(folder)

    def want() -> None:
        with cache.entry("a", slowly):
            pass

    threads = [threading.Thread(target=want) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(built) == 1


def _build_for_ever(root: Path, started) -> None:
    def stuck(folder: Path) -> None:
        build(folder)
        started.set()
        time.sleep(60)

    with NodeCache(root, 3 * BYTES).entry("a", stuck):
        pass


@pytest.fixture
def killed_builder(tmp_path) -> None:
    """A process that was killed while it built the entry `a`."""
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(target=_build_for_ever, args=(tmp_path / "node", started))
    process.start()
    assert started.wait(30)
    process.kill()
    process.join(10)


@pytest.mark.usefixtures("killed_builder")
def test_a_builder_that_is_killed_holds_nobody_up(cache):
    assert not cache.has("a")
    use(cache, "a")


@pytest.mark.usefixtures("killed_builder")
def test_a_sweep_removes_what_a_killed_builder_left(cache, tmp_path):
    cache.sweep()
    assert list((tmp_path / "node").iterdir()) == []


def _churn(root: Path, seed: int) -> None:
    cache = NodeCache(root, 3 * BYTES)
    for i in range(150):
        use(cache, "abcdefgh"[(i * 7 + seed * 3 + i // 5) % 8])


def test_replicas_of_a_node_share_it_under_load(tmp_path):
    context = multiprocessing.get_context("spawn")
    root = tmp_path / "node"
    workers = [context.Process(target=_churn, args=(root, seed)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [w.exitcode for w in workers] == [0, 0, 0]
    assert NodeCache(root, 3 * BYTES).size_bytes() <= 3 * BYTES
    assert {p.suffix for p in root.iterdir()} == {""}
