"""Power readers that end, hang, lie or are of another version: readings are absent, then back."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import time
from contextlib import contextmanager

import pytest

from daemon import power as module
from daemon.power import PowerMonitor
from daemon.power_log import PowerLog
from daemon.power_provider import PROTOCOL
from daemon.power_reader import PROVIDERS, opening_seconds
from tests.daemon_fixtures import alive
from tests.running import wait_for as wait_for_long

wait_for = functools.partial(wait_for_long, seconds=20)

PRELUDE = f"PROTOCOL = {PROTOCOL}"
PRELUDE += """
import json, os, sys, time
starts = len(open(sys.argv[1]).readlines())
def line(**fields):
    plain = {"protocol": PROTOCOL, "monotonic_seconds": time.monotonic(), "provider": "jtop",
             "interval_seconds": 0.1, "refused": {}, "watts": 7.0, "rails": {"VDD_SOC": 2.0}}
    return json.dumps(plain | fields)
def write(text):
    sys.stdout.write(text + "\\n"); sys.stdout.flush()
def well(seconds=600, **fields):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        write(line(**fields)); time.sleep(0.05)
"""


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(module, "_FIRST_BACKOFF_SECONDS", 0.05)
    monkeypatch.setattr(module, "_LAST_BACKOFF_SECONDS", 0.2)
    monkeypatch.setattr(module, "_WITHIN_SECONDS", 0.3)
    monkeypatch.setattr(module, "_LAST_BACKOFF_UNHEARD_SECONDS", 0.4)
    monkeypatch.setattr(module, "_REPEAT_SECONDS", 0.0)
    monkeypatch.setattr(module, "_START_SECONDS", 2.0)


@contextmanager
def running(folder, script: str, interval_seconds: float = 0.1):
    """A monitor over a fake reader that knows which start it is, the first being 1."""
    starts = folder / "starts"
    note = f"open({str(starts)!r}, 'a').write('started\\n')\n"
    command = [sys.executable, "-I", "-S", "-c", note + PRELUDE + script, str(starts)]
    monitor = PowerMonitor(command, interval_seconds, PowerLog(folder))
    monitor.start()
    try:
        yield monitor
    finally:
        monitor.stop()


def test_readings_are_there_while_the_reader_is_well(tmp_path):
    with running(tmp_path, "well()") as monitor:
        assert not monitor.up
        assert (monitor.reading, monitor.energy().board) == (None, None)
        wait_for(lambda: monitor.up, "a reading")
        assert monitor.reading.watts == 7.0
        wait_for(lambda: (monitor.energy().board or 0) > 1, "a joule")
        found = {"up": True, "provider": "jtop", "refused": {}, "reader": None}
        assert monitor.sources() == found
        assert monitor.energy().rails["VDD_SOC"] > 0
        assert monitor.restarts == 0
        pid = monitor.pid
        assert alive(pid)
    assert not alive(pid)
    assert monitor.pid is None


def test_a_reading_without_power_is_not_up(tmp_path):
    with running(tmp_path, 'well(watts=None, provider="none")') as monitor:
        wait_for(lambda: monitor.reading, "a reading")
        assert not monitor.up
        assert monitor.energy().board is None


ILL = {
    "ends": "sys.exit(3)",
    "hangs": "time.sleep(600)",
    "is stopped": "import signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "talks nonsense": "[write('Traceback: no reading') for _ in range(99)]; time.sleep(600)",
    "is of another version": "well(protocol=PROTOCOL + 1)",
    "takes less than nothing": "well(watts=-1.0)",
}
MORE_ILL = {
    "is killed": "os.kill(os.getpid(), 9)",
    "closes its output": "os.close(1); time.sleep(600)",
    "writes bytes": "sys.stdout.buffer.write(os.urandom(99) + b'\\n' * 9); sys.stdout.flush()",
    "writes a line without end": "sys.stdout.write('x' * (1 << 20)); time.sleep(600)",
    "is from the future": "well(monotonic_seconds=time.monotonic() + 3600)",
    "is of the past": "well(monotonic_seconds=1.0)",
    "takes a megawatt": "well(watts=1e6)",
    "takes what is no number": "well(watts=float('nan'))",
    "does not say what it takes in": "well(watts='7')",
}


@pytest.mark.parametrize(
    "illness", [*ILL, *(pytest.param(more, marks=pytest.mark.every_failure) for more in MORE_ILL)]
)
def test_while_readers_are_ill_power_is_unknown_and_then_it_is_back(tmp_path, illness):
    """The first is well for a while, those after it ill, until what ails them is gone."""
    ails, fallen_ill = tmp_path / "ails", tmp_path / "fallen_ill"
    ails.touch()
    script = f"""
if starts == 1: well(0.3)
elif os.path.exists({str(ails)!r}):
    open({str(fallen_ill)!r}, "w").close()
    {(ILL | MORE_ILL)[illness]}
else: well()
"""
    with running(tmp_path, script) as monitor:
        wait_for(lambda: monitor.up, "a reading")
        wait_for(fallen_ill.exists, "an ill reader")
        wait_for(lambda: not monitor.up, "power to be unknown")
        ails.unlink()
        wait_for(lambda: monitor.up, "a reader that is well")
        assert monitor.reading.watts == 7.0
        assert monitor.restarts >= 2
        assert 0 <= monitor.energy().board < 7 * 20, "lies are not counted"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ("watts=-1.0", "value"),
        ("protocol=PROTOCOL + 1", "version"),
        ("monotonic_seconds=1e9", "time"),
        ("watts=float('inf')", "json"),
    ],
)
def test_refused_lines_are_counted_by_reason_and_one_now_and_then_is_borne(
    tmp_path, caplog, fields, reason
):
    script = f"""
for _ in range(5):
    write(line()); time.sleep(0.05)
    write(line({fields})); time.sleep(0.05)
well()
"""
    with running(tmp_path, script) as monitor:
        wait_for(lambda: monitor.refused[reason] == 5, "five refusals")
        assert sum(monitor.refused.values()) == 5
        wait_for(lambda: monitor.up, "a reading")
        assert monitor.restarts == 0
    assert "power reading refused" in caplog.messages


def ends(caplog) -> list:
    return [record for record in caplog.records if record.message == "power reader ended"]


def test_a_reader_that_always_ends_is_started_ever_later(tmp_path, caplog):
    with running(tmp_path, "if starts == 1: well(0.2)\nsys.exit(3)") as monitor:
        wait_for(lambda: monitor.restarts >= 5, "five restarts")
    ended = ends(caplog)[:5]
    assert [record.restart_seconds for record in ended] == [0.05, 0.1, 0.2, 0.2, 0.2]
    assert ended[0].why == "exit code 3"


def test_a_reader_that_has_never_given_a_line_is_waited_with_for_longer(tmp_path, caplog):
    with running(tmp_path, "sys.exit(3)") as monitor:
        wait_for(lambda: monitor.restarts >= 5, "five restarts")
    ended = ends(caplog)[:5]
    assert [record.restart_seconds for record in ended] == [0.05, 0.1, 0.2, 0.4, 0.4]
    by = f"without a reading; it is run by {sys.executable} (power.reader_python)"
    assert {record.why for record in ended} == {f"exit code 3, {by}"}


def test_why_a_reader_ends_is_logged_once_until_it_is_another_reason(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(module, "_REPEAT_SECONDS", 60.0)
    with running(tmp_path, "sys.exit(3 if starts < 4 else 4)") as monitor:
        wait_for(lambda: monitor.restarts >= 5, "five restarts")
    codes = [record.why.partition(",")[0] for record in ends(caplog)]
    assert codes == ["exit code 3", "exit code 4"]


@pytest.mark.parametrize("interval_seconds", [0.1, 1.0, 10.0, 30.0, 60.0])
def test_a_first_line_is_waited_for_until_all_sources_have_hung_and_one_is_read(
    tmp_path, monkeypatch, interval_seconds
):
    monkeypatch.undo()
    monitor = PowerMonitor(["reader"], interval_seconds, PowerLog(tmp_path))
    slowest = len(PROVIDERS) * opening_seconds(interval_seconds) + 4 * interval_seconds
    assert monitor._patience_seconds(0) >= slowest + 5, "and an interpreter's start"


def test_a_first_line_may_take_longer_where_the_interval_is_longer(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_START_SECONDS", 1.0)
    with running(tmp_path, "time.sleep(3); well()", interval_seconds=1.0) as monitor:
        wait_for(lambda: monitor.up, "a reading")
        assert monitor.restarts == 0


def test_a_reader_that_was_well_is_started_again_soon(tmp_path, caplog):
    with running(tmp_path, "well(0.2)") as monitor:
        wait_for(lambda: monitor.restarts >= 3, "three restarts")
    assert {record.restart_seconds for record in ends(caplog)} == {0.05}


def test_a_command_that_cannot_be_started_is_tried_again(tmp_path):
    program = tmp_path / "reader"
    monitor = PowerMonitor([str(program)], 0.1, PowerLog(tmp_path))
    monitor.start()
    try:
        wait_for(lambda: monitor.restarts >= 2, "failed starts")
        assert monitor.sources()["reader"].startswith("cannot be started: [Errno 2]")
        assert f"run by {program} (power.reader_python)" in monitor.sources()["reader"]
        script = json.dumps(PRELUDE.replace("starts =", "#") + "well()")
        program.write_text(f"#!{sys.executable} -IS\nexec({script})\n")
        program.chmod(0o700)
        wait_for(lambda: monitor.up, "a reading")
        assert monitor.sources()["reader"] is None
    finally:
        monitor.stop()


def test_a_reader_that_floods_is_slowed_down(tmp_path):
    """The server hears 50 lines a second; then the pipe is full, and the reader waits for it."""
    script = """
n = 0
while True:
    write(line()); n += 1
    if n % 50 == 0: open(sys.argv[1] + ".n", "w").write(str(n))
"""
    with running(tmp_path, script) as monitor:
        begun = time.monotonic()
        wait_for(lambda: monitor.up, "a reading")
        wait_for(lambda: time.monotonic() > begun + 2, "two seconds of flood")
        written = int((tmp_path / "starts.n").read_text() or 0)
        in_pipe_and_buffer = 2 * 65536 / 150
        assert written < in_pipe_and_buffer + 50 * (time.monotonic() - begun)
        assert monitor.restarts == 0


def test_a_source_slower_than_asked_is_waited_for_within_reason(tmp_path):
    script = """
while True:
    write(line(interval_seconds=0.9)); time.sleep(0.9)
"""
    with running(tmp_path, script) as monitor:
        wait_for(lambda: (monitor.energy().board or 0) > 7, "a joule and more")
        assert (monitor.restarts, monitor.energy().gap_seconds) == (0, 0)
        assert monitor.up


def test_a_source_that_claims_to_be_very_slow_is_not_believed(tmp_path):
    script = "write(line(interval_seconds=500)); time.sleep(600)"
    with running(tmp_path, script) as monitor:
        wait_for(lambda: monitor.up, "a reading")
        wait_for(lambda: not monitor.up, "power to be unknown")
        wait_for(lambda: monitor.restarts == 1, "the restart")


def test_learning_is_given_what_the_board_takes_meanwhile(tmp_path):
    with running(tmp_path, "well()") as monitor:
        wait_for(lambda: monitor.up, "a reading")
        begun = time.monotonic()
        monitor.learning_began()
        wait_for(lambda: (monitor.energy().learning or 0) > 2, "two joules of learning")
        monitor.learning_ended(100, accepted=True)
        took = 7 * (time.monotonic() - begun)
        before = monitor.energy().board
        wait_for(lambda: monitor.energy().board > before + 2, "idling")
        energy = monitor.energy()
        assert 2 < energy.learning <= took
        assert energy.per_sample == pytest.approx(energy.learning / 100, rel=0.02)
        assert energy.per_version == pytest.approx(energy.learning, rel=0.02)


def test_a_mean_is_counted_for_the_time_before_it(tmp_path):
    """10 W that end with the first of two readings: none of them is between the two."""
    script = """
write(line(mean=True, watts=10.0)); time.sleep(0.1)
write(line(mean=True, watts=0.0)); time.sleep(600)
"""
    with running(tmp_path, script) as monitor:
        wait_for(lambda: monitor.energy().board is not None, "two readings")
        assert monitor.energy().board == 0.0


def test_which_source_is_used_is_told_once_a_change(tmp_path, caplog):
    script = """
well(0.5, provider="ina3221", refused={"jtop": "no service"})
well()
"""
    caplog.set_level("INFO")
    with running(tmp_path, script) as monitor:
        wait_for(lambda: monitor.sources()["provider"] == "jtop", "the better source")
    told = [(r.provider, r.refused) for r in caplog.records if r.message == "power provider chosen"]
    assert told == [("ina3221", {"jtop": "no service"}), ("jtop", {})]


def test_stopping_waits_for_no_reader(tmp_path):
    script = "write(line()); import signal; os.kill(os.getpid(), signal.SIGSTOP)"
    with running(tmp_path, script) as monitor:
        wait_for(lambda: monitor.up, "a reading")
        pid = monitor.pid
    assert not alive(pid)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
