"""`ffedge import` and `export` with a real daemon: interrupted, killed, and killed under it."""

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
from daemon.errors import DataError, TransferError
from daemon.transfer import exporting
from daemon.transfer.batches import Batches, Place
from daemon.transfer.exporting import run_export
from daemon.transfer.importing import run_import
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
            patience_seconds=60,
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
        # Without telling them apart: that takes so long that an import may end meanwhile.
        return query(daemon.store, "SELECT count(*) FROM samples WHERE source = 'rows.npz'")[0][0]

    def wait_for_more() -> None:
        before = count() + 256  # a request of the run before may still be on its way
        wait_for(lambda: count() > before, "more samples")

    with started(*command) as killed:
        wait_for_more()
        killed.kill()
    with started(*command) as interrupted:
        wait_for_more()
        interrupted.send_signal(signal.SIGINT)
        out, err = interrupted.communicate(timeout=60)
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


def test_how_the_data_set_is_understood_is_said(tmp_path, daemon, imported):
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / os.fsdecode(b"pictures \xff")
    for name in "01":
        (folder / name).mkdir(parents=True)
        image.new("L", (4, 4), 7).save(folder / name / "1.png")
    code, told, err = imported(folder)
    assert (code, told["stored"]) == (0, 2)
    assert told["notes"] == ["2 classes found: 0, 1"]
    assert "2 classes found: 0, 1" in err
    assert stored(daemon, "pictures \\xff") == (2, 1)


def test_rows_that_are_refused_are_named_and_the_others_stored(tmp_path, imported):
    path = tmp_path / "rows.csv"
    good = ",".join(map(str, range(FEATURES)))
    lines = [f"{good},{label}" for label in range(12)]  # there are places for 10
    path.write_text("\n".join([*lines[:2], "1,2,3", *lines[2:]]) + "\n")
    code, told, err = imported(path)
    assert (code, told["stored"], told["refused"]) == (1, 10, 3)
    assert "refused: line 3: has 3 columns, the first line 17" in err
    assert "refused: line 12 and 1 more: this label would be class 11" in err
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


@pytest.fixture
def exported(daemon, capsys):
    """Runs an export in this process: what `--json` says."""

    def run(path: Path, *, label: str | None = None, source: str | None = None, after: int = 0):
        assert run_export(path, url(daemon), label, source, after, as_json=True) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


def entries(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("ending", ["ndjson", "csv", "npz"])
def test_what_is_exported_and_imported_again_is_the_same(tmp_path, imported, exported, ending):
    mixed = np.random.default_rng(0).standard_normal((700, FEATURES)).astype(np.float32)
    mixed[::3] = np.arange(FEATURES)  # these are kept as bytes
    lines = [{"x": row.tolist(), "label": [7, "8", None][n % 3]} for n, row in enumerate(mixed)]
    path = tmp_path / "first.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, told, err = imported(path, f"first {ending}")
    assert (code, told["unlabelled"]) == (0, 233)
    assert "233 rows have no label" in err
    told = exported(tmp_path / f"out.{ending}", source=f"first {ending}")
    assert told["samples"] == 700
    out = tmp_path / f"out.{ending}"
    if ending == "ndjson":  # where it came from is in it, and would stay
        changed = [entry | {"source": "second ndjson", "id": None} for entry in entries(out)]
        out.write_text("".join(json.dumps(entry) + "\n" for entry in changed))
    assert imported(out, f"second {ending}")[1]["stored"] == 700
    both = []
    for run in ("first", "second"):
        exported(tmp_path / "check.ndjson", source=f"{run} {ending}")
        both.append([(e["x"], e["label"], e["dtype"]) for e in entries(tmp_path / "check.ndjson")])
    assert both[0] == both[1]
    assert [x for x, *_ in both[0]] == mixed.tolist()


def test_a_sample_that_is_labelled_meanwhile_is_exported_once(
    tmp_path, daemon, exported, monkeypatch
):
    lines = [{"x": [n] * FEATURES, "label": 1, "id": f"moved-{n}"} for n in range(6)]
    body = {"samples": lines, "source": "moved"}
    assert daemon.client.post("/samples", json=body).status_code == 201
    monkeypatch.setattr(exporting, "_PAGE_SAMPLES", 2)
    page, pages = exporting._page, []

    def relabelled_after_the_first(client, query, after_seq):
        pages.append(page(client, query, after_seq))
        if len(pages) == 1:
            for name in ("moved-0", "moved-5"):  # one was read, one was not
                answer = daemon.client.post(
                    f"/samples/{name}/label", json={"label": 2, "replace": True}
                )
                assert answer.status_code == 200
        return pages[-1]

    monkeypatch.setattr(exporting, "_page", relabelled_after_the_first)
    out = tmp_path / "out.ndjson"
    told = exported(out, source="moved")
    assert [(one["id"], one["label"]) for one in entries(out)] == [
        (f"moved-{n}", 1) for n in range(5)
    ]
    assert told["samples"] == 5
    exported(out, source="moved", after=told["last_seq"])
    assert [(one["id"], one["label"]) for one in entries(out)] == [("moved-0", 2), ("moved-5", 2)]


def test_export_takes_only_what_is_asked_for(tmp_path, daemon, imported, exported):
    imported(numbered(tmp_path / "some.npz", 40), "some")
    out = tmp_path / "out.ndjson"
    told = exported(out, source="some", label="3")
    found = entries(out)
    assert [entry["label"] for entry in found] == [3] * 10
    assert {entry["source"] for entry in found} == {"some"}
    assert found[0]["id"].startswith("import-3-")
    assert told["last_seq"] == found[-1]["seq"]
    assert exported(out, source="some", after=found[4]["seq"], label="3")["samples"] == 5
    assert [entry["id"] for entry in entries(out)] == [entry["id"] for entry in found[5:]]
    before = out.read_bytes()
    for source, after in (("none such", 0), ("some", found[-1]["seq"])):
        with pytest.raises(TransferError, match="found no sample to export"):
            exported(out, source=source, after=after)
    assert out.read_bytes() == before


def test_what_is_exported_comes_back_as_what_is_already_there(tmp_path, imported, exported):
    imported(numbered(tmp_path / "own.npz", 40), "own")
    exported(tmp_path / "own.ndjson", source="own")
    assert imported(tmp_path / "own.ndjson")[1]["already"] == 40


def test_samples_that_the_daemon_named_itself_are_not_doubled(tmp_path, daemon, imported, exported):
    x = np.random.default_rng(1).standard_normal((600, FEATURES)).astype(np.float32)
    posted = [{"x": row.tolist(), "label": 1, "source": "unnamed"} for row in x]
    for first in range(0, 600, 200):
        answer = daemon.client.post("/samples", json={"samples": posted[first : first + 200]})
        assert answer.status_code == 201
    out = tmp_path / "own.ndjson"
    exported(out, source="unnamed")
    assert all(entry["id"].startswith("s-") for entry in entries(out))
    assert imported(out)[1]["already"] == 600
    changed = [
        entry | {"x": entry["x"][::-1]} if n == 7 else entry for n, entry in enumerate(entries(out))
    ]  # of another store, but for one
    out.write_text("".join(json.dumps(entry) + "\n" for entry in changed))
    for new in (1, 0):
        told = imported(out)[1]
        assert (told["stored"], told["already"]) == (new, 600 - new)
    assert stored(daemon, "unnamed") == (601, 601)


def test_an_export_that_fails_leaves_the_file_as_it_was(tmp_path, daemon, monkeypatch):
    out = tmp_path / "out.npz"
    out.write_bytes(b"before")
    with pytest.raises(TransferError, match="no daemon answers"):
        run_export(out, "http://127.0.0.1:9", None, None, 0, as_json=False)
    for name, message in {
        "out.xls": "found the ending '.xls'; wanted .ndjson",
        "absent/out.csv": "wanted a file in a folder that exists",
    }.items():
        with pytest.raises(TransferError, match=message):
            run_export(tmp_path / name, url(daemon), None, None, 0, as_json=False)
    with pytest.raises(TransferError, match="refuses to list its samples: parameter 'label'"):
        run_export(out, url(daemon), "x" * 65, None, 0, as_json=False)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("daemon.transfer.progress.TransferProgress.show", interrupt)
    assert run_export(out, url(daemon), None, None, 0, as_json=False) == 130
    assert [file.name for file in tmp_path.iterdir()] == ["out.npz"]
    assert out.read_bytes() == b"before"
