"""F9: a weight file is damaged in a random way; it must not serve, and what serves must answer."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from daemon.serving.slot import Served
from daemon.serving.versions import VersionStore
from engines import Opened, Weights, WeightsError, weights_digest, weights_to_bytes
from tests.daemon_fixtures import SPEC, network


@dataclass
class Mutated:
    """What some damages showed.

    Args:
        mutations: Damaged files.
        refused: Of them, those that did not serve.
        answered: Predictions by what served instead, right by its weights.
        harmless: Files that still held the same weights, bit for bit, and served.
        broken: Promises that were not kept.
    """

    mutations: int = 0
    refused: int = 0
    answered: int = 0
    harmless: int = 0
    broken: list[str] = field(default_factory=list)


def _flip(content: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 1, 2, 8))):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def _flip_header(content: bytearray, draw: random.Random) -> None:
    content[draw.randrange(min(len(content), 2000))] ^= 1 << draw.randrange(8)


def _cut(content: bytearray, draw: random.Random) -> None:
    del content[draw.randrange(len(content)) :]


def _lengthen(content: bytearray, draw: random.Random) -> None:
    content += draw.randbytes(draw.choice((1, 7, 512)))


def _blank(content: bytearray, draw: random.Random) -> None:
    """A sector or two that were never written."""
    start = draw.randrange(len(content))
    end = min(len(content), start + draw.choice((16, 512, 1024)))
    content[start:end] = bytes(end - start)


def _shuffle(content: bytearray, draw: random.Random) -> None:
    """Two pieces in each other's place."""
    size = draw.choice((8, 64))
    a, b = (draw.randrange(len(content) - size) for _ in range(2))
    content[a : a + size], content[b : b + size] = content[b : b + size], content[a : a + size]


def _number(content: bytearray, draw: random.Random) -> None:
    """Another number in the text at the beginning: a shape, an offset, a version."""
    digits = [at for at, byte in enumerate(content[:2000]) if chr(byte).isdigit()]
    content[draw.choice(digits)] = ord(draw.choice("0123456789"))


_DAMAGE: list[Callable[[bytearray, random.Random], None]] = [
    _flip,
    _flip_header,
    _cut,
    _lengthen,
    _blank,
    _shuffle,
    _number,
]


def mutate(folder: Path, engine: Opened, mutations: int, seed: int) -> Mutated:
    """Damage the file of the version that serves, start again, and ask."""
    found, draw = Mutated(), random.Random(seed)
    x = np.arange(6, dtype=np.float32)[None]
    whole = {number: network(number) for number in (1, 2, 3)}
    answers = {number: Served(w, engine.open(w)).answer(x) for number, w in whole.items()}
    kept = folder / "kept"
    _prepare(kept, whole)
    content = weights_to_bytes(whole[3])
    while found.mutations < mutations:
        damaged = bytearray(content)
        damage = draw.choice(_DAMAGE)
        damage(damaged, draw)
        if damaged == content:
            continue
        found.mutations += 1
        where = f"mutation {found.mutations}, {damage.__name__}"
        here = folder / "here"
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(kept, here)
        (here / "3.safetensors").write_bytes(damaged)
        store = VersionStore(here, keep=3)
        weights = store.start(network)
        if weights.version == 3:
            found.harmless += 1
            if not _same(weights, whole[3]):
                found.broken.append(f"{where}: a damaged file serves")
        else:
            found.refused += 1
            if weights.version != 2:
                found.broken.append(f"{where}: {weights.version} serves, and 2 is whole")
        if Served(weights, engine.open(weights)).answer(x) == answers[weights.version]:
            found.answered += 1
        else:
            found.broken.append(f"{where}: version {weights.version} answers otherwise than it did")
        _propose(found, store, damaged, whole[3], where)
    return found


def _prepare(folder: Path, whole: dict[int, Weights]) -> None:
    store = VersionStore(folder, keep=3)
    store.start(lambda number: whole[number])
    for number in (2, 3):
        store.path(number).write_bytes(weights_to_bytes(whole[number]))
        store.accept(whole[number])
        store.change(store.manifest.passed(number))


def _propose(
    found: Mutated, store: VersionStore, damaged: bytes, whole: Weights, where: str
) -> None:
    """The same file as a candidate's: it does not verify."""
    store.path(3).write_bytes(damaged)
    try:
        weights = store.verify(3, weights_digest(whole))
    except WeightsError:
        return
    if not _same(weights, whole):
        found.broken.append(f"{where}: a damaged candidate verifies")


def _same(a: Weights, b: Weights) -> bool:
    arrays = a.arrays.keys() == b.arrays.keys() and all(
        np.array_equal(a.arrays[name], b.arrays[name]) for name in a.arrays
    )
    return arrays and (a.spec, a.classes, a.version) == (SPEC, b.classes, b.version)
