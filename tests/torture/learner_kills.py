"""F11 and F13: the learner is killed, stopped, or out of memory at random moments, under load.

Every time: no prediction fails, what was acknowledged is stored, the reason is told right, and
another learner takes a step. In a full run that is within 10 s of a kill or a burst of memory; a
learner that is stopped has first to be missed, which takes `hang_seconds`.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from tests.running import RunningDaemon, T, wait_for
from tests.torture.ledger import FEATURES, Ledger, audit
from tests.torture.memory_group import memory_group, within
from tests.torture.steady import SteadyLoad

AGAIN_SECONDS = 10.0
HANG_SECONDS = 3.0
# To ask for the metrics costs the daemon some milliseconds.
_LOOK_SECONDS = 0.1
_START_SECONDS = 120.0
# Faults after which the next learner is hit while it starts.
_EARLY = 0.2
_LIMIT_BYTES = 1 << 30
_ROOT = Path(__file__).parents[2]
_MORE = f'hang_seconds = {HANG_SECONDS}\n[power]\nprovider = "none"\n'

# What is done to a learner, and the reason that has to be told for its end.
KILL, FAULT, STOP, BURST = (signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP, signal.SIGUSR1)
_REASONS = {KILL: "killed", FAULT: "crash", STOP: "hang", BURST: "oom"}


@dataclass
class LearnerKilled:
    """What it showed.

    Args:
        kills: SIGKILL and SIGSEGV, `early` of them while the learner was starting.
        stops: SIGSTOP.
        ooms: Kills by the kernel for memory.
        acknowledged: Samples in the ledger.
        again_seconds: From a kill, or a burst of memory, to the next learner's first step.
        stop_seconds: The same from a stop, the time to miss it included.
        predict_seconds: From each prediction's planned moment to its answer.
        broken: Promises that were not kept.
    """

    kills: int = 0
    early: int = 0
    stops: int = 0
    ooms: int = 0
    acknowledged: int = 0
    predictions: int = 0
    again_seconds: list[float] = field(default_factory=list)
    stop_seconds: list[float] = field(default_factory=list)
    predict_seconds: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def harm_learner(
    folder: Path,
    faults: Sequence[signal.Signals],
    seed: int,
    *,
    bugs: Sequence[str] = (),
    patience: float = 60.0,
    progress: Callable[[str], None] = lambda text: None,
) -> LearnerKilled:
    """One daemon, one learner after the other.

    Args:
        folder: For all that is written.
        faults: What is done to them, in this order.
        seed: Of moments.
        bugs: Names of `tests.torture.bugs`.
        patience: After so many seconds a learner is not coming back at all.
        progress: Told a line from time to time.
    """
    result = LearnerKilled()
    program = [sys.executable, "-m", "tests.torture.ballooning", *bugs, "--"]
    with ExitStack() as stack:
        if BURST in faults:
            program = [*within(stack.enter_context(memory_group(_LIMIT_BYTES))), *program]
        path = {"PYTHONPATH": str(_ROOT)}
        daemon = RunningDaemon(folder, FEATURES, _MORE, environment=path, program=program)
        ledger = stack.enter_context(closing(Ledger(folder / "ledger")))
        with daemon, SteadyLoad(daemon.client.base_url.port or 0, ledger) as load:
            victims = Victims(daemon, random.Random(seed), patience)
            try:
                wait_for(lambda: victims.steps() > 0, "the first step", _START_SECONDS)
                for number, fault in enumerate(faults):
                    victims.harm(fault, result)
                    result.broken += _unkept(daemon, load)
                    if result.broken:
                        break
                    if number % 10 == 9:
                        progress(f"{number + 1} of {len(faults)}, {result.again_seconds[-1:]} s")
            except AssertionError as error:
                result.broken.append(str(error))
            result.acknowledged = load.acknowledged
        result.broken += load.failed + load.wrong
        result.predict_seconds = load.predict_seconds
        result.predictions = len(load.predict_seconds)
        result.broken += audit(daemon.store, ledger.entries()).broken()
    return result


def _unkept(daemon: RunningDaemon, load: SteadyLoad) -> list[str]:
    acknowledged = load.acknowledged  # before what is stored is asked
    stored = daemon.metric("ffedge_samples_stored") or 0.0
    lost = [] if stored >= acknowledged else [f"{acknowledged} acknowledged, {stored:.0f} stored"]
    return [*load.failed, *load.wrong, *lost]


class Victims:
    """The learners of one daemon."""

    def __init__(self, daemon: RunningDaemon, moment: random.Random, patience: float) -> None:
        self._daemon, self._moment, self._patience = daemon, moment, patience

    def harm(self, fault: signal.Signals, result: LearnerKilled) -> None:
        """Hit the learner at a random moment, and wait until another has taken a step."""
        early = fault in (KILL, FAULT) and self._moment.random() < _EARLY
        if early:  # one that is started because of this
            self._send(KILL)
            self._pause(1.5)
        else:
            self._pause(2.0)
        hit = time.monotonic()
        self._send(fault)
        steps = self.steps()
        self._wait(lambda: self.steps() > steps, "a step")
        seconds = time.monotonic() - hit
        (result.stop_seconds if fault == STOP else result.again_seconds).append(seconds)
        result.early += early
        result.kills += (fault in (KILL, FAULT)) + early
        result.stops += fault == STOP
        result.ooms += fault == BURST

    def steps(self) -> float:
        """Taken by all learners so far."""
        return self._daemon.metric("ffedge_learn_steps_total") or 0.0

    def _send(self, fault: signal.Signals) -> None:
        """Do it, and wait until the end was told, which follows all that the learner has said."""
        reason = f'ffedge_learner_restarts_total{{reason="{_REASONS[fault]}"}}'
        told, all_told = self._daemon.metric(reason), self._daemon.restarts()
        victim = self._wait(self._daemon.learner_pid, "a learner")
        os.kill(victim, fault)
        self._wait(lambda: self._daemon.restarts() > all_told, f"an end by {fault.name}")
        now = self._daemon.metric(reason)
        assert now == (told or 0.0) + 1, f"an end by {fault.name} was not told as {reason}"
        self._wait(lambda: self._daemon.learner_pid() != victim, "another learner")

    def _pause(self, most: float) -> None:
        time.sleep(self._moment.uniform(0.05, most))

    def _wait(self, probe: Callable[[], T | None], what: str) -> T:
        return wait_for(probe, what, self._patience, every=_LOOK_SECONDS)
