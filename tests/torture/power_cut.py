"""F2: the power goes while samples are written, to the store alone and to the whole daemon."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tests.running import wait_for
from tests.torture.filesystems import Disk, cut_power
from tests.torture.ledger import Entries, Ledger, audit
from tests.torture.load import Load
from tests.torture.processes import ForkedDaemon, Zygote
from tests.torture.store_load import file_of

# A store grows by its samples, and the audit reads them all: now and then it begins anew.
_CYCLES_A_STORE = 50


@dataclass
class Cut:
    """What some power cuts showed; `losing` counts the cycles with an acknowledged sample lost."""

    cycles: int = 0
    acknowledged: int = 0
    losing: int = 0
    seconds: float = 0.0
    broken: list[str] = field(default_factory=list)


def cut_store(
    zygote: Zygote,
    disk: Disk,
    folder: Path,
    cycles: int,
    seed: int,
    bugs: Sequence[str] = (),
    *,
    go_on: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> Cut:
    """Cut the power under `SampleStore` `cycles` times and audit after each.

    Args:
        zygote: Forks the process that writes.
        disk: Where the store lies.
        folder: For ledgers and logs, on another file system.
        cycles: Power cuts.
        seed: Of how many samples are written before each.
        bugs: Planted in the writing process.
        go_on: After a loss as well, with a fresh store: for controls, which must lose.
        progress: Told a line from time to time.
    """
    cut, moment, started = Cut(), random.Random(seed), time.monotonic()
    begun = 0
    while cut.cycles < cycles and (go_on or not cut.broken):
        if begun % _CYCLES_A_STORE == 0:
            for earlier in disk.point.glob(f"{seed}-*"):  # audited, and in the way of the next ones
                shutil.rmtree(earlier)
            generation = f"{seed}-{cut.cycles}"
            directory, ledger = disk.point / generation, folder / f"ledger-{generation}"
            acknowledged_before, number = cut.acknowledged, 0
        count = moment.randrange(1, 80)
        order = {"directory": str(directory), "ledger": str(ledger), "first": number}
        order |= {"count": count, "end": "cut", "bugs": [*bugs]}
        log = folder / "store.log"
        process = zygote.fork("tests.torture.store_load:main", [json.dumps(order)], log)
        code = process.wait(60)
        assert code == 0, log.read_text()
        number += count + 8
        disk.replug()
        with closing(Ledger(ledger)) as kept:
            entries = kept.entries()
        broken = _audited(directory, entries)
        cut.cycles, begun = cut.cycles + 1, begun + 1
        cut.acknowledged = acknowledged_before + len(entries)
        if broken:
            cut.losing += any("lost" in text for text in broken)
            cut.broken += broken
            begun = 0
        if cut.cycles % 100 == 0:
            progress(f"{cut.cycles} power cuts, {cut.acknowledged} acknowledged, {cut.losing} lose")
    cut.seconds = time.monotonic() - started
    return cut


def _audited(directory: Path, entries: Entries) -> list[str]:
    """As a start after the cut would find it: the folder itself may be gone."""
    try:
        return audit(directory, entries).broken()
    except Exception as error:  # noqa: BLE001 - whatever hinders the audit is the finding
        return [f"{len(entries)} acknowledged samples are lost: {type(error).__name__}: {error}"]


def cut_daemon(
    zygote: Zygote,
    disk: Disk,
    folder: Path,
    cycles: int,
    seed: int,
    bugs: Sequence[str] = (),
    *,
    progress: Callable[[str], None] = lambda text: None,
) -> Cut:
    """Cut the power under the whole daemon while eight clients post to it."""
    cut, moment, started = Cut(), random.Random(seed), time.monotonic()
    daemon = ForkedDaemon(zygote, folder / "daemon", *bugs, store=disk.point / "var")
    with (
        closing(Ledger(folder / "daemon-ledger")) as ledger,
        closing(Load(ledger, seed)) as load,
    ):
        while cut.cycles < cycles and not cut.broken:
            with daemon:
                port = daemon.client.base_url.port
                assert port is not None
                posts = load.posts
                load.start(port)
                wait_for(lambda posts=posts: load.posts > posts, "a post to be answered")
                time.sleep(moment.uniform(0.05, 1.0))
                ledger.shut(on=True)
                cut_power(disk.point)
                daemon.kill_group()
                load.join()
                ledger.shut(on=False)
            disk.replug()
            cut.cycles += 1
            entries = ledger.entries()
            cut.acknowledged = len(entries)
            cut.broken += _audited(daemon.store, entries) + load.wrong
            cut.losing += bool(cut.broken)
            if cut.cycles % 10 == 0:
                progress(f"{cut.cycles} power cuts of the daemon, {cut.acknowledged} acknowledged")
    cut.seconds = time.monotonic() - started
    return cut


def cut_replacement(
    zygote: Zygote, disk: Disk, folder: Path, cycles: int, seed: int, bugs: Sequence[str] = ()
) -> Cut:
    """Cut the power after files were replaced: the newest that was told is there, whole."""
    cut, moment, started = Cut(), random.Random(seed), time.monotonic()
    home, ledger, version = disk.point / f"files-{seed}", folder / f"files-{seed}", 1
    home.mkdir()
    os.sync()
    while cut.cycles < cycles and not cut.broken:
        order = {"folder": str(home), "ledger": str(ledger), "first": version, "bugs": [*bugs]}
        order["count"] = moment.randrange(1, 4)
        version += order["count"]
        log = folder / "files.log"
        target = "tests.torture.store_load:replace_until_cut"
        code = zygote.fork(target, [json.dumps(order)], log).wait(60)
        assert code == 0, log.read_text()
        disk.replug()
        cut.cycles += 1
        told = [int(line) for line in ledger.read_text().splitlines()]
        cut.acknowledged = len(told)
        path = home / "file"
        if not path.exists() or path.read_bytes() != file_of(told[-1]):
            cut.losing += 1
            cut.broken.append(f"version {told[-1]} of a replaced file is not there whole")
    cut.seconds = time.monotonic() - started
    return cut
