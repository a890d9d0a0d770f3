"""What a limit takes away is told: in the log, in numbers, and louder where it was not learned."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing

from prometheus_client import CollectorRegistry

from daemon.messages import Train
from daemon.status import read_status
from daemon.store import Limits, Scrub
from daemon.store import removals as removals_module
from daemon.store.removals import Removals, Removed
from daemon.store_metrics import StoreMetrics
from tests.daemon_fixtures import added, daemon_parts, open_store, running, sample
from tests.running import RunningDaemon, wait_for

REMOVED = "old samples are removed"
UNLEARNED = "not learned yet"


def lines(caplog, text: str) -> list:
    return [record for record in caplog.records if text in record.message]


def test_what_was_not_learned_is_told_by_itself(tmp_path, caplog):
    limits = Limits(max_samples=100)
    with closing(open_store(tmp_path, limits=limits, holdout_ratio=0.0)) as store:
        assert store.removed.summary is None
        store.learned(150)
        # Neither what only scores nor what has no label is ever learned.
        added(store, *[sample(i, None if i % 10 == 0 else "a") for i in range(500)])
        wait_for(lambda: store.counts.samples == 100, "the oldest to go")
        wait_for(lambda: store.removed.summary == Removed(400, "rows", 225), "all to be told")
        registry = CollectorRegistry()
        registry.register(StoreMetrics(store, Scrub(store.path, print, rows_per_second=0)))
        assert registry.get_sample_value("ffedge_store_removed_unlearned_rows_total") == 225
    (line,) = lines(caplog, REMOVED)
    assert (line.levelname, line.limit) == ("WARNING", "rows")
    (line,) = lines(caplog, UNLEARNED)
    assert (line.levelname, line.limit) == ("ERROR", "rows")


def test_it_is_told_once_a_minute(monkeypatch, caplog):
    now = [1000.0]
    monkeypatch.setattr(removals_module.time, "monotonic", lambda: now[0])
    removals = Removals()
    for second, limit, rows, unlearned in [
        (0, "bytes", 10, 0),
        (1, "bytes", 20, 0),
        (2, "bytes", 30, 3),  # what is worse is not held back by what was said before
        (3, "age", 1, 0),
        (59, "bytes", 40, 0),
        (60, "bytes", 50, 2),
        (62, "bytes", 0, 0),
        (63, "bytes", 60, 1),
    ]:
        now[0] = 1000.0 + second
        removals.note(limit, rows, unlearned)
    told = [(record.limit, record.rows, record.since_start) for record in lines(caplog, REMOVED)]
    assert told == [("bytes", 10, 10), ("age", 1, 1), ("bytes", 140, 150)]
    told = [(record.samples, record.since_start) for record in lines(caplog, UNLEARNED)]
    assert told == [(3, 3), (3, 6)]
    assert removals.summary == Removed(211, "bytes", 6)


def test_the_store_hears_how_far_the_learner_is(tmp_path):
    with daemon_parts(tmp_path) as parts:
        learned = parts.store._retention
        script = (
            'say("started", resumed=True, last_seq=40, steps=1)\nhear()\nprogress(70, 1)\nhear()'
        )
        with running(parts, script) as supervisor:
            wait_for(lambda: learned.learned_seq == 40, "the checkpoint")
            supervisor._send(Train(None))
            wait_for(lambda: learned.learned_seq == 70, "progress")


def test_what_went_is_seen_where_one_looks(tmp_path):
    environment = {"FFEDGE_STORE__MAX_SAMPLES": "64", "FFEDGE_LEARNER__MAX_WAIT_SECONDS": "1e6"}
    lines = "".join(f'{{"x": [{i % 250}, 1, 2, 3], "label": {i % 2}}}\n' for i in range(2000))
    with RunningDaemon(tmp_path, 4, environment=environment) as daemon:
        assert daemon.client.get("/health/ready").json()["removed"] is None
        headers = {"Content-Type": "application/x-ndjson"}
        assert daemon.client.post("/samples", content=lines, headers=headers).status_code == 201

        def removed():
            found = daemon.client.get("/health/ready").json()["removed"]
            return found if found and found["rows"] == 1936 else None

        found = wait_for(removed, "the oldest to go")
        assert found["limit"] == "rows"
        assert read_status(str(daemon.client.base_url))["removed"] == found
        command = [sys.executable, "-m", "daemon", "status"]
        command += ["--url", str(daemon.client.base_url)]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "1,936 removed since the start, limit rows" in shown
