"""How often `roundhouse up` starts Ray again, and that it goes on looking. That it does:
`test_serve.py`."""

import asyncio
import logging
from multiprocessing import Pipe

import pytest

from cluster.errors import Conflict, Unavailable
from cluster.settings import AuthSettings, BaseModelSettings, Settings, StoreSettings
from deployments.command import lifecycle, upkeep
from deployments.command.first_key import FILE
from deployments.command.runs import Run, only_one
from deployments.command.upkeep import Restarts, keep_up
from deployments.process.ray_health import gcs_answers


def test_deaths_in_a_row_are_met_with_ever_longer_pauses_and_then_with_an_end():
    restarts = Restarts()
    assert [restarts.pause_s(20) for _ in range(6)] == [1, 2, 4, 8, 16, None]


def test_a_run_that_stood_for_long_ends_the_row():
    restarts = Restarts()
    for _ in range(4):
        restarts.pause_s(20)
    assert restarts.pause_s(3600) == 1
    assert restarts.pause_s(20) == 2


def test_a_check_that_fails_in_a_way_of_its_own_has_no_answer(monkeypatch, caplog):
    monkeypatch.setattr("ray._private.worker.global_worker", None)
    with caplog.at_level(logging.WARNING):
        assert not asyncio.run(gcs_answers())
    assert "could not be asked" in caplog.text


class BadChecks:
    """Of both, each fails at first, or for ever."""

    def __init__(self, *, is_silent: bool) -> None:
        self._is_silent = is_silent
        self._asked = 0

    def dead(self) -> str | None:
        self._asked += 1
        if self._asked == 1:
            raise AttributeError("Ray's insides have moved")
        return None if self._is_silent or self._asked < 4 else "Ray's raylet has died"

    async def answers(self) -> bool:
        raise RuntimeError("no file is left to open")


@pytest.mark.parametrize(
    ("is_silent", "told"), [(False, "raylet has died"), (True, "has not answered for")]
)
def test_the_watcher_outlives_whatever_its_checks_raise(monkeypatch, is_silent, told):
    checks = BadChecks(is_silent=is_silent)
    monkeypatch.setattr(lifecycle, "_dead_of_ray", checks.dead)
    monkeypatch.setattr(lifecycle, "gcs_answers", checks.answers)
    monkeypatch.setattr(lifecycle, "_POLL_S", 0.01)
    monkeypatch.setattr(lifecycle, "_SILENT_S", 0.3 if is_silent else 30)
    monkeypatch.setattr(lifecycle.os, "_exit", lambda _: None)
    ours, theirs = Pipe()
    with ours, theirs, lifecycle.watched(theirs, is_ours=True):
        assert ours.poll(5)
        found = ours.recv()
    assert isinstance(found, Unavailable)
    assert told in found.message


@pytest.mark.hostile
def test_the_first_key_is_made_by_who_has_the_data_folder(monkeypatch, tmp_path):
    """Another would show one that is not asked for."""
    monkeypatch.setattr(upkeep, "_interrupt_on_signals", lambda: None)
    settings = Settings(
        models=(BaseModelSettings(id="echo", path="none", engine="echo"),),
        store=StoreSettings(data_dir=tmp_path),
        auth=AuthSettings(enabled=True),
    )
    with only_one(tmp_path, Run(pid=1, endpoint="")), pytest.raises(Conflict):
        keep_up(
            settings, address=None, progress=print, warn=print, ready=print, show_key=pytest.fail
        )
    assert not (tmp_path / FILE).exists()
