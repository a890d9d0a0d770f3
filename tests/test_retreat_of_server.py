"""A rollback from end to end: the server's swaps, its word to the learner, and a real learner."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from daemon.config import LearnerSettings
from daemon.ingest.sample import Sample, pack_features
from daemon.learning.learner import Learner
from daemon.learning.probe import Probe
from daemon.learning.process import LearnerProcess
from daemon.messages import FromLearner, Noted, Retreated, ToLearner
from daemon.serving.gate import ClassScores, Scores
from daemon.serving.probation import Paired
from daemon.store import SampleReader
from daemon.supervision.following import Following
from engines import open_predict_engine, open_train_engine, weights_digest
from tests.daemon_fixtures import SPEC, Parts, daemon_parts, put

GOOD = Scores(n=100, incumbent_correct=80, best_correct=80, candidate_correct=90)
BETTER = Paired(n=200, correct=190, previous_correct=180, lost=2)
UNDECIDED = Paired(n=10, correct=9, previous_correct=9, lost=0)
SETTINGS = LearnerSettings(block_samples=16, steps_per_block=4, batch_samples=16)
CODES = "units.0.weight.codes"


class Joined:
    """Both ends; what the learner answers comes back at once."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.following = Following(parts.swaps, self._send)
        self.said: list[msgspec.Struct] = []
        self.versions: dict[int, bytes] = {}
        self.start()

    def start(self, commands: bytes = b"") -> None:
        """Another learner process, which is told what is in `commands`."""
        self.learner = Learner(
            SPEC,
            lambda: open_train_engine(SPEC, seed=0),
            open_predict_engine("torch").open,
            SampleReader(self.parts.folder, SPEC),
            SETTINGS,
            holdout_samples=100,
            checkpoint=self.parts.folder / "checkpoint.safetensors",
        )
        probe = Probe(
            SampleReader(self.parts.folder, SPEC),
            open_predict_engine("torch").open,
            self.parts.versions.verify,
        )
        self._reports = io.BytesIO()
        self.process = LearnerProcess(
            self.learner, probe, self.parts.versions, SETTINGS, io.BytesIO(commands), self._reports
        )

    def _send(self, message: msgspec.Struct) -> None:
        self.process._obey(msgspec.json.decode(msgspec.json.encode(message), type=ToLearner))
        self.answer()

    def answer(self) -> None:
        """Let the server hear what the learner has said."""
        lines = self._reports.getvalue().splitlines()
        self._reports.seek(0)
        self._reports.truncate()
        for line in lines:
            report = msgspec.json.decode(line, type=FromLearner)
            self.said.append(report)
            if isinstance(report, Retreated):
                self.following.hear(report)

    def codes(self) -> bytes:
        return self.learner.export(version=1, parent=None).arrays[CODES].tobytes()

    def propose(self, version: int, scores: Scores = GOOD) -> bool:
        """Learn a block, and have the version judged."""
        assert self.learner.learn_block().samples
        active = self.parts.swaps.manifest.active
        candidate = put(self.parts.versions, self.learner.export(version=version, parent=active))
        self.learner.save(version, scores)
        decision = self.parts.promotion.consider(version, weights_digest(candidate), scores)
        self.versions[version] = self.codes()
        return decision.accepted

    def restart(self) -> None:
        """The learner ends, and another begins where its checkpoint stands."""
        begin: list[msgspec.Struct] = []
        Following(self.parts.swaps, begin.append).begin(None)
        self.following.end()
        self.start(msgspec.json.encode(begin[0]) + b"\n")
        self.process.run()
        self.answer()

    def passes(self, version: int) -> None:
        self.parts.swaps.probed(version, BETTER, 100)
        assert self.parts.swaps.manifest.entry(version).state == "good"


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[Joined]:
    with daemon_parts(tmp_path) as parts:
        draw = np.random.default_rng(0)
        samples = []
        for number in range(400):
            x = draw.normal(size=6).astype(np.float32)
            x[2 * (number % 3)] += 3
            samples.append(Sample(*pack_features(x), "abc"[number % 3], None, "test", None))
        parts.store.add(samples).result(10)
        yield Joined(parts)


@pytest.mark.parametrize("up", [True, False])
def test_it_goes_back_to_the_version_that_serves_not_to_the_bad_one_that_had_passed(
    joined: Joined, up: bool
) -> None:
    joined.following.begin(None)
    for version in (2, 3, 4, 5):
        assert joined.propose(version)
        joined.passes(version)
    joined.learner.learn_block()
    joined.learner.save()
    assert len(set(joined.versions.values())) == 4
    if not up:
        joined.following.end()
    change = joined.parts.swaps.rollback(None, "an operator saw it fail")
    assert change.active == 4
    if not up:
        joined.restart()
    assert joined.codes() == joined.versions[4]
    assert joined.parts.swaps.manifest.retreat == 0
    kinds = [note.kind for note in joined.said if isinstance(note, Noted)]
    assert kinds == ["retreated"]
    assert joined.learner.checkpoints.good()[0] == 4
    joined.start()
    assert joined.learner.restore()
    assert joined.codes() == joined.versions[4]


def test_a_version_that_passes_late_is_one_to_go_back_to(joined: Joined) -> None:
    """Where blocks are few and probation long, many are proposed before one has passed."""
    joined.following.begin(None)
    for version in range(2, 12):
        assert joined.propose(version)
        joined.parts.swaps.probed(2, UNDECIDED, 10 * version)
    joined.passes(2)
    assert joined.learner.checkpoints.good() == [2]
    joined.parts.swaps.rollback(None, "the newest is worse")
    assert joined.parts.serving == 2
    assert joined.codes() == joined.versions[2]


def test_a_version_that_passes_without_a_checkpoint_is_put_on_record(joined: Joined) -> None:
    joined.following.begin(None)
    assert joined.propose(2)
    joined.learner.checkpoints.forget(2)
    joined.passes(2)
    notes = [note for note in joined.said if isinstance(note, Noted)]
    assert [note.kind for note in notes] == ["no_checkpoint"]
    assert "version 2" in notes[0].text
    assert joined.propose(3)
    joined.parts.swaps.rollback(None, "worse")
    assert [n.kind for n in joined.said if isinstance(n, Noted)] == ["no_checkpoint", "began_anew"]


@pytest.mark.parametrize("accepted", [True, False])
def test_a_verdict_that_a_restart_came_after_is_taken_in(joined: Joined, accepted: bool) -> None:
    """The checkpoint is saved before it; learning goes on to the same bits, and scores, after."""
    right = (30, 30, 30) if accepted else (3, 3, 3)
    classes = ClassScores(("a", "b", "c"), (34, 33, 33), (20, 20, 20), (21, 20, 20), right)
    scores = Scores(100, 60, 61, sum(right), classes=classes)
    joined.following.begin(None)
    joined.learner.course.diverged((0, 0), 0)  # halves the learning rate until one is accepted
    assert joined.propose(2, scores) is accepted

    def goes_on() -> tuple[bytes, dict[str, bytes], float]:
        joined.learner.learn_block()
        joined.learner.learn_block()
        found = {name: array.tobytes() for name, array in joined.learner.score.state().items()}
        return joined.codes(), found, joined.learner.course.rate

    joined.learner.judged(2, scores, accepted=accepted)
    without = goes_on()
    assert without[2] == (1.0 if accepted else 0.5)
    joined.restart()
    assert goes_on() == without
