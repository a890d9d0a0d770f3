"""An operator's pause: durable, ended by word or time, whatever happens to disk and clock."""

from __future__ import annotations

import os

import pytest

from daemon.governor.operator_pause import FILE_NAME, OperatorPause


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def opened(folder, clock, boot="this") -> OperatorPause:
    return OperatorPause(folder, clock, boot)


def test_it_outlives_the_daemon_until_it_is_ended(tmp_path, clock):
    first = opened(tmp_path, clock)
    assert first.current() is None
    assert first.begin("maintenance", None)
    clock.now = 5.0  # after a boot
    again = opened(tmp_path, clock, "another")
    assert again.current().reason == "maintenance"
    assert again.left_seconds(again.current()) is None
    assert again.end()
    assert again.end()  # harmless
    assert opened(tmp_path, clock).current() is None


def test_its_time_runs_while_the_daemon_is_down(tmp_path, clock):
    opened(tmp_path, clock).begin("lunch", 60.0)
    clock.now += 45
    again = opened(tmp_path, clock)
    assert again.left_seconds(again.current()) == 15
    clock.now += 15
    assert again.current() is None
    assert not (tmp_path / FILE_NAME).exists()


def test_after_a_boot_it_lasts_its_whole_length_once_more(tmp_path, clock):
    opened(tmp_path, clock).begin("lunch", 60.0)
    clock.now = 3.0
    again = opened(tmp_path, clock, "another")
    clock.now += 59
    assert again.current() is not None
    clock.now += 1
    assert again.current() is None


def test_a_later_pause_takes_the_place_of_an_earlier_one(tmp_path, clock):
    pause = opened(tmp_path, clock)
    pause.begin("a", None)
    pause.begin("b", 5.0)
    assert opened(tmp_path, clock).current().reason == "b"


def test_a_disk_that_does_not_take_it_is_told_and_it_holds(tmp_path, clock):
    pause = opened(tmp_path / "gone", clock)
    assert not pause.begin("maintenance", None)
    assert pause.current().reason == "maintenance"


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b'{"reason": 1}'])
def test_one_that_cannot_be_read_holds(tmp_path, clock, content):
    (tmp_path / FILE_NAME).write_bytes(content)
    pause = opened(tmp_path, clock)
    assert "cannot be read" in pause.current().reason
    assert pause.end()
    assert opened(tmp_path, clock).current() is None


def test_the_kernel_names_the_boot(tmp_path):
    """With the real clock: what one process wrote, the next one goes on with."""
    OperatorPause(tmp_path).begin("lunch", 60.0)
    again = OperatorPause(tmp_path)
    if os.path.exists("/proc/sys/kernel/random/boot_id"):
        assert again.left_seconds(again.current()) < 60
