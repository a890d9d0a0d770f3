"""Whatever comes in whatever order, alone or at once: what serves is what the manifest says."""

from __future__ import annotations

import dataclasses
import random
import threading

import pytest

from daemon.errors import RequestError
from daemon.serving.gate import Scores
from daemon.serving.manifest import Manifest
from daemon.serving.probation import Paired
from engines import weights_digest
from tests.daemon_fixtures import Parts, daemon_parts, network, put

GOOD, BAD = Scores(100, 80, 80, 90), Scores(100, 90, 90, 70)
REPORTS = [Paired(200, 190, 180, 2), Paired(64, 20, 60, 42), Paired(50, 40, 40, 1)]


def is_sound(manifest: Manifest) -> None:
    states = {entry.version: entry.state for entry in manifest.versions}
    assert states[manifest.active] != "bad"
    assert manifest.previous is None or states[manifest.previous] == "good"
    assert manifest.previous != manifest.active
    assert manifest.best in states
    assert manifest.last >= max(states)
    assert len(states) == len(manifest.versions)


class Driver:
    """Everything that a learner, its supervisor and operators may do."""

    def __init__(self, parts: Parts, seed: int) -> None:
        self._parts, self._draw = parts, random.Random(seed)
        self.proposing = threading.Lock()  # there is one learner

    def act(self) -> None:
        acts = [self.propose, self.propose, self.probe, self.probe, self.operate, self.obey]
        self._draw.choice(acts)()

    def propose(self) -> None:
        with self.proposing:
            manifest = self._parts.swaps.manifest
            number = manifest.last + 1
            parent = self._draw.choice([manifest.active, manifest.active, manifest.best])
            plain = network(number, seed=number % 5)
            weights = put(self._parts.versions, dataclasses.replace(plain, parent=parent))
            scores = self._draw.choice([GOOD, GOOD, GOOD, BAD])
            self._parts.promotion.consider(number, weights_digest(weights), scores)

    def probe(self) -> None:
        versions = [entry.version for entry in self._parts.swaps.manifest.versions]
        self._parts.swaps.probed(self._draw.choice(versions), self._draw.choice(REPORTS), 1)

    def operate(self) -> None:
        versions = [entry.version for entry in self._parts.swaps.manifest.versions]
        version = self._draw.choice([None, *versions])
        try:
            if version is None or self._draw.random() < 0.5:
                self._parts.swaps.rollback(version, "")
            else:
                self._parts.swaps.activate(version, "")
        except RequestError as error:
            assert error.status in (404, 409)  # noqa: PT017 - whichever came first

    def obey(self) -> None:
        self._parts.swaps.retreated(self._parts.swaps.manifest.retreat)


@pytest.mark.parametrize("seed", range(2))
def test_in_any_order(tmp_path, seed):
    seen, on_trial, serving = set(), {}, 1
    for start in range(4):
        with daemon_parts(tmp_path) as parts:
            assert parts.serving == serving
            assert {trial.version: trial.total for trial in parts.swaps._trials} == on_trial
            driver = Driver(parts, 10 * seed + start)
            for _ in range(15):
                driver.act()
                manifest = parts.versions.manifest
                is_sound(manifest)
                assert parts.serving == manifest.active
                seen.add(manifest.active)
                for trial in parts.swaps._trials:
                    assert manifest.entry(trial.version).state == "pending"
                assert len(parts.swaps._trials) <= 2
            serving, orderly = parts.serving, start % 2 == 0
            if orderly:
                parts.swaps.stop()
            on_trial = {
                trial.version: trial.total if orderly else trial.earlier
                for trial in parts.swaps._trials
            }
    assert len(seen) > 5


def test_all_at_once(tmp_path):
    with daemon_parts(tmp_path) as parts:
        drivers = [Driver(parts, seed) for seed in range(4)]
        for driver in drivers[1:]:
            driver.proposing = drivers[0].proposing
        failed: list[BaseException] = []

        def drive(driver: Driver) -> None:
            try:
                for _ in range(30):
                    driver.act()
                    with parts.swaps.still() as manifest:
                        is_sound(manifest)
                        assert parts.serving == manifest.active
            except BaseException as error:  # noqa: BLE001 - shown below
                failed.append(error)

        threads = [threading.Thread(target=drive, args=(driver,)) for driver in drivers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert failed == []
        swaps = sum(
            parts.reading("ffedge_model_swaps_total", result=result) or 0
            for result in ("swapped", "rolled_back", "activated")
        )
        assert swaps == parts.reading("ffedge_swap_duration_seconds_count") > 10
