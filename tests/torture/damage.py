"""F4, F5 and F25: files that were damaged, cut or half made while nobody ran."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from daemon.store.schema import DATABASE_NAME
from tests.running import wait_for
from tests.torture.ledger import FEATURES, Entries, Ledger, audit, features_of, label_of
from tests.torture.load import sample_body
from tests.torture.processes import ForkedDaemon, Zygote

_ROWS = 60
# Columns of a row that lie before its features in the file, as bytes: dtype, source, check.
_BEFORE_FEATURES = 20


@dataclass
class Damaged:
    """What damage showed.

    Args:
        trials: Files, or rows, that were damaged.
        harmful: Of these, those by which something was lost or would have been altered.
        found: Of these, those that were detected.
    """

    trials: int = 0
    harmful: int = 0
    found: int = 0
    broken: list[str] = field(default_factory=list)


def written_store(
    zygote: Zygote, folder: Path, rows: int, end: str, bugs: Sequence[str] = ()
) -> tuple[Path, Entries]:
    """A store with `rows` samples: with end = exit in the log, with close in the database."""
    directory, ledger_path = folder / "written", folder / "written-ledger"
    order = {"directory": str(directory), "ledger": str(ledger_path), "first": 0, "count": rows}
    order |= {"end": end, "bugs": [*bugs]}
    log = folder / "store.log"
    process = zygote.fork("tests.torture.store_load:main", [json.dumps(order)], log)
    assert process.wait(60) == 0, log.read_text()
    with closing(Ledger(ledger_path)) as ledger:
        return directory, ledger.entries()


def damage_log(
    zygote: Zygote,
    folder: Path,
    trials: int,
    seed: int,
    bugs: Sequence[str] = (),
    progress: Callable[[str], None] = lambda text: None,
) -> Damaged:
    """Cut or flip the write-ahead log at rest: what is lost must be counted and told.

    A cut or flipped bit drops every transaction behind it without an error of SQLite's.
    """
    written, entries = written_store(zygote, folder, _ROWS, "exit", bugs)
    damaged, place = Damaged(), random.Random(seed)
    log_name = f"{DATABASE_NAME}-wal"
    image = (written / log_name).read_bytes()
    for trial in range(trials):
        home = folder / f"log-{trial}"
        home.mkdir()
        store = home / "var"
        shutil.copytree(written, store)
        changed = bytearray(image)
        if trial % 2:
            del changed[place.randrange(len(changed)) :]
        else:
            changed[place.randrange(32, len(changed))] ^= 1 << place.randrange(8)
        (store / log_name).write_bytes(changed)
        try:
            with ForkedDaemon(zygote, home, *bugs) as daemon:
                told = daemon.metric("ffedge_samples_lost") or 0
                ready = daemon.client.get("/health/ready").json()
                answer = daemon.client.post("/samples", json=sample_body(_ROWS, None))
                first_seq = answer.json().get("first_seq")
        except AssertionError as error:
            told, ready, first_seq = None, {}, None
            damaged.broken.append(f"no start: {str(error)[-300:]}")
        damaged.trials += 1
        lost = len(audit(store, entries, damage=True).lost)
        damaged.harmful += lost > 0
        if told == lost:
            damaged.found += lost > 0
        else:
            damaged.broken.append(f"{lost} samples are lost, ffedge_samples_lost says {told}")
        if ready.get("samples_lost") != lost:
            damaged.broken.append("/health/ready does not tell the loss")
        if lost and (first_seq is None or first_seq <= _ROWS):
            damaged.broken.append("a place in the order was used twice")
        shutil.rmtree(home)
        if damaged.trials % 50 == 0:
            progress(f"{damaged.trials} logs damaged, {damaged.harmful} with a loss")
    return damaged


def flip_rows(
    zygote: Zygote, folder: Path, flips: int, seed: int, bugs: Sequence[str] = ()
) -> Damaged:
    """Flip one bit in each of `flips` rows: the learner must be shown the others alone."""
    rows = max(2 * flips, 100)
    written, entries = written_store(zygote, folder, rows, "close", bugs)
    damaged, place = Damaged(), random.Random(seed)
    path = written / DATABASE_NAME
    image = bytearray(path.read_bytes())
    chosen = set(place.sample(range(rows), flips))
    for number in chosen:
        start = image.find(features_of(number)) - _BEFORE_FEATURES
        assert start > 0
        image[start + place.randrange(_BEFORE_FEATURES + FEATURES)] ^= 1 << place.randrange(8)
    path.write_bytes(image)
    seen = _as_the_learner_sees(zygote, folder, written, bugs)
    for number in range(rows):
        whole = [features_of(number).hex(), "uint8", label_of(number)]
        found = seen.get(entries[f"n-{number}"][1])
        if number in chosen:
            damaged.trials += 1
            damaged.harmful += 1
            damaged.found += found is None
            if found is not None:
                damaged.broken.append(f"damaged sample {number} is read as if it were whole")
        elif found != whole:
            damaged.broken.append(f"sample {number}, which is whole, is not read")
    return damaged


def flip_anywhere(
    zygote: Zygote,
    folder: Path,
    trials: int,
    seed: int,
    progress: Callable[[str], None] = lambda text: None,
) -> Damaged:
    """Flip a bit anywhere in the database: the daemon starts and predicts, or ends with one line.

    Nothing altered may reach the learner; what is no longer readable may be missing.
    """
    written, entries = written_store(zygote, folder, 100, "close")
    wholes = {
        entries[f"n-{n}"][1]: [features_of(n).hex(), "uint8", label_of(n)] for n in range(100)
    }
    damaged, place = Damaged(), random.Random(seed)
    for trial in range(trials):
        home = folder / f"flip-{trial}"
        home.mkdir()
        shutil.copytree(written, home / "var")
        path = home / "var" / DATABASE_NAME
        image = bytearray(path.read_bytes())
        image[place.randrange(len(image))] ^= 1 << place.randrange(8)
        path.write_bytes(image)
        damaged.trials += 1
        if start_on(zygote, home) == "starts":
            seen = _as_the_learner_sees(zygote, home, home / "var", ())
            for seq, content in seen.items():
                if wholes.get(seq) != content:
                    damaged.broken.append(f"sample {seq} is read altered")
            damaged.found += len(seen) < len(wholes)
        shutil.rmtree(home)
        if damaged.trials % 50 == 0:
            progress(f"{damaged.trials} bits flipped, broken: {damaged.broken or 'nothing'}")
    return damaged


def _as_the_learner_sees(
    zygote: Zygote, folder: Path, directory: Path, bugs: Sequence[str]
) -> dict[int | None, list[object]]:
    """Content of every sample that is learned from or scores, by its place in the order."""
    order = {"directory": str(directory), "found": str(folder / "found"), "bugs": [*bugs]}
    log = folder / "store.log"
    target = "tests.torture.store_load:read_as_the_learner"
    process = zygote.fork(target, [json.dumps(order)], log)
    assert process.wait(60) == 0, log.read_text()
    return {seq: content for seq, *content in json.loads((folder / "found").read_text())}


def start_on(zygote: Zygote, home: Path) -> str:
    """What a daemon makes of what lies in `home`/var: "starts", or the line with which it ends."""
    daemon = ForkedDaemon(zygote, home)
    daemon.process = daemon.spawn()

    def came() -> str | None:
        code = daemon.process.poll()
        lines = daemon.log.read_text().splitlines()
        if code is None:
            return "starts" if any('"listening"' in line for line in lines) else None
        plain = [line for line in lines if not line.startswith("{")]
        assert code == 2, f"exit code {code}: {plain}"
        assert len(plain) == 1, plain
        return plain[0]

    try:
        return wait_for(came, "the daemon to listen or to end")
    finally:
        daemon.process.kill_group()


def half_made(directory: Path) -> None:
    """As a process leaves it that was killed between making the file and its tables."""
    with closing(sqlite3.connect(directory / DATABASE_NAME, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = wal").fetchall()


def wrong_log(directory: Path) -> None:
    """The write-ahead log of another database."""
    half_made(directory)
    (directory / f"{DATABASE_NAME}-wal").write_bytes(random.Random(1).randbytes(40_000))


STARTS = {
    "an empty folder": lambda directory: None,
    "an empty database file": lambda directory: (directory / DATABASE_NAME).touch(),
    "a half-made database": half_made,
    "a log of garbage": wrong_log,
}
REFUSALS = {
    "garbage for a database": lambda directory: (directory / DATABASE_NAME).write_bytes(
        b"\x07garbage" * 1000
    ),
    "half a database": lambda directory: (directory / DATABASE_NAME).write_bytes(
        b"SQLite format 3\0" + bytes(1000)
    ),
}
