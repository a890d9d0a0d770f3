"""F6 and F7: a disk that fills, or turns read-only, and comes back, under load."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from tests.running import wait_for
from tests.torture.filesystems import Disk
from tests.torture.ledger import FEATURES, Ledger, audit
from tests.torture.load import Load
from tests.torture.processes import ForkedDaemon, Zygote
from tests.torture.shim import FAIL_FROM, Shim

# How soon ingest must be back once the disk is.
BACK_SECONDS = 5.0
# After so long it is not coming back at all, however busy the machine.
_PATIENCE_SECONDS = 60.0


@dataclass
class Filled:
    """What filling, or turning read-only, showed.

    Args:
        cycles: Times it was done.
        refusals: How often each code was answered to a post.
        back_seconds: From the disk's return to the next 201, each time.
        predictions: Answered meanwhile.
    """

    cycles: int = 0
    acknowledged: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    back_seconds: list[float] = field(default_factory=list)
    predictions: int = 0
    broken: list[str] = field(default_factory=list)


class DiskFaults:
    """A daemon under load on a disk that fails and comes back.

    Args:
        zygote: Forks the daemon.
        folder: For configuration and ledger, on another file system.
        store: The daemon's, on the disk.
        bugs: Planted.
    """

    def __init__(self, zygote: Zygote, folder: Path, store: Path, bugs: Sequence[str] = ()) -> None:
        self._daemon = ForkedDaemon(zygote, folder / "daemon", *bugs, store=store)
        self._folder = folder

    def run(
        self,
        cycles: int,
        fail: Callable[[], None],
        mend: Callable[[], None],
        cause: str,
        *,
        most_seconds: float = 30.0,
        progress: Callable[[str], None] = lambda text: None,
    ) -> Filled:
        """Fail and mend `cycles` times, then audit.

        Args:
            cycles: How often.
            fail: Breaks the disk.
            mend: Gives it back.
            cause: What `/health/ready` must contain meanwhile.
            most_seconds: By when posts must be refused, and `/health/ready` say so.
            progress: Told a line from time to time.
        """
        filled = Filled()
        with (
            closing(Ledger(self._folder / "disk-ledger")) as ledger,
            closing(Load(ledger, seed=cycles)) as load,
        ):
            with self._daemon as daemon, predicting(daemon, filled):
                load.start(daemon.client.base_url.port or 0)
                for _ in range(cycles):
                    self._once(load, filled, fail, mend, cause, most_seconds)
                    if filled.broken:
                        break
                    if filled.cycles % 10 == 0:
                        progress(f"{filled.cycles} cycles, back after {max(filled.back_seconds)} s")
                load.stop()
            filled.refusals = load.refused
            found = audit(self._daemon.store, ledger.entries(), oldest_may_go=True)
            filled.acknowledged = found.acknowledged
            filled.broken += found.broken() + load.wrong
        return filled

    def _once(
        self,
        load: Load,
        filled: Filled,
        fail: Callable[[], None],
        mend: Callable[[], None],
        cause: str,
        most_seconds: float,
    ) -> None:
        posts = load.posts
        try:
            wait_for(lambda: load.posts > posts + 20, "posts")
            fail()
            before = sum(load.refused.values())
            enough = before + 20
            wait_for(
                lambda: sum(load.refused.values()) > enough, "posts to be refused", most_seconds
            )
            wait_for(
                lambda: cause in self._daemon.client.get("/health/ready").text,
                f"/health/ready to say {cause}",
                most_seconds,
            )
            time.sleep(0.5)
        except AssertionError as error:
            filled.broken.append(str(error))
        finally:
            mend()
        mended, posts = time.monotonic(), load.posts
        try:
            wait_for(lambda: load.posts > posts + 8, "ingest", _PATIENCE_SECONDS)
        except AssertionError as error:
            filled.broken.append(str(error))
        filled.back_seconds.append(round(time.monotonic() - mended, 2))
        filled.cycles += 1


@contextmanager
def predicting(daemon: ForkedDaemon, filled: Filled) -> Iterator[None]:
    """A client that asks for predictions all the while; each must be answered."""
    stop = threading.Event()

    def ask() -> None:
        with httpx2.Client(base_url=daemon.client.base_url, timeout=30) as client:
            while not stop.wait(0.02):
                try:
                    status = client.post("/predict", json={"x": [1] * FEATURES}).status_code
                except httpx2.HTTPError as error:
                    filled.broken.append(f"a prediction failed: {type(error).__name__}")
                    return
                if status != 200:
                    filled.broken.append(f"a prediction was answered {status}")
                filled.predictions += 1

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def start_read_only(zygote: Zygote, folder: Path, disk: Disk) -> Filled:
    """Start on a file system that is read-only, then make it writable under the daemon."""
    filled = Filled(cycles=1)
    daemon = ForkedDaemon(zygote, folder / "daemon", store=disk.point / "var")
    with closing(Ledger(folder / "disk-ledger")) as ledger, closing(Load(ledger, 1)) as load:
        with daemon:
            load.start(daemon.client.base_url.port or 0, most=20)
            load.join()
            daemon.process.terminate()
            daemon.process.wait(20)
        disk.remount("ro")
        with daemon, predicting(daemon, filled):
            ready = daemon.client.get("/health/ready")
            if ready.status_code != 503 or "read-only" not in ready.text:
                filled.broken.append("/health/ready does not say that the disk is read-only")
            load.start(daemon.client.base_url.port or 0)
            wait_for(lambda: sum(load.refused.values()) > 20, "posts to be refused")
            disk.remount("rw")
            mended, posts = time.monotonic(), load.posts
            wait_for(lambda: load.posts > posts + 8, "ingest", _PATIENCE_SECONDS)
            filled.back_seconds.append(round(time.monotonic() - mended, 2))
            load.stop()
        filled.refusals = load.refused
        found = audit(daemon.store, ledger.entries())
        filled.acknowledged = found.acknowledged
        filled.broken += found.broken() + load.wrong
    return filled


def read_only(shim: Shim, store: Path) -> Callable[[], None]:
    """Has every write to the store answered as a file system does that was remounted read-only.

    A real remount is refused while a file is open for writing; the kernel's own, after an error, is
    not, and looks like this to the process.
    """
    shim.watch(store)
    return lambda: shim.arm(FAIL_FROM, 1, errno.EROFS)
