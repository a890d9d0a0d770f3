"""With `when_full = "refuse"` what is stored stays, and what has no room is refused."""

from __future__ import annotations

import os
from contextlib import closing

import pytest

from daemon.errors import StoreUnavailableError
from daemon.store import Limits
from tests.daemon_fixtures import added, open_store, query, sample
from tests.running import wait_for
from tests.torture.filesystems import fill


def until_refused(store) -> int:
    """Samples until none is taken; how many were acknowledged."""
    for number in range(2000):
        try:
            added(store, *[sample(features=os.urandom(2000)) for _ in range(20)])
        except StoreUnavailableError:
            return 20 * number
    raise AssertionError("no sample was refused")


def test_the_quota_refuses_and_removes_nothing(tmp_path):
    limits = Limits(max_bytes=2 << 20, when_full="refuse")
    with closing(open_store(tmp_path, limits=limits)) as store:
        kept = until_refused(store)
        with pytest.raises(StoreUnavailableError) as caught:
            store.add([sample()])
        assert caught.value.body()["cause"] == "quota"
        assert store.removed.summary is None
        assert query(tmp_path, "SELECT count(*) FROM samples") == [(kept,)]
        assert kept > 500


@pytest.mark.parametrize("disk", [("tmpfs", 40)], indirect=True)
def test_a_full_disk_refuses_and_removes_nothing(disk):
    limits = Limits(when_full="refuse")
    with closing(open_store(disk.point, limits=limits)) as store:
        filler = fill(disk.point)
        os.truncate(filler, filler.stat().st_size - (1 << 20))
        kept = until_refused(store)
        wait_for(lambda: store.unavailable is None and store.refuses, "the ballast's room")
        assert store.refuses.cause == "full"
        store.record("note", 1, {}).result(20)
        assert store.removed.summary is None
        filler.unlink()
        store._database._tended = 0.0  # as if ten seconds had passed
        wait_for(lambda: store.refuses is None, "ingest to come back")
        added(store, sample())
    assert query(disk.point, "SELECT count(*) FROM samples") == [(kept + 1,)]
