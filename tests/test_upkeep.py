"""How often `roundhouse up` starts Ray again. That it does: `test_serve.py`."""

from deployments.command.upkeep import Restarts


def test_deaths_in_a_row_are_met_with_ever_longer_pauses_and_then_with_an_end():
    restarts = Restarts()
    assert [restarts.pause_s(20) for _ in range(6)] == [1, 2, 4, 8, 16, None]


def test_a_run_that_stood_for_long_ends_the_row():
    restarts = Restarts()
    for _ in range(4):
        restarts.pause_s(20)
    assert restarts.pause_s(3600) == 1
    assert restarts.pause_s(20) == 2
