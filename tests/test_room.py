"""A paused learner gives memory back by ending, and comes again where there is room."""

from __future__ import annotations

import functools
import time

import pytest

from daemon.config import GovernorSettings
from daemon.errors import NotReadyError
from daemon.governor import governor as governor_module
from daemon.governor.controller import Controller
from daemon.governor.governor import Governor
from daemon.governor.latency import RecentLatencies
from daemon.governor.operator_pause import OperatorPause
from daemon.messages import Pace
from daemon.supervision import room
from daemon.supervision.room import Room
from tests.daemon_fixtures import (
    WAIT_SECONDS,
    added,
    alive,
    daemon_parts,
    restarts,
    running,
    sample,
    starts,
)
from tests.governor_fixtures import well
from tests.running import wait_for as wait_for_long

wait_for = functools.partial(wait_for_long, seconds=10)
FREE, WANTED = 100 << 20, 256 << 20
LEARNER = "ready(); until_closed()"


@pytest.fixture
def parts(tmp_path):
    with daemon_parts(tmp_path) as parts:
        yield parts


class Machine:
    readings = well(free_bytes=4 * WANTED)

    def read(self):
        return self.readings


def test_a_learner_that_is_paused_for_memory_ends_and_comes_back_when_there_is_room(
    parts, monkeypatch
):
    monkeypatch.setattr(governor_module, "PERIOD_SECONDS", 0.02)
    monkeypatch.setattr(room, "_KEPT_SECONDS", 0.3)
    monkeypatch.setattr(room, "_GONE_SECONDS", 0.3)
    added(parts.store, *[sample(number) for number in range(9)])
    machine = Machine()
    with running(parts, LEARNER) as supervisor:
        governor = Governor(
            Controller(GovernorSettings(min_free_bytes=WANTED), telemetry_expected=False),
            machine,  # type: ignore[arg-type]
            OperatorPause(parts.folder),
            RecentLatencies(),
            supervisor.pace,
            parts.telemetry,
            why_down=lambda: supervisor.why_down,
            on_memory=lambda short: supervisor.memory(short=short),
        )
        governor.start()
        try:
            pid = wait_for(lambda: supervisor.up and supervisor.pid, "the learner")
            machine.readings = well(free_bytes=FREE)
            wait_for(lambda: restarts(parts, "memory") == 1, "its end")
            assert not alive(pid)
            wait_for(lambda: supervisor.paused, "the wait for room")
            assert "less is free than governor.min_free_bytes" in supervisor.paused
            assert governor.state.text.startswith("paused: 100 MiB of RAM are free, limit 256 MiB")
            with pytest.raises(NotReadyError, match="waits for memory"):
                supervisor.request_training("", None)
            assert supervisor.well(WAIT_SECONDS)
            assert len(starts(parts)) == 1
            machine.readings = well(free_bytes=4 * WANTED)
            wait_for(lambda: supervisor.up, "the next learner")
            assert supervisor.paused is None
        finally:
            governor.stop()
    assert len(starts(parts)) == 2
    assert restarts(parts) == 1


def test_a_learner_is_ended_for_memory_only_where_it_is_paused(parts, monkeypatch):
    monkeypatch.setattr(room, "_KEPT_SECONDS", 0.0)
    with running(parts, LEARNER) as supervisor:
        pid = wait_for(lambda: supervisor.up and supervisor.pid, "the learner")
        supervisor.pace(Pace(0.5, None))
        supervisor.memory(short=True)
        supervisor.pace(Pace(0.0, "hours"))
        supervisor.memory(short=False)
        assert alive(pid)
        supervisor.memory(short=True)
        wait_for(lambda: not alive(pid), "its end")
        began = time.monotonic()
        supervisor.stop()  # while it waits for room
        assert time.monotonic() - began < 5
    assert len(starts(parts)) == 1


def periods(told: Room, first: int, last: int, *, short: bool, held: bool = True) -> list[int]:
    """The seconds, of these, in which the learner had to end."""
    return [now for now in range(first, last) if told.period(now, short=short, held=held)]


def test_a_shortage_that_passes_ends_no_learner():
    told = Room()
    assert periods(told, 0, 50, short=True) == []
    assert periods(told, 50, 55, short=False, held=False) == []  # it worked again
    assert periods(told, 55, 100, short=True) == []
    assert told.missing == room._SHORT
    assert told.period(100, short=False, held=True) is False
    assert told.missing is None


def test_a_shortage_that_comes_and_goes_in_one_pause_is_one():
    told = Room()
    assert periods(told, 0, 10, short=True) == []
    assert periods(told, 10, 70, short=False) == []  # near the limit, and still paused
    assert told.period(70, short=True, held=True)


def test_two_short_shortages_hours_apart_in_one_pause_end_no_learner():
    told = Room()
    assert periods(told, 0, 5, short=True) == []
    assert periods(told, 5, 7200, short=False) == []
    assert periods(told, 7200, 7205, short=True) == []
    assert periods(told, 7205, 7264, short=True) == [7260, 7261, 7262, 7263]


def test_after_such_an_end_some_minutes_pass_even_where_memory_is_free_at_once():
    told = Room()
    assert periods(told, 0, 61, short=True) == [60]
    assert periods(told, 61, 360, short=False, held=False) == []
    assert told.missing == room._GONE
    assert told.period(360, short=False, held=False) is False
    assert told.missing is None
