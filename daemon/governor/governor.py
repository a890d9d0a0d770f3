"""The governor's thread: each second it reads, judges, and tells the learner its pace."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import threading
import time
from collections.abc import Callable

from daemon.governor.controller import Controller, State
from daemon.governor.latency import RecentLatencies
from daemon.governor.operator_pause import OperatorPause
from daemon.governor.readings import Machine, Readings
from daemon.governor.repeated_failure import RepeatedFailure
from daemon.governor.rules import Reason
from daemon.messages import Pace
from daemon.telemetry import Telemetry

log = logging.getLogger(__name__)

PERIOD_SECONDS = 1.0
_UNGOVERNED = State(0.0, "paused", (Reason("governor", "the governor fails: see the log"),))


class Governor:
    """Slows and pauses learning.

    Args:
        controller: Judges.
        machine: Reads.
        operator_pause: Whether an operator wants no learning.
        latencies: Where predictions say how long they took.
        tell: Tells the learner, this one and those to come.
        telemetry: Shows the state.
        on_hold: Called when learning is paused, and when it goes on.
        why_down: Why no learner is up and heard; None: one is.
        why_held: Why one that is up learns nothing by itself; None: it does.
        on_memory: Called after each period's `tell`: whether less memory is free than must be.
        local_time: The time of day here.
    """

    def __init__(
        self,
        controller: Controller,
        machine: Machine,
        operator_pause: OperatorPause,
        latencies: RecentLatencies,
        tell: Callable[[Pace], None],
        telemetry: Telemetry,
        on_hold: Callable[[bool], object] = lambda held: None,
        *,
        why_down: Callable[[], str | None] = lambda: None,
        why_held: Callable[[], str | None] = lambda: None,
        on_memory: Callable[[bool], object] = lambda short: None,
        local_time: Callable[[], datetime.datetime] = datetime.datetime.now,
    ) -> None:
        self.latencies = latencies
        self._controller = controller
        self._machine = machine
        self._operator_pause = operator_pause
        self._tell = tell
        self._telemetry = telemetry
        self._on_hold = on_hold
        self._why_down = why_down
        self._why_held = why_held
        self._on_memory = on_memory
        self._local_time = local_time
        self._readings_fail = RepeatedFailure("read this machine")
        self._periods_fail = RepeatedFailure("judge a period")
        self._governed_at = time.monotonic()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="governor")
        self._state = controller.state(local_time(), self._operator())
        self._period()

    @property
    def state(self) -> State:
        """What learning may do now, and whether the learner can; `down`: there is none."""
        state, word, why = self._state, "down", self._why_down()
        if why is None:
            word, why = "paused", self._why_held()
        if why is None or state.state == "paused":
            return state
        reasons = (Reason("learner", why), *state.reasons)
        return dataclasses.replace(state, state=word, reasons=reasons)

    def start(self) -> None:
        """Go on period after period."""
        self._thread.start()

    def stop(self) -> None:
        """Leave the learner at its last pace."""
        self._stopping.set()
        self._thread.join()

    def pause(self, reason: str, seconds: float | None) -> bool:
        """An operator wants no learning; in force when this returns.

        Args:
            reason: An operator's words.
            seconds: For how long; None: until `resume`.

        Returns:
            Whether the pause would outlive the daemon.
        """
        with self._lock:
            kept = self._operator_pause.begin(reason, seconds)
            self._publish()
        log.warning("learning is paused by an operator", extra={"reason": reason})
        return kept

    def resume(self) -> bool:
        """The operator's pause is over; other reasons may go on.

        Returns:
            Whether it would stay so after a restart.
        """
        with self._lock:
            kept = self._operator_pause.end()
            self._publish()
        return kept

    def well(self, seconds: float) -> bool:
        """Whether the learner was governed so many seconds ago or less, not counting a period."""
        return time.monotonic() - self._governed_at <= seconds + PERIOD_SECONDS

    def _run(self) -> None:
        while not self._stopping.wait(PERIOD_SECONDS):
            now = time.monotonic()
            try:
                self._period()
                self._periods_fail.over(now)
            except Exception as error:  # noqa: BLE001 - a learner that nobody governs overheats
                self._periods_fail.failed(error, now)
                with contextlib.suppress(Exception):  # it may be telling that fails
                    self._state = _UNGOVERNED
                    self._tell(Pace(_UNGOVERNED.duty, _UNGOVERNED.reasons[0].text))

    def _period(self) -> None:
        now = time.monotonic()
        try:
            readings = self._machine.read()
            self._readings_fail.over(now)
        except Exception as error:  # noqa: BLE001 - whatever breaks, somebody has to go on watching
            self._readings_fail.failed(error, now)
            readings = Readings(watts_known=True, celsius_known=True)
        with self._lock:
            self._controller.period(readings, now)
            self._publish()
            self._on_memory(self._controller.short_of_memory)
        self._governed_at = time.monotonic()

    def _operator(self) -> Reason | None:
        pause = self._operator_pause.current()
        if pause is None:
            return None
        left = self._operator_pause.left_seconds(pause)
        how_long = "until resumed" if left is None else f"{left:.0f} s left"
        why = f" ({pause.reason})" if pause.reason else ""
        return Reason("operator", f"by an operator{why}, {how_long}", left)

    def _publish(self) -> None:
        before = self._state
        self._state = state = self._controller.state(self._local_time(), self._operator())
        words = [reason.reason for reason in state.reasons]
        paused = state.state == "paused"
        self._tell(Pace(state.duty, ", ".join(words) if paused else None))
        self._telemetry.governed(state.duty, words)
        if paused != (before.state == "paused"):
            self._on_hold(paused)
        if state.state != before.state:
            extra = {"duty": round(state.duty, 3), "why": state.text}
            log.info("learning is %s", state.state, extra=extra)
