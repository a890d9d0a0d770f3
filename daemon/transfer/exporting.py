"""`ffedge export`: a running daemon's samples, page by page, into one file."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from daemon.durable import replacing
from daemon.errors import TransferError
from daemon.transfer.client import Client
from daemon.transfer.export_files import kind_of
from daemon.transfer.progress import TransferProgress

_PAGE_SAMPLES = 500
_PATIENCE_SECONDS = 60.0
_EXIT_INTERRUPTED = 130


def run_export(
    path: Path, url: str, label: str | None, source: str | None, after_seq: int, *, as_json: bool
) -> int:
    """Write the samples that there are, in the order of arrival; the file appears when it is whole.

    Args:
        path: The file; its ending says what it becomes.
        url: Of the daemon.
        label: Only samples with this label; None: all.
        source: Only samples from this source; None: all.
        after_seq: Only samples that came after this one.
        as_json: Print one JSON object as the last line.

    Returns:
        The exit code: 0, or 130 when interrupted.

    Raises:
        TransferError: The daemon does not answer, has no such sample, or the file cannot be
            written.
    """
    kind, console, began = kind_of(path), Console(stderr=True), time.monotonic()
    query: dict[str, str | int] = {"features": "true", "limit": _PAGE_SAMPLES}
    query |= {k: v for k, v in (("label", label), ("source", source)) if v is not None}
    progress = TransferProgress(console, f"export {path.name}")
    client = Client(url, patience_seconds=_PATIENCE_SECONDS, on_wait=progress.wait)
    with closing(client), progress:
        try:
            shape, done = client.model().input_shape, 0
            counts = _get(client, "/samples/counts")
            progress.total = None if after_seq else _count(counts, label, source)
            # A label moves its sample to the end of the order, where it would be met again.
            last_seq = int(counts["last_seq"])
            with replacing(path.absolute()) as file, closing(kind(file, shape)) as out:
                # A page without samples, all of them damaged, need not be the last.
                while (
                    after_seq < last_seq
                    and (page := _page(client, query, after_seq))["next_after_seq"] > after_seq
                ):
                    samples = [one for one in page["samples"] if one["seq"] <= last_seq]
                    for sample in samples:
                        out.write(sample)
                    done += len(samples)
                    after_seq = min(page["next_after_seq"], last_seq)
                    progress.show(done)
                if not done:
                    raise TransferError(
                        f"found no sample to export, {path} is as it was: wanted another --label, "
                        "--source or --after-seq; GET /samples/counts lists what there is"
                    )
                out.finish()
        except KeyboardInterrupt:
            progress.note(f"interrupted; {path} is as it was")
            return _EXIT_INTERRUPTED
        except OSError as error:
            raise TransferError(f"{path}: cannot be written: {error.strerror}") from error
    seconds = time.monotonic() - began
    sys.stdout.write(f"{done:,} samples written to {path}; {seconds:.1f} s\n")
    if as_json:
        told = {"samples": done, "last_seq": after_seq, "seconds": round(seconds, 3)}
        sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
    return 0


def _page(client: Client, query: dict[str, str | int], after_seq: int) -> dict[str, Any]:
    return _get(client, "/samples", **query, after_seq=after_seq)


def _count(counts: dict[str, Any], label: str | None, source: str | None) -> int | None:
    """Samples that will be written; None: the daemon does not count these."""
    if label is not None and source is not None:
        return None
    if label is None and source is None:
        return int(counts["samples"])
    kind, wanted = ("label", label) if label is not None else ("source", source)
    named = {
        "null" if entry[kind] is None else str(entry[kind]): entry for entry in counts[kind + "s"]
    }
    return int(named[str(wanted)]["samples"]) if wanted in named else None


def _get(client: Client, path: str, **query: str | int) -> dict[str, Any]:
    answer = client.get(path, **query)
    if answer.status != 200:
        raise TransferError(
            f"the daemon refuses to list its samples: {answer.body.get('error', answer.status)}"
        )
    return answer.body
