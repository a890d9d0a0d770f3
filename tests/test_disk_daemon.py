"""A whole daemon on a disk that fails: predictions go on, ingest says why not and comes back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from daemon.config import load_settings
from daemon.store.ballast import BALLAST_NAME
from daemon.store.schema import DATABASE_NAME
from daemon.wiring.server import build_service
from tests.daemon_fixtures import added, sample
from tests.running import RunningDaemon, wait_for
from tests.torture.filesystems import fill

pytestmark = pytest.mark.parametrize("disk", [("tmpfs", 24)], indirect=True)
X = [0.5, 1.0, -2.0, 3.25]


def posted(daemon, number: int):
    return daemon.client.post("/samples", json={"x": [*X[:3], number], "label": number % 2})


def predicts(daemon) -> bool:
    return daemon.client.post("/predict", json={"x": X}).status_code == 200


def shown(daemon) -> str:
    command = [sys.executable, "-m", "daemon", "status", "--url", str(daemon.client.base_url)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def assert_refused(answer, cause: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    assert answer.json()["cause"] == cause
    assert int(answer.headers["Retry-After"]) >= 1


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """The store directory of a daemon that has taken samples, to be copied onto disks that fail."""
    daemon = RunningDaemon(tmp_path_factory.mktemp("used"), 4)
    service = build_service(load_settings(daemon.config), [sys.executable, "-c", ""])
    features = np.array(X, dtype=np.float32).tobytes()
    added(service.store, *[sample(features=features, dtype="float32", label=i) for i in (0, 1, 0)])
    service.jobs.start("samples", 0)
    service.jobs.fail("for the record")
    service.store.close()
    return daemon.store


@pytest.fixture
def on_disk(tmp_path, used, disk):
    """A daemon, not yet started, whose store is on a small disk."""
    daemon = RunningDaemon(tmp_path, 4)
    daemon.store = disk.point / "var"
    text = daemon.config.read_text()
    old = json.dumps(str(tmp_path / "var"))
    daemon.config.write_text(text.replace(old, json.dumps(str(daemon.store))))
    shutil.copytree(used, daemon.store)
    (daemon.store / BALLAST_NAME).unlink()
    return daemon


def ingest_back(daemon, number: int) -> None:
    wait_for(lambda: posted(daemon, number).status_code == 201, "ingest to come back")


def test_a_start_on_a_read_only_disk_serves_predictions(on_disk, disk):
    disk.remount("ro")
    with on_disk as daemon:
        assert predicts(daemon)
        assert_refused(posted(daemon, 4), "read_only")
        ready = daemon.client.get("/health/ready")
        assert (ready.status_code, ready.json()["ready"]) == (503, False)
        assert ready.json()["predict"] == {"ok": True, "why": None}
        assert ready.json()["ingest"]["ok"] is False
        assert "read-only" in ready.json()["ingest"]["why"]
        assert "read-only" in ready.json()["learning_paused"]
        assert daemon.client.get("/models").status_code == 200
        # The log is empty: what is stored can be listed, and saved.
        listed = daemon.client.get("/samples?features=true").json()["samples"]
        assert [(entry["label"], entry["x"]) for entry in listed] == [(0, X), (1, X), (0, X)]
        assert daemon.client.get("/samples/counts").json()["samples"] == 3
        assert daemon.metric("ffedge_samples_stored") is None
        assert daemon.metric("ffedge_samples_unlabelled") is None
        assert ready.json()["ingest"]["cause"] == "read_only"
        assert "unknown: the store is unavailable (read_only)" in shown(daemon)
        assert daemon.metric("ffedge_store_available") == 0
        disk.remount("rw")
        ingest_back(daemon, 4)
        assert daemon.metric("ffedge_store_available") == 1
        assert daemon.metric("ffedge_samples_stored") == 4
        wait_for(daemon.learner_pid, "the learner, which waited")
        jobs = wait_for(lambda: daemon.client.get("/train").json()["jobs"], "the earlier job")
        assert [job["error"] for job in jobs] == ["for the record"]
        ready = daemon.client.get("/health/ready").json()
        assert ready["ready"] is True
        assert ready["ingest"] == {"ok": True, "why": None, "cause": None}


def test_what_cannot_be_read_on_a_read_only_disk_says_why(on_disk, disk):
    """With something in the log SQLite has to write to read."""
    with on_disk as daemon:
        assert posted(daemon, 4).status_code == 201
        daemon.kill_group()
    log = daemon.store / f"{DATABASE_NAME}-wal"
    assert log.stat().st_size > 0
    (daemon.store / f"{DATABASE_NAME}-shm").unlink()
    disk.remount("ro")
    with on_disk as daemon:
        for path in ("/samples", "/samples/counts") * 3:
            answer = daemon.client.get(path)
            assert_refused(answer, "read_only")
            assert "read-only" in answer.json()["error"]
        assert daemon.client.get("/models").status_code == 200
        text = daemon.log.read_text()
        assert "database cannot be read" not in text
        assert "records cannot be read" not in text


def test_a_start_on_a_full_disk_serves_predictions(on_disk):
    fill(on_disk.store)
    with on_disk as daemon:
        assert predicts(daemon)
        assert_refused(posted(daemon, 4), "full")
        assert predicts(daemon)
        (daemon.store / "filler").unlink()
        ingest_back(daemon, 5)
        assert daemon.metric("ffedge_samples_stored") == 4
