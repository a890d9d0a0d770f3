"""R7: damage at rest is found and told, and nothing damaged is learned from."""

from __future__ import annotations

import pytest

from tests.torture.damage import (
    REFUSALS,
    STARTS,
    damage_log,
    flip_anywhere,
    flip_rows,
    start_on,
)

pytestmark = pytest.mark.timeout(900)


def test_a_damaged_log_is_counted_and_told(zygote, tmp_path, size, seed, progress, record):
    damaged = damage_log(zygote, tmp_path, size("--damaged-logs"), seed, progress=progress)
    record(damaged)
    assert damaged.broken == []
    assert damaged.found == damaged.harmful > 0


def test_every_flip_in_a_row_is_found(zygote, tmp_path, size, seed, record):
    damaged = flip_rows(zygote, tmp_path, size("--flips"), seed)
    record(damaged)
    assert damaged.broken == []
    assert damaged.found == damaged.trials == size("--flips")


def test_a_flip_anywhere_alters_nothing(zygote, tmp_path, size, seed, progress, record):
    damaged = flip_anywhere(zygote, tmp_path, size("--damaged-logs"), seed, progress)
    record(damaged)
    assert damaged.broken == []
    assert damaged.trials == size("--damaged-logs")


@pytest.mark.parametrize("state", STARTS)
def test_it_starts_on(zygote, tmp_path, state):
    (tmp_path / "var").mkdir()
    STARTS[state](tmp_path / "var")
    assert start_on(zygote, tmp_path) == "starts"


@pytest.mark.parametrize("state", REFUSALS)
def test_it_ends_with_one_line_on(zygote, tmp_path, state):
    (tmp_path / "var").mkdir()
    REFUSALS[state](tmp_path / "var")
    line = start_on(zygote, tmp_path)
    assert line.startswith("ffedge: ")
    assert str(tmp_path) in line
