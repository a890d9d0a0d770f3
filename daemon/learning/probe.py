"""Versions on probation, predicted on each new block before it is learned.

Each is compared with the version it would fall back on, on samples that neither has learned from,
a reading that comes again and again (`readings.py`) once. Which have counted is kept with the
counts, for as long as a trial: no more than `probation_samples` and a block. A learner that starts
begins without, and may count each once more. Where nothing new comes nothing is reported, and it is
time that decides (`daemon/serving/probation.py`).

Nothing is read or computed while nothing is on probation, and one engine is open at a time. To
keep those of two versions on probation open would save 0.3 % of what a block costs to learn (mlp
784-500-500-500, 128 samples, a CPU; resnet8: 0.1 %), and hold the memory of each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from daemon.learning.answers import OnPart, right_answers
from daemon.learning.readings import reading
from daemon.messages import Probed, Watched
from daemon.store import SampleReader, StoredSample
from engines import PredictEngine, Weights, WeightsError, is_out_of_memory

log = logging.getLogger(__name__)


@dataclass
class _Watching:
    version: Weights
    previous: Weights
    through_seq: int
    n: int = 0
    correct: int = 0
    previous_correct: int = 0
    lost: int = 0
    counted: set[int] = field(default_factory=set)  # readings

    def report(self) -> Probed:
        return Probed(
            self.version.version,
            self.n,
            self.correct,
            self.previous_correct,
            self.lost,
            self.through_seq,
        )


class Probe:
    """Predicts for the server's probation.

    Args:
        reader: The samples.
        open_predict: Opens the engine that predicts.
        load: A version's weights by number and digest.
    """

    def __init__(
        self,
        reader: SampleReader,
        open_predict: Callable[[Weights], PredictEngine],
        load: Callable[[int, str], Weights],
    ) -> None:
        self._reader = reader
        self._open_predict = open_predict
        self._load = load
        self._watching: dict[int, _Watching] = {}

    def watch(self, trials: list[Watched]) -> None:
        """Watch these from now on, and nothing else.

        Counts go on of those watched already, if they are still compared with the same version.
        """
        watching = {}
        for trial in trials:
            number = trial.version[0]
            found = self._watching.get(number)
            try:
                if found is None or found.previous.version != trial.previous[0]:
                    found = self._begun(trial)
            except (WeightsError, OSError) as error:
                log.error("version is not watched", extra={"version": number, "why": str(error)})
                continue
            watching[number] = found
        self._watching = watching

    def _begun(self, trial: Watched) -> _Watching:
        version, previous = self._load(*trial.version), self._load(*trial.previous)
        # A learner that begins again from an older checkpoint meets samples a second time.
        through = max(trial.through_seq, version.last_seq, previous.last_seq)
        return _Watching(version, previous, through)

    def look(
        self, next_block: Callable[[], tuple[list[StoredSample], int]], on_part: OnPart
    ) -> list[Probed]:
        """Predict the block that is learned next, and say how each version on probation stands.

        Args:
            next_block: Reads it, and says through which number it is: as the learner would, so
                that what it passes over is not met here.
            on_part: Called after each part of what is predicted.

        Returns:
            One report for each version that had something to predict.
        """
        if not self._watching:
            return []
        samples, through = next_block()
        reports: list[Probed] = []
        for watching in self._watching.values():
            fresh: dict[int, StoredSample] = {}
            for sample in samples:
                if sample.seq > watching.through_seq:
                    fresh.setdefault(reading(sample), sample)
            for counted in watching.counted & fresh.keys():
                del fresh[counted]
            if not fresh:
                continue
            batch, labels = self._reader.batch([*fresh.values()]), self._reader.labels()
            try:
                right, previous_right = (
                    right_answers(weights, self._open_predict, batch, labels, on_part)
                    for weights in (watching.version, watching.previous)
                )
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                log.warning("too little memory to watch a version; this block is left out")
                return reports
            watching.n += len(fresh)
            watching.correct += int(right.sum())
            watching.previous_correct += int(previous_right.sum())
            watching.lost += int((previous_right & ~right).sum())
            watching.counted |= fresh.keys()
            watching.through_seq = through
            reports.append(watching.report())
        return reports
