"""The `ffedge` command: the one place where objects are built and wired together."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sqlite3
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon import __version__
from daemon.address import UrlOption, daemon_url
from daemon.config import Settings, load_settings
from daemon.directory_lock import lock_directory
from daemon.durable import remove_leftovers
from daemon.errors import ConfigError, FfedgeError, StoreError
from daemon.logs import configure_logs
from daemon.transfer.command_line import add_transfer_commands

if TYPE_CHECKING:
    from daemon.http import Service
    from engines import TrainEngine

log = logging.getLogger(__name__)
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A daemon that learns on the device while it serves.",
)
add_transfer_commands(app)
ConfigOption = Annotated[Path, typer.Option(help="Configuration file (TOML).")]
_GRACE_SECONDS = 10
# Requests in a row that the engine fails before the service manager is to start us again.
_MOST_FAILURES = 10
_DAY_SECONDS = 86400.0


def main() -> None:
    """Run the command line; a known error is one line on standard error and exit code 2."""
    try:
        app()
    except FfedgeError as error:
        sys.stderr.write(f"ffedge: {error}\n")
        sys.exit(2)


@app.command()
def serve(config: ConfigOption = Path("ffedge.toml")) -> None:
    """Take samples, learn them, answer predictions, until SIGTERM or Ctrl-C."""
    settings = load_settings(config)
    configure_logs(settings.log.level, settings.log.format)
    log.info(
        "ffedge starts",
        extra={"version": __version__, "settings": settings.model_dump(mode="json")},
    )
    for warning in settings.warnings():
        log.warning(warning)
    with _listen(settings) as listener:
        _serve(settings, config, listener)


@app.command(hidden=True)
def learner(config: ConfigOption = Path("ffedge.toml")) -> None:
    """The learner process; started by `serve`, never by hand."""
    from daemon.learner import Learner, LearningError
    from daemon.learner_process import LearnerProcess, lower_priority, report_damage
    from daemon.messages import MISCONFIGURED, STORAGE
    from daemon.store import SampleReader
    from daemon.versions import VersionStore
    from engines import (
        EngineUnavailableError,
        WeightsError,
        limit_threads,
        open_predict_engine,
        open_train_engine,
    )

    settings = load_settings(config)
    configure_logs(settings.log.level, settings.log.format)
    # Ctrl-C, and a service manager's SIGTERM, reach the whole group; the server ends us in its own
    # time by closing our input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Reports own the real standard output; whatever a library prints goes to the log.
    reports = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    spec, directory, learning = settings.model.spec(), settings.store.directory, settings.learner
    lower_priority(learning.niceness)
    limit_threads(learning.threads)
    lock_directory(directory / "versions", wait=True)  # the server holds that of the store
    # Compiled chains outlive a restart. By default they lie in /tmp, which a unit may not share.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((directory / "compiled").resolve()))

    def open_engine() -> TrainEngine:
        engine = open_train_engine(
            spec,
            seed=learning.seed,
            recipe=learning.recipe(),
            device=learning.device,
            gpu_memory_ratio=learning.gpu_memory_ratio,
            cache=directory / "compiled",
        )
        log.info("training engine chosen", extra={"engine": engine.description})
        return engine

    try:
        process = LearnerProcess(
            Learner(
                spec,
                open_engine,
                # By name: it is in memory, and knows the canary.
                open_predict_engine("torch", device=learning.device).open,
                SampleReader(directory, spec, report_damage),
                learning,
                holdout_samples=settings.gate.max_samples,
                checkpoint=directory / "checkpoint.safetensors",
            ),
            VersionStore(directory / "versions", keep=settings.gate.keep_versions),
            learning,
            # Unbuffered: a thread waits in it; a buffer's lock would stop the interpreter's exit.
            open(sys.stdin.fileno(), "rb", buffering=0, closefd=False),  # noqa: SIM115
            reports,
        )
        process.run()
    except EngineUnavailableError as error:
        log.error(
            "learner cannot run as configured",
            extra={"why": f"learner.device or learner.fusion: {error}"},
        )
        sys.exit(MISCONFIGURED)
    except sqlite3.Error as error:
        log.error("learner cannot read the samples", extra={"why": str(error)})
        sys.exit(STORAGE)
    except (LearningError, WeightsError, OSError) as error:
        log.error("learner gives up", extra={"why": str(error)})
        sys.exit(1)


@app.command()
def demo(
    keep: Annotated[bool, typer.Option(help="Leave the daemon running at the end.")] = False,
    json: Annotated[bool, typer.Option(help="Print one JSON object as the last line.")] = False,
) -> None:
    """Stream 1,797 handwritten digits into a fresh daemon and watch it learn."""
    try:
        from daemon.demo import run_demo
    except ImportError as error:
        todo = "in ffedge's checkout run make setup, or pip install '.[demo]'"
        raise ConfigError(f"the demo needs {error.name}: {todo}") from error
    sys.exit(run_demo(keep=keep, as_json=json))


@app.command()
def status(
    url: UrlOption = None,
    json: Annotated[bool, typer.Option(help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Show what a running daemon does and what the board takes."""
    from daemon.status import show_status

    show_status(daemon_url(url), as_json=json)


@app.command()
def doctor(
    config: ConfigOption = Path("ffedge.toml"),
    json: Annotated[bool, typer.Option(help="Print one JSON object as the last line.")] = False,
) -> None:
    """Look at everything that the daemon stands on; exit code 1 when something will not work."""
    from daemon.doctor import run_doctor

    sys.exit(run_doctor(config, as_json=json, say=typer.echo))


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _listen(settings: Settings) -> socket.socket:
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
    from prometheus_client import CollectorRegistry, disable_created_metrics

    from daemon.http import Service
    from daemon.ingest.kept_predictions import KeptPredictions
    from daemon.jobs import JOBS, JOBS_KEPT, JobBook
    from daemon.power import PowerMonitor, reader_command
    from daemon.power_log import PowerLog
    from daemon.power_metrics import HostMetrics, PowerMetrics
    from daemon.promotion import Promotion
    from daemon.serving import Served, ServingSlot
    from daemon.store import Limits, SampleStore, Scrub, find_features
    from daemon.store_metrics import StoreMetrics
    from daemon.supervisor import Supervisor
    from daemon.telemetry import Telemetry
    from daemon.versions import VersionStore
    from engines import (
        EngineFailedError,
        EngineUnavailableError,
        Weights,
        WeightsError,
        open_predict_engine,
    )
    from engines.untrained import untrained_weights, untrained_weights_by_child

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

        jobs = JobBook(past, job_ended, power.learning_began)
        promotion = Promotion(versions, slot, store, engine, settings.gate, telemetry)
        supervisor = Supervisor(
            learner_command,
            promotion,
            versions,
            jobs,
            store,
            telemetry,
            first_samples=settings.learner.block_samples,
        )
        processes = {"learner": lambda: supervisor.pid, "power_reader": lambda: power.pid}
        telemetry.registry.register(PowerMetrics(power))
        telemetry.registry.register(HostMetrics(processes))
        undo.pop_all()
    kept = KeptPredictions(
        by_default=settings.server.keep_predictions,
        stored=lambda prediction_id: find_features(store.path, prediction_id),
    )
    return Service(spec, store, scrub, slot, versions, jobs, supervisor, telemetry, power, kept)


def _serve(settings: Settings, config: Path, listener: socket.socket) -> None:
    from daemon.http import (
        Connections,
        Health,
        Limits,
        NotifiedServer,
        create_app,
        server_config,
    )
    from daemon.interpreter import settle_interpreter
    from daemon.notify import Notifier
    from engines.python_child import python_command

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

    def well(seconds: float) -> bool:
        # Some faults of a GPU stay until the process ends.
        return service.slot.failures < _MOST_FAILURES and service.supervisor.well(seconds)

    http, store = settings.server, service.store
    connections = Connections(
        Limits(
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


if __name__ == "__main__":
    main()
