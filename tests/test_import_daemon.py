"""`ffedge import` into a real daemon: interrupted, killed, and with the daemon killed under it."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from daemon.datasets import open_dataset
from daemon.errors import DataError
from daemon.transfer import run_import
from daemon.transfer.batches import Batches, Place
from daemon.transfer.journal import Journal, Mark, identity_of, journal_folder
from tests.daemon_fixtures import query
from tests.running import RunningDaemon, wait_for

FEATURES = 16
ROWS = 30_000


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])  # kept over a restart
    folder = tmp_path_factory.mktemp("daemon")
    environment = {"FFEDGE_SERVER__PORT": port}
    with RunningDaemon(folder, FEATURES, environment=environment) as running:
        yield running


def url(daemon: RunningDaemon) -> str:
    return str(daemon.client.base_url)


@contextmanager
def started(folder: Path, *arguments: object):
    command = [sys.executable, "-m", "daemon", "import", *map(str, arguments)]
    process = subprocess.Popen(
        command,
        env=os.environ | {"XDG_STATE_HOME": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def imported(tmp_path, daemon, monkeypatch, capsys):
    """Runs an import in this process: its exit code, what `--json` says, standard error."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def run(path: Path, source: str | None = None, *, strict: bool = False):
        code = run_import(
            path,
            url=url(daemon),
            source=source,
            label_column=None,
            strict=strict,
            as_json=True,
            patience_seconds=20,
        )
        out, err = capsys.readouterr()
        return code, json.loads(out.splitlines()[-1]), err

    return run


def numbered(path: Path, rows: int = ROWS) -> Path:
    """Rows that are all different."""
    x = np.zeros((rows, FEATURES), dtype=np.float32)
    x[:, 0], x[:, 1] = np.arange(rows), 0.5
    np.savez(path, x=x, y=np.arange(rows) % 4)
    return path


def stored(daemon: RunningDaemon, source: str) -> tuple[int, int]:
    """Samples of a source, and how many of them are different."""
    counts = "count(*), count(DISTINCT features)"
    text = f"SELECT {counts} FROM samples WHERE source = '{source}'"  # noqa: S608 - our own
    return query(daemon.store, text)[0]


def test_whatever_is_killed_every_row_is_stored_once(tmp_path, daemon):
    path = numbered(tmp_path / "rows.npz")
    command = (tmp_path / "state", path, "--url", url(daemon), "--json")

    def count() -> int:
        return stored(daemon, "rows.npz")[0]

    def wait_for_more() -> None:
        before = count() + 256  # a request of the run before may still be on its way
        wait_for(lambda: count() > before, "more samples")

    with started(*command) as killed:
        wait_for_more()
        killed.kill()
    with started(*command) as interrupted:
        wait_for_more()
        interrupted.send_signal(signal.SIGINT)
        out, err = interrupted.communicate(timeout=20)
    assert interrupted.returncode == 130, err
    assert "interrupted; run the same command again" in err
    assert 0 < json.loads(out.splitlines()[-1])["rows"] <= count() < ROWS
    with started(*command) as patient:
        wait_for_more()
        daemon.kill_group()
        assert count() < ROWS
        daemon.client.close()
        daemon.start()
        out, err = patient.communicate(timeout=60)
    assert patient.returncode == 0, err
    assert "going on at row " in err
    assert stored(daemon, "rows.npz") == (ROWS, ROWS)
    told = json.loads(out.splitlines()[-1])
    assert told["skipped"] > 0
    assert told["skipped"] + told["stored"] + told["already"] == told["rows"] == ROWS
    assert not list((tmp_path / "state").rglob("*.json"))


def test_what_is_there_is_not_stored_again(tmp_path, daemon, imported):
    path = numbered(tmp_path / "twice.npz", 600)
    for new in (600, 0):
        code, told, _ = imported(path)
        assert (code, told["stored"], told["already"]) == (0, new, 600 - new)
        assert stored(daemon, "twice.npz") == (600, 600)


@pytest.mark.parametrize("lost", [False, True])
def test_a_mark_is_believed_only_if_the_daemon_has_the_batch(tmp_path, daemon, imported, lost):
    path, source = numbered(tmp_path / "rows.npz", 600), f"lost {lost}"
    if not lost:
        imported(path, source)
    shape = (FEATURES,)
    dataset = open_dataset(path)
    second = list(Batches(dataset, lambda x: x, shape, source).after(Place()))[1]
    identity = identity_of(dataset, url(daemon), source, None, shape)
    journal = Journal(journal_folder(os.environ), identity)
    journal.write(Mark(second.start, second.stop, 0), now=True)
    code, told, err = imported(path, source)
    assert code == 0
    assert stored(daemon, source) == (600, 600)
    assert told["skipped"] == (0 if lost else 512)
    assert ("has lost what was sent" if lost else "going on at row 512") in err


def test_rows_that_are_refused_are_named_and_the_others_stored(tmp_path, imported):
    path = tmp_path / "rows.csv"
    good = ",".join(map(str, range(FEATURES)))
    lines = [f"{good},{label}" for label in range(12)]  # there are places for 10
    path.write_text("\n".join([*lines[:2], "1,2,3", *lines[2:]]) + "\n")
    code, told, err = imported(path)
    assert (code, told["stored"], told["refused"]) == (1, 10, 3)
    assert "refused: line 3: has 3 columns, the first line 17" in err
    assert "refused: line 12: this label would be class 11" in err
    assert "raise model.max_classes" in err
    code, told, err = imported(path, strict=True)
    assert (code, told["refused"]) == (1, 1)
    assert "stopped at the first refused row" in err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.csv", "absent.csv: found nothing; wanted"),
        ("wrong.csv", rf"found samples of shape \[2\], the model needs \[{FEATURES}\]"),
        (".", "found no images"),
    ],
)
def test_what_cannot_be_imported_sends_nothing(tmp_path, daemon, imported, name, message, capsys):
    (tmp_path / "wrong.csv").write_text("1,2,a\n")
    with pytest.raises(DataError, match=message):
        imported(tmp_path / name, "wrong")
    assert capsys.readouterr() == ("", "")
    assert stored(daemon, "wrong") == (0, 0)
