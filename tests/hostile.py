"""How often an attack is tried: a few times in CI, many by `make test-hostile`."""

import os

IS_LONG = "ROUNDHOUSE_HOSTILE" in os.environ


def rounds(few: int, many: int) -> int:
    """Of the two, what this run is for."""
    return many if IS_LONG else few
