"""The governor's thread and the supervisor's word: who is told what, and when."""

from __future__ import annotations

import datetime
import functools
import json
import os
import time
from typing import Any

import pytest

from daemon.config import GovernorSettings
from daemon.governor import governor as governor_module
from daemon.governor.controller import Controller
from daemon.governor.governor import Governor
from daemon.governor.latency import RecentLatencies
from daemon.governor.operator_pause import OperatorPause
from daemon.governor.readings import Machine, Readings
from daemon.governor.repeated_failure import RepeatedFailure
from daemon.messages import Pace
from tests.daemon_fixtures import daemon_parts, failures, restarts, running
from tests.governor_fixtures import NOON, well
from tests.running import wait_for as wait_for_long

wait_for = functools.partial(wait_for_long, seconds=10)


@pytest.fixture
def parts(tmp_path):
    with daemon_parts(tmp_path) as parts:
        yield parts


class FakeMachine:
    readings: Readings | None = well()

    def read(self) -> Readings:
        if self.readings is None:
            raise OSError("no such machine")
        return self.readings


class Rig:
    def __init__(self, parts, **limits: Any) -> None:
        self.machine = FakeMachine()
        self.told: list[Pace] = []
        self.held: list[bool] = []
        self.now = NOON
        self.governor = Governor(
            Controller(GovernorSettings(**limits), telemetry_expected=False),
            self.machine,  # type: ignore[arg-type]
            OperatorPause(parts.folder),
            RecentLatencies(),
            self.told.append,
            parts.telemetry,
            self.held.append,
            local_time=lambda: self.now,
        )


def test_period_after_period_the_learner_is_told(parts, monkeypatch):
    monkeypatch.setattr(governor_module, "PERIOD_SECONDS", 0.01)
    rig = Rig(parts)
    rig.governor.start()
    try:
        assert rig.told[0] == Pace(1.0, None)
        rig.machine.readings = well(celsius=90.0)
        wait_for(lambda: rig.told[-1] == Pace(0.0, "temperature"), "the pause")
        assert Pace(0.5, None) in rig.told  # by half first
        assert rig.held == [True]
        assert parts.reading("ffedge_throttled", reason="temperature") == 1
        rig.machine.readings = well()
        wait_for(lambda: rig.told[-1].duty > 0, "it to go on")
        assert rig.held == [True, False]
    finally:
        rig.governor.stop()


def test_a_machine_that_cannot_be_read_leaves_the_safe_duty(parts, monkeypatch, caplog):
    monkeypatch.setattr(governor_module, "PERIOD_SECONDS", 0.01)
    rig = Rig(parts)
    rig.governor.start()
    try:
        rig.machine.readings = None
        wait_for(lambda: rig.told[-1].duty == 0.25, "the safe duty")
        assert "no reading of power and temperature" in rig.governor.state.text
        heard = len(rig.told)
        wait_for(lambda: len(rig.told) > heard + 5, "more periods of it")
        assert [r.levelname for r in caplog.records if r.exc_info] == ["ERROR"]  # one, not each
        assert "no such machine" in caplog.text
        rig.machine.readings = well()
        wait_for(lambda: rig.told[-1].duty > 0.25, "trust")
    finally:
        rig.governor.stop()


def test_a_period_that_cannot_be_judged_ends_no_governor(parts, monkeypatch, caplog):
    monkeypatch.setattr(governor_module, "PERIOD_SECONDS", 0.01)
    rig = Rig(parts)
    rig.machine.readings = well(celsius="hot")
    rig.governor.start()
    try:
        wait_for(lambda: not rig.governor.well(0.2), "nobody to be governed")
        assert [r.levelname for r in caplog.records if r.exc_info] == ["ERROR"]  # one, not each
        assert "the governor cannot judge a period" in caplog.text
        assert rig.told[-1].duty == 0
        assert rig.governor.state.text == "paused: the governor fails: see the log"
        rig.machine.readings = well(celsius=90.0)
        wait_for(lambda: rig.told[-1] == Pace(0.0, "temperature"), "the pause")
        assert rig.governor.well(0.2)
    finally:
        rig.governor.stop()


def test_readings_that_keep_failing_are_logged_when_it_begins_ends_and_every_ten_minutes(caplog):
    caplog.set_level("INFO")
    failed = RepeatedFailure("read this machine")

    def told(begin: int, end: int, every: int = 1) -> list[tuple[str, int, bool]]:
        """What is logged of these seconds; each `every`th fails."""
        caplog.clear()
        for second in range(begin, end):
            if every and second % every == 0:
                failed.failed(OSError("no such machine"), float(second))
            else:
                failed.over(float(second))
        return [(r.levelname, r.periods, bool(r.exc_info)) for r in caplog.records]

    assert told(0, 5, every=0) == []
    assert told(5, 1205) == [("ERROR", 1, True), ("ERROR", 601, True)]
    assert told(1205, 1300, every=0) == [("INFO", 1200, False)]
    assert told(1300, 1400, every=0) == []
    flapping = told(1400, 2600, every=2)
    assert flapping == [("ERROR", 1, True), ("ERROR", 301, True)]
    assert told(2600, 2700, every=0) == [("INFO", 600, False)]


def test_hours_and_an_operator_are_gates_and_the_duty_behind_them_is_kept(parts):
    rig = Rig(parts, hours="22:00-06:00")
    assert rig.governor.state.text == "paused: outside the hours 22:00-06:00"
    assert rig.governor.pause("lunch", 60.0)
    assert rig.told[-1] == Pace(0.0, "hours, operator")
    assert "by an operator (lunch), 60 s left" in rig.governor.state.text
    rig.now = NOON + datetime.timedelta(hours=11)
    assert rig.governor.resume()
    assert rig.governor.state.text == "running"
    assert rig.told[-1] == Pace(1.0, None)


def test_budgets_pause_and_free_again(parts):
    judge = Controller(GovernorSettings(budget_steps=100), telemetry_expected=False)
    judge.period(well(steps=1000), 0.0)
    assert judge.state(NOON, None).state == "running"
    judge.period(well(steps=1100), 60.0)
    found = judge.state(NOON, None)
    assert found.text == "paused: 100 steps of learning in the last hour, budget 100"
    judge.period(well(steps=1100), 3700.0)
    assert judge.state(NOON, None).state == "running"


def test_the_machine_is_read():
    """Ourselves as the learner: a busy process takes a share of the processors."""

    class NoPower:
        reading = None

        def energy(self) -> Any:
            return type("Energy", (), {"learning": None})

    machine = Machine(
        NoPower(),  # type: ignore[arg-type]
        RecentLatencies(),
        os.getpid,
        lambda: (1.5, 7),
        lambda: True,
    )
    machine.read()
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    found = machine.read()
    assert 0 < found.cpu_ratio <= 1
    assert found.free_bytes > 0
    assert (found.watts, found.celsius, found.watts_known) == (None, None, False)
    assert (found.seconds, found.steps, found.working) == (1.5, 7, True)


PACED = """
ready()
say("alive", seconds=0.5, steps=3)
pace = hear()
say("job_started", trigger="time", after_seq=0)
say("job_failed", error=json.dumps(pace))
if not os.path.exists(sys.argv[1]):
    open(sys.argv[1], "w").close()
    os._exit(1)
until_closed()
"""


def test_each_learner_is_told_the_last_word_and_all_work_is_counted(parts):
    with running(parts, PACED, str(parts.folder / "second")) as supervisor:
        wait_for(lambda: supervisor.worked == (0.5, 3), "its work")
        supervisor.pace(Pace(0.5, None))
        supervisor.pace(Pace(0.5, None))  # said once
        wait_for(lambda: restarts(parts) == 1, "its end")
        wait_for(lambda: len(failures(parts)) == 2, "the next one")
        assert [json.loads(text) for text in failures(parts)] == [
            {"type": "pace", "duty": 0.5, "paused": None}
        ] * 2
        assert supervisor.worked == (1.0, 6)
