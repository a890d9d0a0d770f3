"""A learner that is killed and started again until all is learned: is it one that never was killed?

Both learn the same store, which lies there before they start and holds more than whole blocks: what
is left over is never learned, for how a block is cut that waited too long is up to the clock. How
often a checkpoint is written, and what the server answers, is drawn anew for each start, since
neither may change what is learned.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from daemon.ingest.sample import Sample, pack_features
from daemon.messages import Begin, Judged, Progress, Proposed, Started
from daemon.serving.versions import VersionStore
from daemon.store import SampleStore
from engines import Weights, open_train_engine, weights_from_bytes
from engines.tensor_file import unpack
from models import ModelSpec
from tests.torture.learning import DEATHS, LearnerEndedError, PlayedServer
from tests.torture.processes import Zygote

SPEC = ModelSpec("mlp", (16,), 4, (32, 32))
BLOCK = 32
CONFIG = """\
[model]
name = "mlp"
input_shape = [16]
max_classes = 4
hidden = [32, 32]
[store]
directory = {directory}
[learner]
block_samples = 32
steps_per_block = 4
batch_samples = 16
replay_samples = 150
max_wait_seconds = 86400.0
niceness = 0
write_bytes_per_second = 0
[log]
level = "warning"
"""
# From outside, at any moment; between a candidate and its verdict; right behind the verdict.
KILLS = ("moment", "no verdict", "verdict", *DEATHS)
# A block is four steps of two units; of files, the checkpoint and candidates.
_MOST_TIMES = {"unit": 60}
_CHECKPOINT_SECONDS = (0.001, 0.02, 300.0)

Digest = dict[str, object]


@dataclass
class Resumed:
    """What happened to a learner.

    Args:
        kills: By where.
        starts: How often it was started, the last time included.
        blocks: To learn in all.
        early: Kills before everything was learned.
        repeated: Blocks that were learned again because of a kill.
        broken: What must not be.
    """

    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KILLS, 0))
    starts: int = 0
    blocks: int = 0
    early: int = 0
    repeated: int = 0
    seconds: float = 0.0
    broken: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.kills.values())


def prepare(folder: Path, blocks: int, seed: int) -> None:
    """A home with samples for so many blocks, and for a part of another; drifting clouds.

    Args:
        folder: Made.
        blocks: How many.
        seed: Draws the samples.
    """
    folder.mkdir()
    rng = np.random.default_rng(seed)
    store = SampleStore(folder / "var", max_classes=4, holdout_ratio=0.1, queue_samples=1 << 20)
    centres = 3 * rng.normal(size=(4, 16))
    wanted, training = blocks * BLOCK + BLOCK // 3, 0
    while training < wanted:
        samples = []
        for _ in range(200):
            label = int(rng.choice(4, p=[0.6, 0.2, 0.15, 0.05]))
            centres += rng.normal(scale=0.02, size=centres.shape)
            x = (centres[label] + rng.normal(size=16)).astype(np.float32)
            samples.append(Sample(*pack_features(x), f"c{label}", None, "test", None))
        store.add(samples[: wanted - training]).result(60)
        training = store.counts.samples - store.counts.holdout
    store.close()
    VersionStore(folder / "var" / "versions", keep=3).start(_untrained)


def _untrained(version: int) -> Weights:
    return open_train_engine(SPEC, seed=0).export(
        classes=(), version=version, parent=None, last_seq=0
    )


def never_stopped(home: Path, blocks: int) -> Digest:
    """What a learner knows that is started as a user's daemon starts it, and left alone."""
    trial = _Trial(home, blocks, random.Random(0))
    trial.server.start()
    trial.converse()
    trial.server.close()
    return trial.digest()


def killed(
    zygote: Zygote,
    home: Path,
    blocks: int,
    kills: int,
    seed: int,
    *bugs: str,
    places: Sequence[str] = KILLS,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[Digest, Resumed]:
    """What a learner knows that was killed so often.

    Args:
        zygote: Forks it.
        home: Of `prepare`; learned in.
        blocks: In it.
        kills: How many.
        seed: Draws where.
        bugs: Of `tests.torture.learning`.
        places: Of `KILLS`, those to draw from.
        progress: Told now and then.
    """
    trial = _Trial(home, blocks, random.Random(seed))
    found, started = trial.found, time.monotonic()
    while found.total < kills:
        place = trial.moment.choice(places)
        times = trial.moment.randint(1, _MOST_TIMES.get(place, 6))
        death = f"{place}:{times}" if place in DEATHS else "never"
        trial.fork(zygote, death, *bugs)
        trial.converse(place)
        trial.server.kill()
        found.kills[place] += 1
        found.early += trial.learned < blocks
        if found.total % 20 == 0:
            progress(f"{found.total} kills, {trial.learned} of {blocks} blocks learned")
    trial.fork(zygote, "never", *bugs)
    trial.converse()
    trial.server.close()
    found.seconds = time.monotonic() - started
    return trial.digest(), found


class _Trial:
    def __init__(self, home: Path, blocks: int, moment: random.Random) -> None:
        directory = home / "var"
        (home / "ffedge.toml").write_text(CONFIG.format(directory=json.dumps(str(directory))))
        self.server = PlayedServer(home)
        self.moment = moment
        self.found = Resumed(blocks=blocks)
        self.learned = 0  # blocks, as far as reports say
        self._versions = directory / "versions"
        self._checkpoint = directory / "checkpoint.safetensors"
        manifest = json.loads((self._versions / "manifest.json").read_text())
        self._serves = (1, manifest["versions"][0]["sha256"])
        self._next = 2
        self._proposed = 1

    def fork(self, zygote: Zygote, death: str, *bugs: str) -> None:
        seconds = self.moment.choice(_CHECKPOINT_SECONDS)
        self.server.fork(zygote, death, *bugs, learner__checkpoint_seconds=seconds)

    def converse(self, place: str = "never") -> None:
        """Be the server until the learner has died, is to be killed, or has learned all."""
        self.found.starts += 1
        saved = self._checkpoint.exists()
        ends = time.monotonic() + (self.moment.uniform(0, 0.6) if place == "moment" else 1e9)
        try:
            self.server.say(Begin(self._serves, self._serves, self._next))
            while time.monotonic() < ends:
                report = self.server.hear(ends)
                if isinstance(report, Started):
                    if saved and not report.resumed:
                        self.found.broken.append(f"start {self.found.starts} did not resume")
                elif isinstance(report, Proposed):
                    self._proposed = report.version
                    if place == "no verdict" and self.moment.random() < 0.5:
                        return
                    self._judge(report)
                    if place == "verdict" and self.moment.random() < 0.5:
                        return
                elif isinstance(report, Progress):
                    learned = self.found.blocks - report.backlog // BLOCK
                    self.found.repeated += report.samples > 0 and learned <= self.learned
                    self.learned = max(self.learned, learned)
                    if report.samples == 0 and report.backlog < BLOCK:
                        return
        except LearnerEndedError:
            if place not in DEATHS:
                self.found.broken.append(f"start {self.found.starts} ended by itself")

    def _judge(self, proposed: Proposed) -> None:
        accepted = self.moment.random() < 0.5
        if accepted:
            self._serves = (proposed.version, proposed.sha256)
        self._next = proposed.version + 1
        self.server.say(Judged(proposed.version, accepted=accepted))

    def digest(self) -> Digest:
        """The final checkpoint, and the weights that were proposed last, by name."""
        weights = weights_from_bytes(
            (self._versions / f"{self._proposed}.safetensors").read_bytes()
        )
        arrays, fields = unpack(self._checkpoint.read_bytes())
        # How many candidates there are, and their verdicts, depend on when it is killed.
        arrays["scores.faded"] = arrays["scores.faded"][:2]  # behind these, forgetting
        del arrays["scores.best"], fields["proposed"], fields["judged_steps"]
        return {
            **{f"weights {name}": array.tobytes() for name, array in weights.arrays.items()},
            **{f"checkpoint {name}": array.tobytes() for name, array in arrays.items()},
            **{f"checkpoint {name}": value for name, value in fields.items()},
            "classes": weights.classes,
            "last_seq": weights.last_seq,
        }
