"""One answer comes from one version, however often another one is swapped in."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest

from daemon.serving.slot import Served, ServingSlot
from engines import Prediction, open_predict_engine
from tests.daemon_fixtures import network
from tests.running import wait_for

OPEN = open_predict_engine("torch").open
SWAPS = 2_000
READERS = 4


def served(version: int) -> Served:
    return Served(network(version), OPEN(network(version)))


def test_an_answer_names_the_label_its_goodness_and_its_margin():
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    one = served(2)
    prediction = one.engine.predict(x)
    for answer, index, goodness in zip(
        one.answer(x), prediction.class_index, prediction.goodness, strict=True
    ):
        best, second = sorted(goodness, reverse=True)[:2]
        assert answer["label"] == "abc"[index]
        assert answer["goodness"] == pytest.approx(goodness, abs=1e-6)
        assert answer["margin"] == pytest.approx(best - second, abs=1e-6)
        assert answer["goodness"][index] == max(answer["goodness"])


@pytest.mark.parametrize(("classes", "label", "values"), [((), None, 0), ((3,), 3, 1)])
def test_with_fewer_than_two_classes_there_is_no_margin(classes, label, values):
    weights = dataclasses.replace(network(1), classes=classes)
    (answer,) = Served(weights, OPEN(weights)).answer(np.ones((1, 6), dtype=np.float32))
    assert (answer["label"], answer["margin"], len(answer["goodness"])) == (label, None, values)


class Naming:
    """Answers with its own version's number, and gives other threads every chance to swap."""

    def __init__(self, version: int) -> None:
        self._version = version

    def predict(self, x):
        goodness = np.full((len(x), 3), self._version, dtype=np.float32)
        threading.Event().wait(0)
        return Prediction(np.zeros(len(x), dtype=np.int64), goodness)


def test_no_reader_sees_two_versions_mixed():
    x = np.zeros((2, 6), dtype=np.float32)
    versions = [
        Served(dataclasses.replace(network(1), version=n, classes=(f"label {n}",)), Naming(n))
        for n in range(SWAPS)
    ]
    slot = ServingSlot(versions[0])
    mixed: list[object] = []
    seen: set[int] = set()
    done = threading.Event()

    def read() -> None:
        last = 0
        while not done.is_set():
            current = slot.current
            number = current.weights.version
            for answer in current.answer(x):
                if answer["label"] != f"label {number}" or set(answer["goodness"]) != {number}:
                    mixed.append((number, answer))
            if number < last:
                mixed.append(f"{number} after {last}")
            last = number
            seen.add(number)

    readers = [threading.Thread(target=read) for _ in range(READERS)]
    for reader in readers:
        reader.start()
    for version in versions:
        slot.swap(version)
        number = version.weights.version
        if number % 100 == 0:
            wait_for(lambda number=number: number in seen, f"a reader of version {number}")
    done.set()
    for reader in readers:
        reader.join(20)
    assert mixed == []
    assert len(seen) >= SWAPS // 100
    assert slot.current is versions[-1]


def test_a_request_keeps_the_version_that_it_took():
    slot = ServingSlot(served(1))
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    taken = slot.current
    before = taken.answer(x)
    slot.swap(served(2))
    assert taken.answer(x) == before
    assert slot.current.answer(x) != before
