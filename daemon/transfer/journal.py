"""Where an import stopped: a small file of the user's, so that the next run sends only the rest.

It only saves time. Nothing is stored twice without it, since the daemon knows the samples that it
has; and it is believed only after the daemon has said that it has those of the batch it names.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from daemon.datasets import Dataset
from daemon.durable import replace_file
from daemon.transfer.batches import Place

_EVERY_SECONDS = 0.5


@dataclass(frozen=True)
class Mark:
    """The last batch that the daemon acknowledged.

    Args:
        start: Before its first row.
        stop: Behind its last.
        refused: Rows refused up to there.
    """

    start: Place
    stop: Place
    refused: int


class Journal:
    """The mark of one import.

    Args:
        folder: Where marks are kept; made when it is needed.
        identity: What makes this import this one: data set, options, daemon.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self._path = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"
        self._written = 0.0

    def read(self) -> Mark | None:
        """The mark, None where there is none that can be read."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Mark)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None

    def write(self, mark: Mark, *, now: bool = False) -> None:
        """Keep a mark; twice a second, unless it must be `now`. A folder that refuses is let be."""
        if not now and time.monotonic() - self._written < _EVERY_SECONDS:
            return
        self._written = time.monotonic()
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, msgspec.json.encode(mark))

    def forget(self) -> None:
        """The import is done."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def journal_folder(environment: Mapping[str, str]) -> Path:
    """Where the XDG base directories have such a file; the home folder's part otherwise."""
    state = environment.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "ffedge" / "imports"


def identity_of(dataset: Dataset, *options: object) -> str:
    """A text that changes when a file of the data set, or an option, does.

    Raises:
        OSError: A file cannot be looked at.
    """
    seen = [(str(p.absolute()), (s := p.stat()).st_size, s.st_mtime_ns) for p in dataset.files]
    return repr((str(dataset.path.absolute()), *options, seen))
