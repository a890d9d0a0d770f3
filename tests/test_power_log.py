"""The power log: bounded whatever comes, coarser with age, and harmless when its file is not."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon import power_log as module
from daemon.power_log import DATABASE_NAME, KEPT, MOST_ROWS, PowerLog
from tests.power_fixtures import reading
from tests.running import wait_for

START = 1_800_000_000  # a whole hour


class Clock:
    """What the log takes for the time of day."""

    def __init__(self) -> None:
        self.seconds = float(START)

    def time(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@contextmanager
def running(folder: Path, write_seconds: float = 0.01):
    power_log = PowerLog(folder, write_seconds=write_seconds)
    power_log.start()
    try:
        yield power_log
    finally:
        power_log.stop()


def rows(folder: Path, table: str, columns: str = "*") -> list[tuple]:
    with closing(sqlite3.connect(folder / DATABASE_NAME)) as connection:
        return connection.execute(f"SELECT {columns} FROM {table} ORDER BY rowid").fetchall()  # noqa: S608


def counts(folder: Path) -> dict[str, int]:
    return {table: len(rows(folder, table)) for table in KEPT}


def hours(folder: Path) -> int | None:
    """Rows there, None before the table is made."""
    with contextlib.suppress(sqlite3.OperationalError):
        return len(rows(folder, "hours"))
    return None


def keep(folder: Path, clock: Clock, at: list[float], watts=itertools.repeat(5.0)) -> None:  # noqa: B008
    """Write readings of those moments in one go."""
    with running(folder, write_seconds=60) as power_log:
        for seconds, value in zip(at, watts, strict=False):
            clock.seconds = START + seconds
            power_log.add(reading(watts=value, celsius={"cpu": value, "gpu": 1.0}))


def test_a_reading_is_a_row_with_what_it_says(tmp_path, clock):
    with running(tmp_path, write_seconds=60) as power_log:
        power_log.add(reading(watts=7.5, celsius={"cpu": 47.0, "tj": 48.5}, ram_used_bytes=123))
        power_log.add(reading(watts=0.0, celsius={}))
    assert rows(tmp_path, "readings") == [
        (START, 1, 7.5, 7.5, 48.5, 123),
        (START, 1, 0.0, 0.0, None, None),
    ]


def test_minutes_and_hours_are_means_with_their_greatest(tmp_path, clock):
    keep(tmp_path, clock, [0, 30, 59, 60, 119, 3600], [3.0, 4.0, 8.0, 10.0, 20.0, 6.0])
    wanted = [(START, 3, 5.0, 8.0, 8.0), (START + 60, 2, 15.0, 20.0, 20.0)]
    last = (START + 3600, 1, 6.0, 6.0, 6.0)
    columns = "at, readings, watts, watts_max, celsius_max"
    assert rows(tmp_path, "minutes", columns) == [*wanted, last]
    assert rows(tmp_path, "hours", columns) == [(START, 5, 9.0, 20.0, 20.0), last]


def test_a_mean_goes_on_after_a_restart(tmp_path, clock):
    keep(tmp_path, clock, [0, 10], [2.0, 4.0])
    keep(tmp_path, clock, [20, 70], [9.0, 1.0])
    columns = "at, readings, watts"
    assert rows(tmp_path, "minutes", columns) == [(START, 3, 5.0), (START + 60, 1, 1.0)]
    assert rows(tmp_path, "hours", columns) == [(START, 4, 4.0)]


SUMMARY = "at, readings, watts"


def test_a_clock_that_steps_back_leaves_the_means_of_later_times_alone(
    tmp_path, clock, monkeypatch
):
    """Their readings are gone when a row dated 1970 comes, as after a flat battery."""
    monkeypatch.setattr(module, "KEPT", {"readings": 30, "minutes": 50, "hours": 5})
    keep(tmp_path, clock, [float(second) for second in range(60)], [10.0] * 30 + [2.0] * 30)
    assert rows(tmp_path, "minutes", SUMMARY) == [(START, 60, 6.0)]
    keep(tmp_path, clock, [-START + 7.0], [4.0])
    for table in ("minutes", "hours"):
        assert rows(tmp_path, table, SUMMARY) == [(START, 60, 6.0), (0, 1, 4.0)]


def test_hours_whose_minutes_are_gone_stay(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(module, "KEPT", {"readings": 100, "minutes": 30, "hours": 5})
    keep(tmp_path, clock, [60.0 * minute for minute in range(60)], [10.0] * 30 + [2.0] * 30)
    keep(tmp_path, clock, [-3600.0], [4.0])
    assert rows(tmp_path, "hours", SUMMARY) == [(START, 60, 6.0), (START - 3600, 1, 4.0)]


def test_a_clock_that_steps_back_into_a_full_minute_does_not_replace_it(
    tmp_path, clock, monkeypatch
):
    monkeypatch.setattr(module, "KEPT", {"readings": 30, "minutes": 50, "hours": 5})
    keep(tmp_path, clock, [float(second) for second in range(60)], [10.0] * 30 + [2.0] * 30)
    keep(tmp_path, clock, [60.0 + second for second in range(60)], [6.0] * 60)
    keep(tmp_path, clock, [10.0, 11.0], [99.0] * 2)
    assert rows(tmp_path, "minutes", SUMMARY) == [(START, 60, 6.0), (START + 60, 60, 6.0)]
    assert rows(tmp_path, "hours", SUMMARY) == [(START, 120, 6.0)]


def test_the_newest_rows_stay_and_no_table_exceeds_its_bound(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(module, "KEPT", {"readings": 100, "minutes": 20, "hours": 5})
    for hour in range(10):
        keep(tmp_path, clock, [3600.0 * hour + 30 * i for i in range(120)])
        assert len(rows(tmp_path, "readings")) == 100
        assert len(rows(tmp_path, "minutes")) == 20
        assert len(rows(tmp_path, "hours")) == min(hour + 1, 5)
    assert rows(tmp_path, "readings", "max(at)") == [(START + 9 * 3600 + 119 * 30,)]
    assert rows(tmp_path, "minutes", "min(at)") == [(START + 9 * 3600 + 40 * 60,)]
    assert rows(tmp_path, "hours", "min(at)") == [(START + 5 * 3600,)]


@settings(max_examples=20)
@given(st.lists(st.lists(st.integers(-(10**9), 10**9), max_size=15), max_size=8))
def test_it_is_bounded_whatever_the_clock_does(tmp_path_factory, batches):
    """A board without a clock battery begins in 1970, and then jumps."""
    folder = tmp_path_factory.mktemp("log")
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "time", clock)
        patch.setattr(module, "KEPT", {"readings": 20, "minutes": 10, "hours": 5})
        for batch in batches:
            keep(folder, clock, batch)
            assert all(n <= module.KEPT[table] for table, n in counts(folder).items())
    newest = [START + at for batch in batches for at in batch][-20:]
    with contextlib.suppress(sqlite3.OperationalError):  # no table without a batch
        assert [at for (at,) in rows(folder, "readings", "at")] == newest


def test_the_stated_bound_is_an_hour_a_week_and_a_year():
    assert KEPT == {"readings": 3600, "minutes": 10_080, "hours": 8760}
    assert MOST_ROWS == 22_440


def test_a_full_log_stays_small(tmp_path, clock):
    """All tables full, each row as long as it gets: some megabytes, write-ahead log included."""
    with running(tmp_path, write_seconds=60):
        pass
    with closing(sqlite3.connect(tmp_path / DATABASE_NAME)) as connection, connection:
        for table, kept in KEPT.items():
            values = 3600, 12.345678, 23.45678, 65.4321, 2**40
            full = [(START - i * 3600, *values) for i in range(kept)]
            connection.executemany(f"INSERT INTO {table} VALUES (?, ?, ?, ?, ?, ?)", full)  # noqa: S608
    keep(tmp_path, clock, [float(second) for second in range(7200)])
    assert sum(counts(tmp_path).values()) <= MOST_ROWS
    assert len(rows(tmp_path, "readings")) == 3600
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 4 << 20


def test_readings_that_cannot_be_written_do_not_fill_the_memory(tmp_path):
    power_log = PowerLog(tmp_path)  # not started: a disk that hangs
    for _ in range(3 * KEPT["readings"]):
        power_log.add(reading())
    assert len(power_log._waiting) == 2 * KEPT["readings"]


def damaged(file: Path) -> None:
    file.write_bytes(b"not a database, and longer than a header" * 100)


def of_other_tables(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE readings (other INTEGER)")


def a_folder(file: Path) -> None:
    file.mkdir()


def cut_in_the_middle(file: Path) -> None:
    with running(file.parent, write_seconds=60) as power_log:
        for _ in range(2000):
            power_log.add(reading())
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("harm", [damaged, of_other_tables, a_folder, cut_in_the_middle])
def test_a_file_that_cannot_be_used_switches_it_off_with_one_warning(tmp_path, caplog, harm):
    file = tmp_path / DATABASE_NAME
    harm(file)
    caplog.clear()
    with running(tmp_path) as power_log:
        wait_for(lambda: not power_log.up, "the log to go off")
        for _ in range(10):
            power_log.add(reading())
    (warning,) = [r for r in caplog.records if r.levelname != "DEBUG"]
    assert warning.levelname == "WARNING"
    assert warning.message.startswith("power log is off: make the file writable, or move it away")
    assert warning.file == str(file)


def test_a_file_that_breaks_later_switches_it_off(tmp_path, caplog):
    with running(tmp_path) as power_log:
        power_log.add(reading())
        wait_for(lambda: hours(tmp_path) == 1, "a row")
        with closing(sqlite3.connect(tmp_path / DATABASE_NAME)) as connection, connection:
            connection.execute("DROP TABLE hours")
        power_log.add(reading())
        wait_for(lambda: not power_log.up, "the log to go off")
        power_log.add(reading())  # and this costs nothing
    assert [r.levelname for r in caplog.records] == ["WARNING"]


def test_a_locked_file_is_waited_for_by_the_log_alone(tmp_path):
    """Whoever looks at the file, `add` returns; what waited is written when the lock is gone."""
    keep_open = sqlite3.connect(tmp_path / DATABASE_NAME, isolation_level=None)
    with closing(keep_open), running(tmp_path) as power_log:
        wait_for(lambda: hours(tmp_path) == 0, "the tables")
        keep_open.execute("BEGIN IMMEDIATE")
        for _ in range(5):
            power_log.add(reading())
        keep_open.execute("ROLLBACK")
        wait_for(lambda: len(rows(tmp_path, "readings")) == 5, "the rows")
        assert power_log.up
