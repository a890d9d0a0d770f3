"""`ffedge import`: a data set, batch by batch, into a running daemon.

The next batch is read while the daemon makes the last one durable. Interrupted at any instant and
run again it goes on where it stopped, and nothing is stored twice: `batches.py` says how.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from daemon.datasets import open_dataset
from daemon.errors import FfedgeError, TransferError
from daemon.transfer.batches import Batch, Batches, Place
from daemon.transfer.client import Client
from daemon.transfer.fitting import fit_dataset, image_to_array
from daemon.transfer.journal import Journal, Mark, identity_of, journal_folder
from daemon.transfer.order import order_note
from daemon.transfer.progress import TransferProgress
from daemon.transfer.stored import StoredSamples
from daemon.transfer.tally import Tally

EXIT_REFUSED = 1
EXIT_INTERRUPTED = 130
_GO_ON = "run the same command again and it goes on where it stopped"


def run_import(
    path: Path,
    *,
    url: str,
    source: str | None,
    label_column: str | None,
    strict: bool,
    as_json: bool,
    patience_seconds: float,
) -> int:
    """Send every sample of a data set.

    Progress and refusals go to standard error, the outcome to standard output.

    Args:
        path: The data set; `daemon/datasets/layouts.py` lists the layouts.
        url: Of the daemon.
        source: Of samples that name none; None: the path's last part.
        label_column: See `open_dataset`.
        strict: Stop at the first row that is refused.
        as_json: Print one JSON object as the last line.
        patience_seconds: How long the daemon may be busy or away.

    Returns:
        The exit code: 0, 1 when rows were refused, 130 when interrupted.

    Raises:
        DataError: The data set cannot be used, or has the wrong shape; nothing was sent.
        TransferError: The daemon does not answer.
    """
    console = Console(stderr=True)
    tally, began = Tally(), time.monotonic()
    with Importer(url, patience_seconds, console, tally, strict=strict) as importer:
        try:
            importer.run(path, source or _source_of(path), label_column)
            code = EXIT_REFUSED if tally.refused else 0
        except KeyboardInterrupt:
            console.print(f"interrupted; {_GO_ON}", highlight=False)
            code = EXIT_INTERRUPTED
        except StrictError:
            console.print("stopped at the first refused row, as --strict wants it")
            code = EXIT_REFUSED
        finally:
            tally.seconds = round(time.monotonic() - began, 3)
            if tally.rows or not isinstance(sys.exc_info()[1], FfedgeError):
                _report(tally, console)
    if as_json:
        sys.stdout.write(msgspec.json.encode(dataclasses.asdict(tally)).decode() + "\n")
    return code


def _source_of(path: Path) -> str:
    name = os.fsencode(path.absolute().name).decode("utf-8", "backslashreplace")
    return name[:64] or "import"


def _report(tally: Tally, console: Console) -> None:
    for line in tally.refusal_lines():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    rate = (tally.stored + tally.already) / max(tally.seconds, 1e-9)
    sys.stdout.write(
        f"{tally.rows:,} rows: {tally.stored:,} stored, {tally.already + tally.skipped:,} already "
        f"there, {tally.refused:,} refused; {tally.seconds:.1f} s, {rate:,.0f} samples/s\n"
    )


class StrictError(Exception):
    """A row was refused, and the first one is to be the end."""


class Importer:
    """One import.

    Args:
        url: Of the daemon.
        patience_seconds: How long it may be busy or away.
        console: Where progress goes.
        tally: Filled as it goes.
        strict: Stop at the first row that is refused.
    """

    def __init__(
        self, url: str, patience_seconds: float, console: Console, tally: Tally, *, strict: bool
    ) -> None:
        self._client = Client(url, patience_seconds=patience_seconds, on_wait=self._wait)
        self._reader = Client(url, patience_seconds=patience_seconds, on_wait=self._wait)
        self._console, self._tally, self._strict = console, tally, strict
        self._progress: TransferProgress | None = None

    def __enter__(self) -> Importer:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._reader.close()

    def run(self, path: Path, source: str, label_column: str | None) -> None:
        """See `run_import`."""
        shape = self._client.model().input_shape
        dataset = open_dataset(path, label_column=label_column, to_array=image_to_array(shape))
        fit, note = fit_dataset(dataset, shape)
        batches = Batches(dataset, fit, shape, source, StoredSamples(self._reader).has)
        identity = identity_of(dataset, self._client.url, source, label_column, shape)
        journal = Journal(journal_folder(os.environ), identity)
        start = self._resumed(batches, journal)
        title = f"{dataset.form} {_source_of(path)}"
        with TransferProgress(self._console, title, start.row, dataset.count) as self._progress:
            for line in (*dataset.notes, note, order_note(dataset)):
                self._note(line)
            self._send_all(batches.after(start), journal)
            if self._tally.unlabelled:
                self._note(f"{self._tally.unlabelled:,} rows have no label: kept, not learnt")
        journal.forget()

    def _note(self, line: str | None) -> None:
        if line:
            self._tally.notes.append(line)
            self._say(line)

    def _resumed(self, batches: Batches, journal: Journal) -> Place:
        """Where to begin: at 0, or behind the last batch if the daemon says that it has it."""
        mark = journal.read()
        batch = None if mark is None else next(batches.after(mark.start), None)
        if mark is None or batch is None or batch.stop != mark.stop or not batch.names:
            return Place()
        if self._post(batch)["accepted"]:
            self._say("the daemon has lost what was sent before: sending all again")
            return Place()
        self._tally.rows = self._tally.skipped = mark.stop.row
        self._tally.refused = mark.refused
        self._say(f"going on at row {mark.stop.row:,}")
        return mark.stop

    def _send_all(self, batches: Iterator[Batch], journal: Journal) -> None:
        mark: Mark | None = None
        # Reads ahead; signals interrupt this thread, which sends.
        with ThreadPoolExecutor(1) as reader:
            try:
                ahead = reader.submit(next, batches, None)
                while (batch := ahead.result()) is not None:
                    ahead = reader.submit(next, batches, None)
                    if self._send(batch):
                        mark = Mark(batch.start, batch.stop, self._tally.refused)
                        journal.write(mark)
            finally:
                if mark is not None:
                    journal.write(mark, now=True)

    def _send(self, batch: Batch) -> bool:
        """Send a batch and count what became of it; whether the daemon has any sample of it."""
        tally = self._tally
        for row in batch.bad:
            tally.refuse(row.name, row.why)
            self._stop_if_strict()
        tally.already += batch.held
        kept = False
        if batch.names:
            answer = self._post(batch)
            tally.stored += answer["accepted"]
            tally.already += answer["duplicates"]
            tally.unlabelled += batch.unlabelled
            kept = answer["accepted"] + answer["duplicates"] > 0
            for entry in answer["rejected"]:
                tally.refuse(batch.names[entry["index"]], entry["error"])
                self._stop_if_strict()
        tally.rows = batch.stop.row
        if self._progress is not None:
            self._progress.show(tally.rows, tally.refused)
        return kept

    def _stop_if_strict(self) -> None:
        if self._strict:
            raise StrictError

    def _post(self, batch: Batch) -> dict[str, Any]:
        try:
            answer = self._client.post("/samples", batch.body, batch.headers)
        except TransferError as error:
            raise TransferError(
                f"stopped at row {self._tally.rows:,}: {error}; when that is mended, {_GO_ON}"
            ) from error
        if answer.status == 422 and "rejected" in answer.body:
            return {"accepted": 0, "duplicates": 0, **answer.body}
        if answer.status != 201:
            raise TransferError(
                f"the daemon refuses the rows from {batch.start.row:,} on: "
                f"{answer.body.get('error', answer.status)}"
            )
        return answer.body

    def _wait(self, why: str) -> None:
        if self._progress is not None:
            self._progress.wait(why)

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
