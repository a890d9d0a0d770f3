"""Programs that the zygote forks: the store alone, written to until something ends it.

The real `SampleStore`, in a process that dies without warning: what the daemon's writer does, at a
fraction of its start. Acknowledgements go into a ledger, as a client would keep them.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import daemon.durable
from daemon.errors import RequestError, StoreError
from daemon.ingest.sample import Sample
from daemon.learning.holdout import Holdout
from daemon.store import SampleReader, SampleStore
from daemon.store.connections import open_reader
from daemon.store.schema import DATABASE_NAME
from models import ModelSpec
from tests.torture.bugs import plant
from tests.torture.filesystems import cut_power
from tests.torture.ledger import CLASSES, FEATURES, Ledger, features_of, label_of

_WAIT_SECONDS = 30.0
_ALL = 1 << 30


def stored_sample(number: int) -> Sample:
    """The harness's sample of that number, as a decoder gives it to the store."""
    features, label = features_of(number), label_of(number)
    return Sample(features, "uint8", label, id=f"n-{number}", source="torture", ts=None)


def open_store(directory: Path, **settings: Any) -> SampleStore:
    plain = {"max_classes": CLASSES, "holdout_ratio": 0.1, "queue_samples": 4096}
    return SampleStore(directory, **plain | settings)


def main() -> None:
    """Write `count` samples from `first` on, up to three groups at once, then end as told.

    The one argument is JSON: directory, ledger, first, count, end = cut | close | exit,
    bugs, and patience: for how many seconds what is refused is offered again. All samples have ids.
    """
    order = json.loads(sys.argv[1])
    for bug in order.get("bugs", []):
        plant(bug)
    directory, ledger = Path(order["directory"]), Ledger(Path(order["ledger"]))
    try:
        store = open_store(directory)
    except StoreError as error:
        sys.stderr.write(f"cannot open: {error}\n")
        os._exit(3)
    reader = _reading(directory)
    number, end = order["first"], order["first"] + order["count"]
    patience = order.get("patience", 0.0)
    while number < end:
        flying = []
        for size in (1, 1, 8):
            numbers = [*range(number, min(number + size, end))]
            number += len(numbers)
            if numbers:
                flying.append((numbers, _add(store, numbers)))
        for numbers, future in flying:
            kept = _acknowledged(ledger, numbers, future)
            deadline = time.monotonic() + patience
            while not kept and time.monotonic() < deadline:
                time.sleep(0.05)
                kept = _acknowledged(ledger, numbers, _add(store, numbers))
            if not kept:
                patience = 0.0
    if reader is not None:
        reader.close()
    if order["end"] == "cut":
        # Not acknowledged, and on its way when the power goes.
        _add(store, [*range(end, end + 8)])
        cut_power(directory)
    if order["end"] == "close":
        store.close()
    os._exit(0)


def read_as_the_learner() -> None:
    """Write down all samples that the learner's view of a store holds.

    The one argument is JSON: directory, found (the file for it), bugs.
    """
    order = json.loads(sys.argv[1])
    for bug in order["bugs"]:
        plant(bug)
    spec = ModelSpec("mlp", (FEATURES,), CLASSES, (64, 64))
    with closing(SampleReader(Path(order["directory"]), spec)) as reader:
        labels = reader.labels()
        rows = [*reader.training(0, _ALL)[0], *Holdout(reader, _ALL).samples()]
    found = [(row.seq, row.features.hex(), row.dtype, labels[row.class_index]) for row in rows]
    Path(order["found"]).write_text(json.dumps(found))


def replace_until_cut() -> None:
    """Replace a file again and again, noting each version that is told to be there, then cut.

    The one argument is JSON: folder (on the disk), ledger, first, count, bugs.
    """
    order = json.loads(sys.argv[1])
    for bug in order["bugs"]:
        plant(bug)
    path = Path(order["folder"]) / "file"
    with Path(order["ledger"]).open("a") as ledger:
        for version in range(order["first"], order["first"] + order["count"]):
            daemon.durable.replace_file(path, file_of(version))
            ledger.write(f"{version}\n")
            ledger.flush()
            os.fsync(ledger.fileno())
    cut_power(path)
    os._exit(0)


def file_of(version: int) -> bytes:
    """Content of the replaced file's version, of which every block depends on the version."""
    return json.dumps([version] * 20_000).encode()


def _reading(directory: Path) -> sqlite3.Connection | None:
    """A reader as the learner is one: while it is open the log outlives the writer's connection."""
    try:
        reader = open_reader(directory / DATABASE_NAME)
        reader.execute("SELECT count(*) FROM samples").fetchall()
    except sqlite3.Error:
        return None
    return reader


def _add(store: SampleStore, numbers: list[int]) -> Any:
    try:
        return store.add([stored_sample(number) for number in numbers])
    except RequestError:
        return None


def _acknowledged(ledger: Ledger, numbers: list[int], future: Any) -> bool:
    """Whether they were, and then they are in the ledger."""
    try:
        results = [] if future is None else future.result(_WAIT_SECONDS)
    except RequestError as error:
        sys.stderr.write(f"refused: {error}\n")
        return False
    if results:
        ledger.acknowledged([result.id for result in results], numbers, results[0].seq)
    return bool(results)
