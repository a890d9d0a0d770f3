"""When a version on probation is good, bad or neither yet; and what the learner predicts for it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from daemon.config import GateSettings
from daemon.learning.probe import Probe
from daemon.messages import Watched
from daemon.serving.manifest import VersionEntry
from daemon.serving.probation import Paired, Trial, is_worse, sign_test
from daemon.store import SampleReader, SampleStore
from daemon.store.sample_rows import in_holdout
from engines import EngineFailedError, open_predict_engine
from tests.daemon_fixtures import SPEC, network, sample

ENTRY = VersionEntry(2, "", "", None, 0, "pending")
SETTINGS = GateSettings(probation_samples=100, margin=0.01)


def exact(lost: int, gained: int) -> float:
    n = lost + gained
    return sum(math.comb(n, k) for k in range(lost, n + 1)) / 2**n


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (0, 5), (7, 0), (9, 1), (60, 40)])
def test_the_sign_test_is_the_binomial_tail(lost, gained):
    assert sign_test(lost, gained) == pytest.approx(exact(lost, gained), rel=1e-9)


def test_the_sign_test_of_many_samples_stays_a_probability():
    assert sign_test(50_000, 50_000) == pytest.approx(0.5, abs=0.01)
    assert sign_test(60_000, 40_000) < 1e-300


def paired(n: int, lost: int, gained: int) -> Paired:
    return Paired(n, n // 2 + gained, n // 2 + lost, lost)


@pytest.mark.parametrize(
    ("n", "lost", "gained", "worse"),
    [
        (0, 0, 0, False),
        (6, 6, 0, False),  # p = 0.016
        (7, 7, 0, True),  # p = 0.008
        (1000, 10, 0, False),  # sure, yet within the margin
        (1000, 11, 0, True),
        (100, 30, 25, False),  # beyond the margin, yet by chance
        (100, 0, 30, False),
    ],
)
def test_worse_is_beyond_the_margin_and_beyond_chance(n, lost, gained, worse):
    assert is_worse(paired(n, lost, gained), 0.01) is worse


def test_an_outcome():
    trial = Trial(ENTRY, None)
    assert trial.outcome(SETTINGS) == "wait"
    trial.report(paired(99, 0, 0), 110)
    assert trial.outcome(SETTINGS) == "wait"
    trial.learner_ended()
    trial.report(paired(2, 0, 0), 40)  # from an older checkpoint, and no count is lost
    assert (trial.total.n, trial.through_seq) == (101, 110)
    assert trial.outcome(SETTINGS) == "good"
    trial.report(paired(60, 40, 0), 120)
    assert trial.outcome(SETTINGS) == "bad"


def test_a_version_that_is_no_worse_is_seldom_called_bad():
    """Looked at after every 32 samples of 200; two equal versions that disagree on a fifth."""
    draw, called_bad, runs = np.random.default_rng(1), 0, 2000
    for _ in range(runs):
        right = draw.random((2, 200)) < 0.9
        lost = np.cumsum(right[1] & ~right[0])
        gained = np.cumsum(right[0] & ~right[1])
        looks = [*range(31, 200, 32), 199]
        called_bad += any(
            is_worse(paired(at + 1, int(lost[at]), int(gained[at])), 0.01) for at in looks
        )
    assert called_bad / runs < 0.03


@pytest.fixture
def store(tmp_path):
    store = SampleStore(tmp_path, max_classes=3, holdout_ratio=0.1, queue_samples=1000)
    yield store
    store.close()


class Rig:
    """A probe over a store, with the engines it has open counted."""

    def __init__(self, folder, *, short: bool = False) -> None:
        self.loaded: list[int] = []
        self.open = self.most_open = 0
        self.short = short
        open_engine = open_predict_engine("torch").open

        def opened(weights):
            if self.short:
                raise EngineFailedError("CUDA out of memory") from MemoryError("out of memory")
            engine, close = open_engine(weights), None
            close = engine.close
            self.open += 1
            self.most_open = max(self.most_open, self.open)

            def closed() -> None:
                self.open -= 1
                close()

            engine.close = closed
            return engine

        def load(version, sha256):
            if sha256 == "damaged":
                raise OSError("damaged")
            self.loaded.append(version)
            return dataclasses.replace(network(version), last_seq=int(sha256 or 0))

        self.reader = SampleReader(folder, SPEC)
        self.probe = Probe(self.reader, opened, load)

    def look(self, after_seq, on_part=lambda: None):
        return self.probe.look(lambda: self.reader.training(after_seq, 32), on_part)


def watched(version: int, previous: int, through_seq: int = 0, last_seq: str = "0") -> Watched:
    return Watched((version, last_seq), (previous, "0"), through_seq)


def filled(store: SampleStore, count: int = 40) -> None:
    # The three classes in the order in which the networks know them.
    samples = [sample(value * 5, "abc"[value % 3]) for value in range(count)]
    store.add(samples).result(20)


def test_each_block_is_predicted_with_both_versions(store, tmp_path):
    filled(store)
    rig = Rig(tmp_path)
    assert rig.look(0) == []
    assert rig.loaded == []
    rig.probe.watch([watched(3, 2)])
    (report,) = rig.look(0)
    samples, through = SampleReader(tmp_path, SPEC).training(0, 32)
    x, labels = SampleReader(tmp_path, SPEC).batch(samples)
    right = {
        n: open_predict_engine("torch").open(network(n)).predict(x).class_index == labels
        for n in (2, 3)
    }
    assert (report.version, report.n, report.through_seq) == (3, len(samples), through)
    assert report.correct == right[3].sum()
    assert report.previous_correct == right[2].sum()
    assert report.lost == (right[2] & ~right[3]).sum()
    assert (rig.open, rig.most_open) == (0, 1)
    (more,) = rig.look(through)
    assert more.n > report.n
    assert rig.look(through) == []  # a block is counted once
    rig.probe.watch([])
    assert rig.look(through) == []


def test_samples_that_a_version_has_learned_from_do_not_count(store, tmp_path):
    filled(store)
    rig = Rig(tmp_path)
    _, through = SampleReader(tmp_path, SPEC).training(0, 10)
    rig.probe.watch([watched(3, 2, last_seq=str(through))])
    (report,) = rig.look(0)
    assert report.n == 22
    rig = Rig(tmp_path)
    rig.probe.watch([watched(3, 2, through_seq=through)])  # by the learner before this one
    assert rig.look(0)[0].n == 22


def test_a_reading_that_comes_again_counts_once(store, tmp_path):
    different = [sample(value, "a") for value in range(12) if not in_holdout(sample(value), 0.1)]
    still, other = (sample(value, "b") for value in (200, 201))
    store.add([*different, *[still] * 31, other]).result(20)
    rig = Rig(tmp_path)
    rig.probe.watch([watched(3, 2)])
    (first,) = rig.look(0)
    assert first.n == len(different) + 1
    store.add([still] * 30).result(20)
    (second,) = rig.look(first.through_seq)
    assert second.n == first.n + 1
    assert rig.look(second.through_seq) == []  # nothing but copies
    rig.probe.watch([watched(3, 2), watched(4, 2)])
    (only,) = rig.look(second.through_seq)
    assert (only.version, only.n) == (4, 1)


def test_counts_go_on_for_what_is_watched_already(store, tmp_path):
    filled(store, 60)
    rig = Rig(tmp_path)
    rig.probe.watch([watched(2, 1)])
    (first,) = rig.look(0)
    rig.probe.watch([watched(2, 1), watched(3, 1)])
    both = rig.look(first.through_seq)
    assert [report.version for report in both] == [2, 3]
    assert both[0].n == first.n + both[1].n
    assert rig.loaded == [2, 1, 3, 1]


def test_counts_beside_one_version_do_not_go_on_beside_another(store, tmp_path):
    filled(store, 60)
    rig = Rig(tmp_path)
    rig.probe.watch([watched(3, 1)])
    (first,) = rig.look(0)
    rig.probe.watch([watched(3, 2)])
    (other,) = rig.look(first.through_seq)
    assert other.n < first.n
    assert rig.loaded == [3, 1, 3, 2]


def test_a_version_that_cannot_be_read_is_not_watched(store, tmp_path, caplog):
    filled(store)
    rig = Rig(tmp_path)
    rig.probe.watch([watched(2, 1, last_seq="damaged"), watched(3, 1)])
    assert [report.version for report in rig.look(0)] == [3]
    assert "version is not watched" in caplog.text


def test_the_probe_is_alive_while_it_predicts(store, tmp_path):
    filled(store)
    rig, parts = Rig(tmp_path), []
    rig.probe.watch([watched(3, 2)])
    rig.look(0, lambda: parts.append(1))
    assert len(parts) == 2


def test_a_block_that_memory_does_not_suffice_for_is_left_out(store, tmp_path, caplog):
    filled(store)
    rig = Rig(tmp_path, short=True)
    rig.probe.watch([watched(3, 2)])
    assert rig.look(0) == []
    assert "too little memory to watch a version" in caplog.text
    rig.short = False
    assert rig.look(0)[0].n == 32
