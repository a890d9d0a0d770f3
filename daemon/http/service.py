"""What the routes work with."""

from __future__ import annotations

from dataclasses import dataclass

from daemon.governor.governor import Governor
from daemon.ingest.kept_predictions import KeptPredictions
from daemon.power import PowerMonitor
from daemon.serving.delayed_scores import DelayedScores
from daemon.serving.slot import ServingSlot
from daemon.serving.swaps import Swaps
from daemon.serving.versions import VersionStore
from daemon.store import SampleStore, Scrub
from daemon.supervision.jobs import JobBook
from daemon.supervision.pulse import PredictThread
from daemon.supervision.supervisor import Supervisor
from daemon.telemetry import Telemetry
from models import ModelSpec


@dataclass(frozen=True)
class Service:
    """What the routes work with.

    Args:
        spec: The network.
        store: Keeps samples.
        scrub: Checks them.
        slot: Answers predictions.
        predicting: The thread that computes them: off the event loop, so that a slow one does not
            hold up ingest.
        versions: Lists versions.
        swaps: Changes which of them serves.
        jobs: Lists training jobs.
        supervisor: Runs the learner.
        telemetry: Counts.
        power: Knows what the board takes.
        governor: Slows and pauses learning.
        kept: Predictions that may be labelled later.
        delayed: Scores them when they are.
    """

    spec: ModelSpec
    store: SampleStore
    scrub: Scrub
    slot: ServingSlot
    predicting: PredictThread
    versions: VersionStore
    swaps: Swaps
    jobs: JobBook
    supervisor: Supervisor
    telemetry: Telemetry
    power: PowerMonitor
    governor: Governor
    kept: KeptPredictions
    delayed: DelayedScores
