"""R5: one life of the version store, and every step of it as the last one.

The process runs through acceptance, probation, pruning, rollback and activation, and is killed at
one of its file operations. What it was about to make serve, and what it had made, goes into a
ledger outside of the folder: a start afterwards must serve one of the two, whole.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from daemon import durable
from daemon.serving.manifest import Manifest
from daemon.serving.versions import VersionStore
from engines import Weights, WeightsError, weights_digest, weights_from_bytes, weights_to_bytes
from tests.daemon_fixtures import network
from tests.torture.bugs import plant
from tests.torture.processes import Zygote
from tests.torture.shim import ACTIONS, Shim

_KEEP = 3


@dataclass
class Lives:
    """What some lives showed.

    Args:
        steps: File operations of a life.
        killed: Lives that ended at one of them.
        old, new: Starts afterwards that served what had been, or what was to be.
        broken: Promises that were not kept, each with its step.
    """

    steps: int = 0
    killed: int = 0
    old: int = 0
    new: int = 0
    broken: list[str] = field(default_factory=list)


def numbered(pool: Path, version: int) -> Weights:
    """Weights of that number, another network for each of three in turn."""
    weights = weights_from_bytes((pool / str(version % 3)).read_bytes())
    return dataclasses.replace(weights, version=version)


def main() -> None:
    """Live; the argument is JSON: folder, pool, ledger, bugs."""
    order = json.loads(sys.argv[1])
    for bug in order["bugs"]:
        plant(bug)
    pool = Path(order["pool"])
    store = VersionStore(Path(order["folder"]), keep=_KEEP)
    with Path(order["ledger"]).open("a") as ledger:

        def step(to: int, act: Callable[[], object]) -> None:
            ledger.write(f"{to}?\n")
            ledger.flush()
            act()
            ledger.write(f"{to}\n")
            ledger.flush()

        def accept(version: int) -> None:
            weights = numbered(pool, version)
            durable.replace_file(store.path(version), weights_to_bytes(weights))
            step(version, lambda: store.accept(weights))

        def change(to: int, changed: Callable[[Manifest], Manifest]) -> None:
            step(to, lambda: store.change(changed(store.manifest)))

        step(1, lambda: store.start(lambda n: numbered(pool, n)))
        accept(2)
        change(2, lambda m: m.passed(2))
        accept(3)
        change(3, lambda m: m.passed(3))
        accept(4)  # the first one is pruned
        change(3, lambda m: m.rolled_back(3))
        change(2, lambda m: m.rolled_back(2))
        change(4, lambda m: m.activated(4))
        accept(5)


def kill_at_each_step(
    zygote: Zygote,
    shim: Shim,
    folder: Path,
    rounds: int,
    bugs: Sequence[str] = (),
    *,
    progress: Callable[[str], None] = lambda text: None,
) -> Lives:
    """Kill `rounds` times at each step, every other time in the middle of it, and start again."""
    lives, pool = Lives(), folder / "pool"
    pool.mkdir()
    for number in range(3):
        (pool / str(number)).write_bytes(weights_to_bytes(network(number + 1)))
    home, ledger = folder / "home", folder / "ledger"
    shim.watch(home)
    _live(zygote, pool, home, ledger, bugs)
    lives.steps = shim.calls
    for round_ in range(rounds):
        for at in range(1, lives.steps + 1):
            if bugs and lives.broken:
                return lives
            action = ("kill", "tear")[(at + round_) % 2]
            _removed(home, ledger)
            shim.watch(home)
            shim.arm(ACTIONS[action], at)
            _live(zygote, pool, home, ledger, bugs, killed=True)
            shim.disarm()
            lives.killed += 1
            _audit(lives, pool, home, ledger, f"{action} at step {at}")
        if round_ % 10 == 9:
            progress(f"{lives.killed} kills, {len(lives.broken)} broken")
    return lives


def _audit(lives: Lives, pool: Path, home: Path, ledger: Path, where: str) -> None:
    lines = ledger.read_text().split()
    did = [int(line) for line in lines if line[-1] != "?"]
    may = int(lines[-1].rstrip("?"))
    old = did[-1] if did else 1
    store = VersionStore(home, keep=_KEEP)
    try:
        weights = store.start(lambda n: numbered(pool, n))
    except WeightsError as error:
        lives.broken.append(f"{where}: nothing serves: {error}")
        return
    serving = weights.version
    if serving not in (old, may):
        lives.broken.append(f"{where}: {serving} serves, not {old} or {may}")
    lives.new += serving == may
    lives.old += serving != may
    if weights_digest(weights) != weights_digest(numbered(pool, serving)):
        lives.broken.append(f"{where}: version {serving} holds other weights")
    for entry in store.manifest.versions:
        try:
            store.load(entry)
        except Exception as error:  # noqa: BLE001 - whatever keeps it from loading is the finding
            lives.broken.append(
                f"{where}: version {entry.version} is listed and does not load: {error}"
            )
    if list(home.glob(".*.tmp")):
        lives.broken.append(f"{where}: a leftover stays")
    number = store.manifest.last + 1
    newest = numbered(pool, number)
    durable.replace_file(store.path(number), weights_to_bytes(newest))
    store.accept(newest)
    if VersionStore(home, keep=_KEEP).start(lambda n: numbered(pool, n)).version != number:
        lives.broken.append(f"{where}: nothing can be accepted afterwards")


def _live(
    zygote: Zygote,
    pool: Path,
    home: Path,
    ledger: Path,
    bugs: Sequence[str],
    *,
    killed: bool = False,
) -> None:
    order = {"folder": str(home), "pool": str(pool), "ledger": str(ledger), "bugs": [*bugs]}
    log = home.parent / "life.log"
    code = zygote.fork("tests.torture.version_life:main", [json.dumps(order)], log).wait(60)
    assert code == (-9 if killed else 0), log.read_text()


def _removed(home: Path, ledger: Path) -> None:
    ledger.unlink(missing_ok=True)
    for path in home.iterdir():
        path.unlink()
    home.rmdir()
