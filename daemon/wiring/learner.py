"""The learner process's objects, built and wired together."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import sys

from daemon.config import Settings
from daemon.directory_lock import lock_directory
from daemon.interpreter import loading
from daemon.learning.learner import Learner
from daemon.learning.pace import lower_priority
from daemon.learning.probe import Probe
from daemon.learning.process import LearnerProcess
from daemon.learning.reports import COMPILE_SECONDS
from daemon.messages import MISCONFIGURED, OUT_OF_MEMORY, STORAGE, Busy, send
from daemon.serving.versions import VersionStore
from daemon.store import SampleReader
from daemon.supervision.child import end_with_parent
from engines import (
    EngineUnavailableError,
    TrainEngine,
    WeightsError,
    is_out_of_memory,
    limit_threads,
    open_predict_engine,
    open_train_engine,
)

log = logging.getLogger(__name__)


def run_learner(settings: Settings) -> None:
    """Learn until the server closes our input; exit codes are in `daemon/messages.py`."""
    end_with_parent()
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
        if learning.may_compile:
            send(reports, Busy("the training engine is opened", COMPILE_SECONDS))
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
        reader = SampleReader(directory, spec, _report_damage)
        versions = VersionStore(directory / "versions", keep=settings.gate.keep_versions)
        with loading():
            # By name: it is in memory, and knows the canary.
            open_predict = open_predict_engine("torch", device=learning.device).open
            learner = Learner(
                spec,
                open_engine,
                open_predict,
                reader,
                learning,
                holdout_samples=settings.gate.max_samples,
                follow_drift=settings.gate.follow_drift,
                checkpoint=directory / "checkpoint.safetensors",
            )
        process = LearnerProcess(
            learner,
            Probe(reader, open_predict, versions.verify),
            versions,
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
    except (WeightsError, OSError) as error:
        log.error("learner gives up", extra={"why": str(error)})
        sys.exit(1)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        log.exception("learner is out of memory")
        sys.exit(OUT_OF_MEMORY)


def _report_damage(seq: int) -> None:
    log.error("a sample is damaged on disk and is not learned", extra={"seq": seq})
