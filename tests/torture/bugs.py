"""Bugs that are planted into the daemon before it starts; the harness meant for each must catch it.

They live here and nowhere in the product. Most act on the writer's connection, wherever the product
opens it; the others replace a function by its name. A name that is gone is an error, and a bug that
no longer has an effect is not caught, which fails its test (`test_bugs.py`).
"""

from __future__ import annotations

import importlib
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from daemon.store.schema import DATABASE_NAME

BUGS: dict[str, Callable[[], None]] = {}


def plant(name: str) -> None:
    """Plant a bug into this process, which is to be the daemon's or the store's.

    Raises:
        KeyError: No bug has this name.
        AttributeError: What it replaces does not exist any more.
    """
    BUGS[name]()


def _bug(function: Callable[[], None]) -> Callable[[], None]:
    BUGS[function.__name__] = function
    return function


def _replace(target: str, new: Any) -> Any:
    """Put `new` in the place of "module:name" or "module:Class.name"; what was there."""
    module, _, path = target.partition(":")
    *outer, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in outer:
        owner = getattr(owner, part)
    old = getattr(owner, name)
    setattr(owner, name, new)
    return old


def _writers_connection(kind: type[sqlite3.Connection]) -> None:
    """Have every connection that may write to the database be of `kind`."""
    real = sqlite3.connect

    def connect(path: Any, **more: Any) -> sqlite3.Connection:
        writes = Path(path).name == DATABASE_NAME and not more.get("uri")
        return real(path, factory=kind, **more) if writes else real(path, **more)

    sqlite3.connect = connect  # type: ignore[assignment]


@_bug
def ack_before_commit() -> None:
    """A transaction stays open for 50 ms, and what is in it is acknowledged at once."""

    class Late(sqlite3.Connection):
        begun = 0.0

        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            if sql == "BEGIN IMMEDIATE":
                if self.in_transaction:
                    return super().execute("SELECT 1")
                self.begun = time.monotonic()
            if sql == "COMMIT" and time.monotonic() - self.begun < 0.05:
                return super().execute("SELECT 1")
            return super().execute(sql, *values)

    _writers_connection(Late)


@_bug
def synchronous_normal() -> None:
    """The log is synced at checkpoints only."""

    class Normal(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            if sql.startswith("BEGIN"):
                super().execute("PRAGMA synchronous = 1")
            return super().execute(sql, *values)

    _writers_connection(Normal)


@_bug
def ack_after_failed_commit() -> None:
    """A commit that failed counts as done."""

    class Deaf(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            try:
                return super().execute(sql, *values)
            except sqlite3.OperationalError:
                if sql != "COMMIT":
                    raise
                return super().execute("SELECT 1")

    _writers_connection(Deaf)


@_bug
def go_on_after_error() -> None:
    """After a failed sync the writer goes on over the same connection, and the same log."""
    real, opened = sqlite3.connect, {}

    class Kept(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            kept = opened.get("writer") is self
            skip = kept and sql.replace(" ", "").lower().startswith("pragmawal_checkpoint")
            return super().execute("SELECT 0, 0, 0" if skip else sql, *values)

        def close(self) -> None:
            """Stays open."""

    def connect(path: Any, **more: Any) -> sqlite3.Connection:
        if Path(path).name != DATABASE_NAME or more.get("uri"):
            return real(path, **more)
        if "writer" not in opened:
            opened["writer"] = real(path, factory=Kept, **more)
        return opened["writer"]

    sqlite3.connect = connect  # type: ignore[assignment]


@_bug
def no_truncate_on_opening() -> None:
    """What is acknowledged after a failed sync lies behind frames that may not be on disk."""

    class Untruncated(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            skip = sql.replace(" ", "").lower().startswith("pragmawal_checkpoint")
            return super().execute("SELECT 0, 0, 0" if skip else sql, *values)

    _writers_connection(Untruncated)


@_bug
def no_idempotency() -> None:
    """Keys are neither looked up nor kept."""
    _replace("daemon.store.sample_store:first_answer", lambda *_: None)
    _replace("daemon.store.sample_store:keep_answer", lambda *_: None)


@_bug
def no_row_check() -> None:
    """Rows are read as they are."""
    _replace("daemon.store.sample_reader:is_sound", lambda row: True)


@_bug
def wall_clock_age() -> None:
    """The time of service is taken from a clock that may jump."""
    wall = SimpleNamespace(**{**vars(time), "monotonic": time.time})
    _replace("daemon.store.sample_rows:time", wall)


@_bug
def no_mark() -> None:
    """Nothing outside the database knows how far it went."""
    _replace("daemon.store.mark:MarkFile.write", lambda *_: None)


@_bug
def unbounded_queue() -> None:
    """Whatever comes is queued."""
    _replace("daemon.store.writer:Writer._check_room", lambda *_: None)


@_bug
def echo_of_input() -> None:
    """An error repeats what it could not read."""
    from daemon.errors import BadJsonError

    def decode(encoding: Any, body: bytes, kind: Any) -> Any:
        try:
            return real(encoding, body, kind)
        except BadJsonError:
            raise BadJsonError(f"not JSON: {bytes(body[-40:])!r}") from None

    real = _replace("daemon.ingest.encoding:Encoding.decode", decode)


@_bug
def no_file_sync() -> None:
    """A file is renamed into place before its content is on disk, nor is the folder synced."""
    _replace("daemon.durable:os", SimpleNamespace(**{**vars(os), "fsync": lambda _: None}))


@_bug
def no_folder_sync() -> None:
    """A rename is not brought to disk."""
    _replace("daemon.durable:sync_folder", lambda _: None)


@_bug
def write_in_place() -> None:
    """A file is written over."""

    def overwrite(path: Path, content: bytes) -> None:
        path.write_bytes(content)

    for module in ("daemon.durable", "daemon.serving.versions"):
        _replace(f"{module}:replace_file", overwrite)


@_bug
def no_restart() -> None:
    """A learner that has ended stays so."""
    _replace("daemon.supervision.backoff:Backoff.pause", lambda *_, **__: 1e6)


@_bug
def no_watch() -> None:
    """Nobody misses a learner that has fallen silent."""
    _replace("daemon.supervision.heartbeat:Heartbeat.overdue", lambda *_: False)


@_bug
def two_references() -> None:
    """A request takes the version twice: once to name it, once to compute."""

    class Twice:
        def __init__(self, slot: Any) -> None:
            self._slot = slot
            self.weights = slot._served.weights

        def answer(self, x: Any) -> Any:
            return self._slot._served.answer(x)

    _replace("daemon.serving.slot:ServingSlot.current", property(Twice))


@_bug
def swap_in_place() -> None:
    """A swap writes the new weights into the engine that answers, and then names them."""

    def swap(slot: Any, served: Any) -> None:
        now = slot._served
        for name, value in vars(served.engine).items():
            setattr(now.engine, name, value)
            time.sleep(0.001)
        object.__setattr__(now, "weights", served.weights)

    _replace("daemon.serving.slot:ServingSlot.swap", swap)
