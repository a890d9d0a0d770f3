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
    """Write samples in the order of their arrival; the file appears when it is whole.

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
        TransferError: The daemon does not answer, or the file cannot be written.
    """
    kind, console, began = kind_of(path), Console(stderr=True), time.monotonic()
    query: dict[str, str | int] = {"features": "true", "limit": _PAGE_SAMPLES}
    query |= {k: v for k, v in (("label", label), ("source", source)) if v is not None}
    with TransferProgress(console, f"export {path.name}", 0, None) as progress:
        client = Client(url, patience_seconds=_PATIENCE_SECONDS, on_wait=progress.wait)
        try:
            shape, done = client.model().input_shape, 0
            with replacing(path.absolute()) as file, closing(kind(file, shape)) as out:
                while (page := _page(client, query | {"after_seq": after_seq}))["samples"]:
                    for sample in page["samples"]:
                        out.write(sample)
                    done += len(page["samples"])
                    after_seq = page["next_after_seq"]
                    progress.show(done)
                out.finish()
        except KeyboardInterrupt:
            progress.note(f"interrupted; {path} is as it was")
            return _EXIT_INTERRUPTED
        except OSError as error:
            raise TransferError(f"{path}: cannot be written: {error.strerror}") from error
        finally:
            client.close()
    seconds = time.monotonic() - began
    sys.stdout.write(f"{done:,} samples written to {path}; {seconds:.1f} s\n")
    if as_json:
        told = {"samples": done, "last_seq": after_seq, "seconds": round(seconds, 3)}
        sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
    return 0


def _page(client: Client, query: dict[str, str | int]) -> dict[str, Any]:
    answer = client.get("/samples", **query)
    if answer.status != 200:
        raise TransferError(
            f"the daemon refuses to list its samples: {answer.body.get('error', answer.status)}"
        )
    return answer.body
