"""The scrub finds what is damaged on disk, and has it retired."""

from __future__ import annotations

from contextlib import closing, contextmanager

import pytest

from daemon.store import Scrub
from daemon.store.schema import DATABASE_NAME
from tests.daemon_fixtures import WAIT_SECONDS, added, open_store, query, sample
from tests.running import wait_for


@contextmanager
def scrubbed(folder):
    """A store whose rows have been passed over once."""
    with closing(open_store(folder)) as store:
        scrub = Scrub(
            store.path,
            lambda seqs: store.retire_damaged(seqs).result(WAIT_SECONDS),
            rows_per_second=100_000,
        )
        scrub.start()
        try:
            wait_for(lambda: scrub.report.passes > 0, "a whole pass")
            yield store, scrub.report
        finally:
            scrub.stop()


@pytest.fixture
def filled(tmp_path):
    with closing(open_store(tmp_path)) as store:
        added(
            store, *[sample(features=bytes([i % 251]) * 300, source="turned") for i in range(500)]
        )
    return tmp_path


def change(folder, old: bytes, new: bytes) -> None:
    path = folder / DATABASE_NAME
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def test_sound_rows_are_checked_and_left_alone(filled):
    with scrubbed(filled) as (store, report):
        assert (report.rows, report.damaged, report.unreadable) == (500, 0, 0)
        assert store.counts.samples == 500


@pytest.mark.parametrize(
    ("old", "new"),
    [(bytes([7]) * 300, bytes([7]) * 299 + b"\x06"), (b"uint8turned", b"uint8burned")],
    ids=["features", "a column that is in an index"],
)
def test_a_damaged_row_is_retired(filled, caplog, old, new):
    change(filled, old, new)
    with scrubbed(filled) as (store, report):
        assert (report.rows, report.damaged) == (500, 1)
        assert (store.counts.samples, store.counts.retired) == (499, {3: 1})
        assert store.unavailable is None
    assert "damaged rows" in caplog.text
    assert query(filled, "SELECT count(*) FROM samples WHERE retired = 3") == [(1,)]


def test_a_damaged_page_is_told_and_the_rows_beside_it_checked(filled, caplog):
    path = filled / DATABASE_NAME
    content = bytearray(path.read_bytes())
    page = content.index(bytes([100]) * 300) // 4096 * 4096
    content[page : page + 4096] = b"\xa5" * 4096
    path.write_bytes(content)
    with scrubbed(filled) as (store, report):
        assert 0 < report.unreadable < 50
        assert report.rows == 500 - report.unreadable
        assert added(store, sample())[0].seq == 501
    assert "damaged pages" in caplog.text
