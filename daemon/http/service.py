"""What the routes work with."""

from __future__ import annotations

from dataclasses import dataclass

from daemon.jobs import JobBook
from daemon.power import PowerMonitor
from daemon.serving import ServingSlot
from daemon.store import SampleStore, Scrub
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
        scrub: Checks them.
        slot: Answers predictions.
        versions: Lists versions.
        jobs: Lists training jobs.
        supervisor: Runs the learner.
        telemetry: Counts.
        power: Knows what the board takes.
    """

    spec: ModelSpec
    store: SampleStore
    scrub: Scrub
    slot: ServingSlot
    versions: VersionStore
    jobs: JobBook
    supervisor: Supervisor
    telemetry: Telemetry
    power: PowerMonitor
