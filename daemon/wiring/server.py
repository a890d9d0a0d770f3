"""The server's objects, built and wired together."""

from __future__ import annotations

import logging
import os
import signal
import socket
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, disable_created_metrics

from daemon.config import Settings
from daemon.directory_lock import lock_directory
from daemon.doctor_board import Board
from daemon.durable import remove_leftovers
from daemon.errors import ConfigError, StoreError
from daemon.governor.controller import Controller
from daemon.governor.governor import Governor
from daemon.governor.latency import RecentLatencies
from daemon.governor.operator_pause import OperatorPause
from daemon.governor.readings import Machine
from daemon.http import (
    Connections,
    Health,
    NotifiedServer,
    Service,
    create_app,
    server_config,
)
from daemon.http import (
    Limits as ConnectionLimits,
)
from daemon.ingest.kept_predictions import KeptPredictions
from daemon.interpreter import settle_interpreter
from daemon.notify import Notifier
from daemon.power import PowerMonitor, reader_command
from daemon.power_log import PowerLog
from daemon.power_metrics import HostMetrics, PowerMetrics
from daemon.serving.delayed_scores import DELAYED, VERSIONS_KEPT, DelayedScores
from daemon.serving.promotion import Promotion
from daemon.serving.slot import Served, ServingSlot
from daemon.serving.swaps import Swaps
from daemon.serving.versions import VersionStore
from daemon.store import Limits, SampleStore, Scrub, find_features
from daemon.store_metrics import StoreMetrics
from daemon.supervision.jobs import JOBS, JOBS_KEPT, JobBook
from daemon.supervision.pulse import PredictThread, Pulse
from daemon.supervision.supervisor import Supervisor
from daemon.telemetry import Telemetry
from engines import (
    EngineFailedError,
    EngineUnavailableError,
    Weights,
    WeightsError,
    open_predict_engine,
)
from engines.python_child import python_command
from engines.untrained import untrained_weights, untrained_weights_by_child

log = logging.getLogger(__name__)
_GRACE_SECONDS = 10
# Requests in a row that the engine fails before the service manager is to start us again.
_MOST_FAILURES = 10
_DAY_SECONDS = 86400.0


def run_server(settings: Settings, config: Path, listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        settings: All of them.
        config: The file that they are from, which the learner reads, too.
        listener: Bound by `listen`.
    """
    notifier = Notifier.take(os.environ, os.getpid())
    command = python_command("daemon", "learner", "--config", str(config))
    lock_directory(settings.store.directory, wait=False)
    with notifier.starting("opening the store and the version that serves"):
        service = build_service(settings, command)
    host, port = listener.getsockname()[:2]
    address = f"http://{host}:{port}"

    def status() -> str:
        version = service.slot.current.weights.version
        learner = "up" if service.supervisor.up else "down"
        return f"serves version {version} of {service.spec.name} at {address}; learner {learner}"

    http, store, predicting = settings.server, service.store, service.predicting
    pulses = [
        Pulse(store.tick),
        Pulse(lambda: predicting.submit(int), lambda: predicting.done),
    ]

    def well(seconds: float) -> bool:
        # All are asked, whatever one says. Some faults of a GPU stay until the process ends.
        beats = [pulse.beats(seconds) for pulse in pulses]
        engine = service.slot.failures < _MOST_FAILURES
        learning = service.supervisor.well(seconds) and service.governor.well(seconds)
        return all(beats) and engine and learning

    connections = Connections(
        ConnectionLimits(
            header_seconds=http.header_seconds,
            body_seconds=http.body_seconds,
            idle_seconds=http.idle_seconds,
            connections=http.connections,
            address_connections=http.address_connections,
            ingest_requests=http.ingest_requests,
        ),
        service.telemetry.refused,
        lambda: store.queue_depth >= store.queue_limit,
    )
    service.telemetry.open_connections.set_function(lambda: len(connections))
    app = create_app(service, on_start=lambda: log.info("listening", extra={"address": address}))
    server = NotifiedServer(
        server_config(app, connections, _GRACE_SECONDS),
        notifier,
        Health(well, status),
        connections,
    )
    settle_interpreter()
    # uvicorn raises the signal again once it has stopped; by then it has been obeyed.
    signal.signal(signal.SIGTERM, server.handle_exit)
    signal.signal(signal.SIGINT, server.handle_exit)
    server.run(sockets=[listener])
    log.info("ffedge stopped")


def listen(settings: Settings) -> socket.socket:
    """Bind before anything is started, so that a port in use is one clear error."""
    host, port = settings.server.host, settings.server.port
    try:
        listener = socket.create_server((host, port), backlog=512)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise ConfigError(
            f"cannot listen on {host} port {port} ({why}): set server.host or "
            "server.port, or FFEDGE_SERVER__PORT"
        ) from error
    if not listener.getsockname()[0].startswith("127."):
        log.warning("listening beyond this machine without authentication", extra={"host": host})
    return listener


def build_service(settings: Settings, learner_command: list[str]) -> Service:
    """The daemon's parts, wired; its store is open, its supervisor not yet started.

    Args:
        settings: All of them.
        learner_command: Command line of the learner process.

    Raises:
        ConfigError: The store holds versions of another network, or no engine serves them.
        StoreError: The store, or the manifest in it, cannot be used.
    """
    spec, directory = settings.model.spec(), settings.store.directory
    disable_created_metrics()  # type: ignore[no-untyped-call]
    telemetry = Telemetry(CollectorRegistry())
    try:
        engine = open_predict_engine(
            settings.server.engine,
            threads=settings.server.threads,
            cache=directory / "engines",
            device=settings.server.device,
        )
    except EngineUnavailableError as error:
        raise ConfigError(
            f'server.engine or server.device: {error}; set them to "auto", or see docs/jetson.md'
        ) from error
    make = untrained_weights if engine.name == "torch" else untrained_weights_by_child

    def untrained(number: int) -> Weights:
        return make(spec, seed=settings.learner.seed, version=number)

    with ExitStack() as undo:
        store = SampleStore(
            directory,
            max_classes=spec.max_classes,
            holdout_ratio=settings.store.holdout_ratio,
            queue_samples=settings.store.queue_samples,
            queue_bytes=settings.store.queue_bytes,
            drop_duplicates=settings.store.duplicates == "drop",
            limits=Limits(
                max_samples=settings.store.max_samples,
                max_bytes=settings.store.max_bytes,
                when_full=settings.store.when_full,
                max_age_seconds=settings.store.max_age_days * _DAY_SECONDS,
                max_class_samples=settings.store.max_class_samples,
            ),
            on_commit=telemetry.committed,
        )
        undo.callback(store.close)
        remove_leftovers(directory)
        telemetry.watch_store(store)
        scrub = Scrub(
            store.path,
            lambda seqs: store.retire_damaged(seqs).result(),
            rows_per_second=settings.store.scrub_rows_per_second,
        )
        telemetry.registry.register(StoreMetrics(store, scrub))
        try:
            versions = VersionStore(directory / "versions", keep=settings.gate.keep_versions)
            weights = versions.start(untrained)
        except (WeightsError, OSError) as error:
            raise StoreError(str(error)) from error
        if weights.spec.input_shape != spec.input_shape or store.classes > spec.max_classes:
            raise ConfigError(
                f"{directory} holds samples of shape {[*weights.spec.input_shape]} in "
                f"{store.classes} classes, [model] says input_shape = {[*spec.input_shape]} and "
                f"max_classes = {spec.max_classes}: choose another store.directory, or change it"
            )
        if weights.spec != spec:
            log.warning("[model] has changed: learning begins again from the stored samples")
            weights = versions.start_again(untrained)
        store.learned(weights.last_seq)  # until the learner says more
        try:
            slot = ServingSlot(Served(weights, engine.open(weights)))
        except (EngineUnavailableError, EngineFailedError) as error:
            raise ConfigError(f"server.engine: {error}") from error
        log.info("engine chosen", extra={"engine": engine.name, "reason": engine.reason})
        telemetry.served_by(engine.name)
        past = [] if store.unavailable else store.records(JOBS, JOBS_KEPT)
        reading = settings.power
        power = PowerMonitor(reader_command(reading), reading.interval_seconds, PowerLog(directory))

        def job_ended(number: int, job: dict[str, Any]) -> None:
            accepted = job["gate"] is not None and job["gate"]["decision"] == "accepted"
            power.learning_ended(job["samples"], accepted=accepted)
            store.record_when_possible(JOBS, number, job)

        scored = [] if store.unavailable else store.records(DELAYED, VERSIONS_KEPT)
        delayed = DelayedScores(
            telemetry,
            lambda number, counts: store.record_when_possible(DELAYED, number, counts),
            scored,
        )

        def job_given(number: int, job: dict[str, Any]) -> Future[None] | None:
            kept = store.record_when_possible(JOBS, number, job)
            return None if store.unavailable else kept

        jobs = JobBook(past, job_ended, power.learning_began, power.learning_joules, job_given)
        swaps = Swaps(versions, slot, store, engine, settings.gate, telemetry)
        promotion = Promotion(versions, swaps, slot, store, engine, settings.gate, telemetry)
        supervisor = Supervisor(
            learner_command,
            promotion,
            swaps,
            jobs,
            store,
            telemetry,
            first_samples=settings.learner.block_samples,
            hang_seconds=settings.learner.hang_seconds,
        )
        latencies = RecentLatencies()
        named = {"auto": Board().is_jetson, "none": False}.get(reading.provider, True)

        def hold(held: bool) -> None:
            if held:
                power.learning_held()
            elif jobs.running:
                power.learning_began()

        governor = Governor(
            Controller(settings.governor, telemetry_expected=named),
            Machine(
                power,
                latencies,
                lambda: supervisor.pid,
                lambda: supervisor.worked,
                lambda: jobs.running,
            ),
            OperatorPause(directory),
            latencies,
            supervisor.pace,
            telemetry,
            hold,
            why_down=lambda: supervisor.why_down,
            why_held=lambda: supervisor.paused,
            on_memory=lambda short: supervisor.memory(short=short),
        )
        processes = {"learner": lambda: supervisor.pid, "power_reader": lambda: power.pid}
        telemetry.registry.register(PowerMetrics(power))
        telemetry.registry.register(HostMetrics(processes))
        undo.pop_all()
    kept = KeptPredictions(
        by_default=settings.server.keep_predictions,
        stored=lambda prediction_id: find_features(store.path, prediction_id),
    )
    return Service(
        spec,
        store,
        scrub,
        slot,
        PredictThread(),
        versions,
        swaps,
        jobs,
        supervisor,
        telemetry,
        power,
        governor,
        kept,
        delayed,
    )
