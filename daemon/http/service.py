"""What the routes work with."""

from __future__ import annotations

from dataclasses import dataclass

from daemon.ingest.kept_predictions import KeptPredictions
from daemon.jobs import JobBook
from daemon.power import PowerMonitor
from daemon.serving import ServingSlot
from daemon.store import SampleStore
from daemon.supervisor import Supervisor
from daemon.telemetry import Telemetry
from daemon.versions import VersionStore
from models import ModelSpec


@dataclass(frozen=True)
class Service:
    """What the routes work with.

    Args:
        spec: The network.
        store: Keeps samples.
        slot: Answers predictions.
        versions: Lists versions.
        jobs: Lists training jobs.
        supervisor: Runs the learner.
        telemetry: Counts.
        power: Knows what the board takes.
        kept: Predictions that may be labelled later.
    """

    spec: ModelSpec
    store: SampleStore
    slot: ServingSlot
    versions: VersionStore
    jobs: JobBook
    supervisor: Supervisor
    telemetry: Telemetry
    power: PowerMonitor
    kept: KeptPredictions
