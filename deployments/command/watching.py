"""A thread that looks after something for as long as a block lasts."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def watching(name: str, watch: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run `watch` beside the block, until the event that it is given is set at the block's end."""
    ended = threading.Event()
    watcher = threading.Thread(target=watch, args=(ended,), name=name, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
