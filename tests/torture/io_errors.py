"""F8 and F3: the failure point is moved one file operation at a time, through a store's whole life.

At each operation on the store's files, from opening to closing, one of these happens: it fails with
EIO once (a failed sync also loses what it was to write, as on Linux), all fail with EIO from there
on, the process is killed before it, or killed in the middle of it (half of a write is done). Where
a file system can be mounted the power goes afterwards as well, so that nothing counts but what was
synced. Then the store is opened anew, must take samples again, and is audited.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture.filesystems import Disk, cut_power
from tests.torture.ledger import Ledger, audit
from tests.torture.processes import Zygote
from tests.torture.shim import ACTIONS, Shim

_SAMPLES = 20
_AFTERWARDS = 4
# How long a refused sample is offered again; a store opens itself anew within.
_PATIENCE_SECONDS = 2.5


@dataclass
class Moved:
    """What moving the failure point showed.

    Args:
        calls: Operations of a life without a fault.
        points: Lives with one.
        struck: Of these, those in which the fault was met.
        acknowledged: Samples that were acknowledged in spite of it.
        outlived: Lives that took samples again after an error, in the same process.
        broken: Promises that were not kept, each with its point.
    """

    calls: int = 0
    points: int = 0
    struck: int = 0
    acknowledged: int = 0
    outlived: int = 0
    seconds: float = 0.0
    broken: list[str] = field(default_factory=list)


@dataclass
class FailurePoints:
    """Lives of a store, each with one fault.

    Args:
        zygote: Started with the shim's environment.
        shim: Its other end.
        folder: For ledgers and logs.
        disk: Where the stores lie, and where the power goes; None: in `folder`, and it does not.
        bugs: Planted in the process that writes.

    `calls` is how many operations a life without a fault has, `syncs` which of them are syncs.
    """

    zygote: Zygote
    shim: Shim
    folder: Path
    disk: Disk | None
    bugs: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.root = self.disk.point if self.disk else self.folder
        self.log = self.folder / "store.log"
        self._begun = 0
        self.calls = self._life(None, 0, Moved())
        self.syncs = [call for call in self.shim.calls_of("S") if call <= self.calls]

    def move(
        self,
        points: Sequence[int],
        actions: Sequence[str] = tuple(ACTIONS),
        *,
        until_broken: bool = False,
        progress: Callable[[str], None] = lambda text: None,
    ) -> Moved:
        """One life for each point and action; with `until_broken` no more than shows a fault."""
        moved, started = Moved(calls=self.calls), time.monotonic()
        for point in points:
            for action in actions:
                self._life(action, point, moved)
                moved.points += 1
                if until_broken and moved.broken:
                    return moved
                if moved.points % 50 == 0:
                    progress(f"{moved.points} failure points, broken: {moved.broken or 'nothing'}")
        moved.seconds = time.monotonic() - started
        return moved

    def _life(self, action: str | None, point: int, moved: Moved) -> int:
        self._begun += 1
        name = f"life-{self._begun}"
        directory, ledger_path = self.root / name, self.folder / f"ledger-{name}"
        self.shim.watch(directory)
        if action is not None:
            self.shim.arm(ACTIONS[action], point)
        patience = _PATIENCE_SECONDS if action == "fail once" else 0.0
        self._write(directory, ledger_path, 0, _SAMPLES, "close", patience)
        calls, struck = self.shim.calls, self.shim.struck
        self.shim.disarm()
        if self.disk is not None:
            cut_power(self.disk.point)
            self.disk.replug()
        broken = []
        code = self._write(directory, ledger_path, _SAMPLES, _AFTERWARDS, "exit", 0.0)
        with closing(Ledger(ledger_path)) as ledger:
            entries = ledger.entries()
        if code != 0:
            broken.append(f"not usable afterwards: {self.log.read_text().splitlines()[-1]}")
        else:
            broken += audit(directory, entries).broken()
            if f"n-{_SAMPLES + _AFTERWARDS - 1}" not in entries:
                broken.append("takes no samples afterwards")
        moved.broken += [f"{action} at call {point}: {text}" for text in broken]
        moved.struck += bool(struck)
        moved.acknowledged += len(entries)
        moved.outlived += action == "fail once" and f"n-{_SAMPLES - 1}" in entries
        return calls

    def _write(
        self, directory: Path, ledger: Path, first: int, count: int, end: str, patience: float
    ) -> int:
        order = {"directory": str(directory), "ledger": str(ledger), "first": first}
        order |= {"count": count, "end": end, "patience": patience, "bugs": [*self.bugs]}
        process = self.zygote.fork("tests.torture.store_load:main", [json.dumps(order)], self.log)
        return process.wait(60)
