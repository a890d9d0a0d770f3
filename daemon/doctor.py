"""`ffedge doctor`: looks at everything that the daemon stands on, one line each.

It changes nothing: what it writes are temporary files that it removes, and a daemon may run beside
it. `FAIL` is for what will not work; a check that breaks is a failure too, and the next one runs.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil

from daemon import __version__
from daemon.config import Settings
from daemon.config_warnings import config_warnings
from daemon.doctor_board import Board, check_board
from daemon.doctor_host import check_host
from daemon.doctor_service import check_service, read_settings
from engines import (
    EngineUnavailableError,
    Finding,
    open_train_engine,
    probe_machine,
    probe_predict_engines,
)
from models import ModelSpec

# Small, so that an engine which takes minutes to build a network takes seconds here.
_PROBE_SPEC = ModelSpec("mlp", (64,), 10, (64, 64))


def examine(config: Path, board: Board) -> Iterator[Finding]:
    """Every check, each as soon as it is done.

    Args:
        config: The configuration file.
        board: The machine.
    """
    settings, finding = read_settings(config)
    directory = settings.store.directory if settings else None
    groups: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("board", lambda: check_board(board)),
        ("host", lambda: check_host(directory)),
        ("torch", lambda: probe_machine(board=board.is_jetson)),
        ("engines", lambda: _probe_engines(settings, board)),
        ("learner", lambda: _probe_learner(settings)),
        ("service", lambda: check_service(settings, os.environ, board)),
    ]
    yield finding
    if settings:
        for text in config_warnings(settings, psutil.virtual_memory().total):
            yield Finding("settings", "WARN", text)
    for name, check in groups:
        try:
            yield from check()
        except Exception as error:  # noqa: BLE001 - a broken check must not hide the others
            yield Finding(name, "FAIL", f"the check broke: {type(error).__name__}: {error}")


def _probe_engines(settings: Settings | None, board: Board) -> list[Finding]:
    classes = tuple(range(_PROBE_SPEC.max_classes))
    first, second = (
        open_train_engine(_PROBE_SPEC, seed=seed).export(
            classes=classes, version=seed + 1, parent=None, last_seq=0
        )
        for seed in (0, 1)
    )
    wanted = settings.server.engine if settings else "auto"
    return probe_predict_engines((first, second), wanted=wanted, board=board.is_jetson)


def _probe_learner(settings: Settings | None) -> Iterator[Finding]:
    """Whether learning can run as the settings want it."""
    if settings is None:
        return
    learning = settings.learner
    with tempfile.TemporaryDirectory(prefix="ffedge-doctor-") as folder:
        try:
            engine = open_train_engine(
                _PROBE_SPEC,
                seed=0,
                recipe=learning.recipe(),
                device=learning.device,
                cache=Path(folder),
            )
        except EngineUnavailableError as error:
            yield Finding("learner", "FAIL", f"learner.device or learner.fusion: {error}")
        else:
            yield Finding("learner", "PASS", engine.description)


def summarize(findings: list[Finding]) -> dict[str, Any]:
    """The machine-readable result."""
    verdicts = [finding.verdict for finding in findings]
    return {
        "version": __version__,
        "ok": "FAIL" not in verdicts,
        "counts": {kind: verdicts.count(kind) for kind in ("PASS", "WARN", "FAIL", "SKIP")},
        "findings": [vars(finding) for finding in findings],
    }


def run_doctor(config: Path, *, as_json: bool, say: Callable[[str], None]) -> int:
    """Examine, say what was found, and return the exit code: 1 with a failure, else 0."""
    findings = []
    for finding in examine(config, Board()):
        say(str(finding))
        findings.append(finding)
    summary = summarize(findings)
    if as_json:
        say(json.dumps(summary))
    return 0 if summary["ok"] else 1
