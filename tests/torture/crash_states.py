"""F3: what a crash may leave, made from a trace of one life of the store.

Everything that was synced is there; of what was written since, any part may be, and writes may be
torn. Many such states are drawn, and in each every sample that was acknowledged by then must be
there (the idea of ALICE, OSDI 2014). The ledger lies in the trace as well, so that it is known what
was acknowledged at each moment. That a file has its name counts as durable once it is written to.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.torture.ledger import Entries, audit
from tests.torture.processes import Zygote
from tests.torture.shim import Shim

_HEAD = struct.Struct("<4q")
_SECTOR = 512
_BEFORE, _SAMPLES = 4, 500
# Of so many states one is opened by the store itself, which must take samples.
_OPENED = 50


class Operation(NamedTuple):
    """One that was done: W write, T truncate to `offset`, S sync."""

    kind: str
    offset: int
    name: str
    data: bytes


@dataclass
class States:
    """What some crash states showed; `operations` is the length of the trace."""

    operations: int = 0
    states: int = 0
    opened: int = 0
    acknowledged: int = 0
    broken: list[str] = field(default_factory=list)


def read_trace(path: Path) -> Iterator[Operation]:
    """The operations of a trace in their order."""
    trace, at = path.read_bytes(), 0
    while at < len(trace):
        kind, offset, path_bytes, size = _HEAD.unpack_from(trace, at)
        at += _HEAD.size
        name = Path(trace[at : at + path_bytes].decode()).name
        at += path_bytes
        yield Operation(chr(kind), offset, name, trace[at : at + size])
        at += size


def draw_states(
    zygote: Zygote,
    shim: Shim,
    folder: Path,
    states: int,
    seed: int,
    bugs: Sequence[str] = (),
    progress: Callable[[str], None] = lambda text: None,
) -> States:
    """Record a life of the store, then audit `states` that a crash could have left of it."""
    home = folder / "recorded"
    home.mkdir()
    _live(zygote, home, 0, _BEFORE, "close", bugs)
    files = {path.name: path.read_bytes() for path in [*(home / "var").iterdir(), home / "ledger"]}
    shim.watch(home)
    shim.record(on=True)
    try:
        _live(zygote, home, _BEFORE, _SAMPLES, "close", bugs)
    finally:
        shim.record(on=False)
    operations = [op for op in read_trace(shim.trace) if not op.name.endswith("-shm")]
    found, choose = States(operations=len(operations)), random.Random(seed)
    while found.states < states and not found.broken:
        until = choose.randrange(len(operations) + 1)
        state = crash_state(files, operations[:until], choose)
        here = folder / f"state-{found.states}"
        entries = _written(state, here)
        broken = audit(here / "var", entries).broken()
        found.broken += [f"crash after operation {until}: {text}" for text in broken]
        found.acknowledged += len(entries)
        if found.states % _OPENED == 0:
            _written(state, here)
            _live(zygote, here, _BEFORE + _SAMPLES, 1, "exit", ())
            found.opened += 1
        found.states += 1
        _removed(here)
        if found.states % 1000 == 0:
            progress(f"{found.states} crash states of {len(operations)} operations, none broken")
    return found


def crash_state(
    files: dict[str, bytes], operations: Sequence[Operation], choose: random.Random
) -> dict[str, bytearray]:
    """Files as a crash after `operations` may leave them; the ledger as it was."""
    synced = {op.name: place for place, op in enumerate(operations) if op.kind == "S"}
    kept_share = choose.choice((0.0, 0.5, 0.9))
    state = {name: bytearray(content) for name, content in files.items()}
    for place, op in enumerate(operations):
        content = state.setdefault(op.name, bytearray())
        sure = op.name == "ledger" or place < synced.get(op.name, -1)
        if not sure and choose.random() >= kept_share:
            continue
        if op.kind == "T":
            del content[op.offset :]
            content.extend(bytes(op.offset - len(content)))
        elif op.kind == "W":
            data = op.data
            if not sure and choose.random() < 0.1:
                data = data[: _SECTOR * choose.randrange(1 + len(data) // _SECTOR)]
            content.extend(bytes(max(0, op.offset - len(content))))
            content[op.offset : op.offset + len(data)] = data
    return state


def _written(state: dict[str, bytearray], here: Path) -> Entries:
    _removed(here)
    (here / "var").mkdir(parents=True)
    for name, content in state.items():
        ((here if name == "ledger" else here / "var") / name).write_bytes(content)
    lines = map(json.loads, state["ledger"].decode().splitlines())
    return {id_: (crc, seq) for id_, crc, seq in lines}


def _removed(here: Path) -> None:
    for folder in (here / "var", here):
        if folder.exists():
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()


def _live(
    zygote: Zygote, home: Path, first: int, count: int, end: str, bugs: Sequence[str]
) -> None:
    order = {"directory": str(home / "var"), "ledger": str(home / "ledger"), "first": first}
    order |= {"count": count, "end": end, "bugs": [*bugs]}
    log = home.parent / "store.log"
    process = zygote.fork("tests.torture.store_load:main", [json.dumps(order)], log)
    assert process.wait(60) == 0, log.read_text()
