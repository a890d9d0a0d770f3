"""What happens inside the child process of one trial: rehearse, train, judge, count, report.

The parent gives it the data, and gets messages through a pipe: `Progress` now and then, `EpochDone`
after each epoch, and last `Finished` with the record. A loss that diverges ends the training, not
the trial: how far it came, and how the network answers then, is a result like any other.
"""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.augment import crop_and_flip
from benchmarks.datasets import Split
from benchmarks.meter import EnergyMeter, MemoryMeter, machine
from benchmarks.samples import Samples, as_floats
from benchmarks.trial import INT8_UNITS, Trial

if TYPE_CHECKING:
    from benchmarks.method import Method

_PROGRESS_SECONDS = 0.5
_REHEARSED_STEPS = 3
# As many as `engines.standardize` looks at.
_FITTED_SAMPLES = 4096
# Tells the augmentation's draws from those of the order of samples.
_AUGMENTATION = 1


class Progress(NamedTuple):
    """Steps done and to do, over all epochs."""

    steps_done: int
    steps: int


class EpochDone(NamedTuple):
    """One epoch trained and judged."""

    epoch: int
    loss: float
    accuracy: float
    train_seconds: float


class Finished(NamedTuple):
    """The record, all but the fields that the parent knows (`commit`)."""

    record: dict[str, Any]


Message = Progress | EpochDone | Finished


class DivergedError(RuntimeError):
    """The loss is no longer a number."""


def serve_trial(trial: Trial, split: Split, pipe: Connection) -> None:
    """Entry point of the child: run `trial` and send what happens into `pipe`."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the parent, which ends this process
    try:
        pipe.send(Finished(run_trial(trial, split, pipe.send)))
    finally:
        pipe.close()


def run_trial(trial: Trial, split: Split, report: Callable[[Message], None]) -> dict[str, Any]:
    """Train and judge one network in this process.

    Args:
        trial: What to do.
        split: The data.
        report: Gets `Progress` and `EpochDone`.

    Returns:
        The record, without `commit`.

    Raises:
        TrialError: The network cannot be built for the data.
    """
    import torch

    from benchmarks.exact_products import use_float32_units
    from benchmarks.live_bytes import peak_live_bytes
    from benchmarks.methods import METHODS

    if trial.threads is not None:
        torch.set_num_threads(trial.threads)
    if trial.products != INT8_UNITS:
        use_float32_units()
    spec = trial.spec(split.train.x.shape[1:], len(split.train.classes))
    batch = min(trial.batch, len(split.train))
    fitted = split.train.floats(_FITTED_SAMPLES)

    def new_method() -> Method:
        method = METHODS[trial.method](trial, spec, fitted)
        method.start_step(0.0)
        return method

    memory, energy = MemoryMeter(), EnergyMeter()
    first = split.train.take(np.arange(batch)).floats(batch)
    rehearsal = new_method()
    for _ in range(_REHEARSED_STEPS):
        rehearsal.step(first.x, first.labels)
    rehearsal.accuracy(first)
    del rehearsal
    measured = memory.mark()
    baseline_bytes = memory.high_water_bytes()

    method = new_method()
    fit = Fit(trial, split.train, batch, energy, report)
    accuracies: list[float] = []
    high_water: list[int | None] = []
    diverged: str | None = None
    for epoch in range(trial.epochs):
        measured = memory.mark() and measured
        try:
            loss = fit.epoch(method, epoch)
        except DivergedError as error:
            diverged = str(error)
            accuracies.append(method.accuracy(split.test))
            break
        high_water.append(memory.high_water_bytes())
        accuracies.append(method.accuracy(split.test))
        report(EpochDone(epoch, loss, accuracies[-1], fit.train_seconds))
    known = [reading for reading in high_water if reading is not None]
    peak = max(known) - baseline_bytes if measured and known and baseline_bytes else None
    costs: dict[str, Any] = {
        "train_seconds": round(fit.train_seconds, 3),
        "step_milliseconds": round(1e3 * statistics.median(fit.step_seconds), 4),
        "peak_training_bytes": peak,
        # Last, since the profiler's own memory would be in the other readings.
        "planned_training_bytes": peak_live_bytes(
            new_method, lambda counted: counted.step(first.x, first.labels)
        ),
        "energy_joules": energy.joules,
    }
    if trial.products != INT8_UNITS:
        costs = dict.fromkeys(costs)  # they are not INT8's
    return {
        "method": trial.method,
        "model": trial.model,
        "width": trial.width,
        "data": Path(trial.data).name,
        "seed": trial.seed,
        "epochs": trial.epochs,
        "batch": batch,
        "parameters": method.parameters,
        "accuracy": accuracies[-1],
        "accuracy_by_epoch": accuracies,
        "diverged": diverged,
        **costs,
        "machine": machine(),
        "settings": {
            "hidden": list(spec.hidden),
            "learning_rate": trial.learning_rate,
            "schedule": trial.schedule,
            "optimizer": trial.optimizer,
            "weight_decay": trial.weight_decay,
            "augment": trial.augment,
            "products": trial.products,
            **method.settings,
            "input_shape": list(spec.input_shape),
            "classes": len(split.train.classes),
            "train_samples": len(split.train),
            "test_samples": len(split.test),
            "test": "held-out fifth" if split.held_out else "own test set",
        },
    }


class Fit:
    """The training loop, and the clock over it.

    Args:
        trial: Seed and number of epochs.
        train: Samples to learn from.
        batch: Samples per step; at most their number.
        energy: Counts while training runs.
        report: Gets `Progress`.
    """

    def __init__(
        self,
        trial: Trial,
        train: Samples,
        batch: int,
        energy: EnergyMeter,
        report: Callable[[Message], None],
    ) -> None:
        self._trial = trial
        self._train = train
        self._batch = batch
        self._energy = energy
        self._report = report
        self._steps_per_epoch = len(train) // batch
        self.train_seconds = 0.0
        self.step_seconds: list[float] = []

    def epoch(self, method: Method, epoch: int) -> float:
        """Every sample once, in an order that depends on seed and epoch alone.

        Returns:
            Mean loss over the epoch's steps.

        Raises:
            DivergedError: A step's loss is not finite.
        """
        order = np.random.default_rng([self._trial.seed, epoch]).permutation(len(self._train))
        losses: list[float] = []
        self._energy.start()
        began = reported = time.perf_counter()
        for step in range(self._steps_per_epoch):
            rows = order[step * self._batch : (step + 1) * self._batch]
            x, labels = self._pixels(rows, epoch, step), self._train.labels[rows]
            method.start_step(epoch + step / self._steps_per_epoch)
            start = time.perf_counter()
            losses.append(method.step(x, labels))
            now = time.perf_counter()
            self.step_seconds.append(now - start)
            if not np.isfinite(losses[-1]):
                raise DivergedError(
                    f"{self._trial.method} seed {self._trial.seed}: the loss is {losses[-1]} in "
                    f"epoch {epoch + 1}, step {step + 1}; lower --learning-rate or --look-ahead"
                )
            if now - reported >= _PROGRESS_SECONDS:
                reported = now
                self._energy.poll()
                done = epoch * self._steps_per_epoch + step + 1
                self._report(Progress(done, self._trial.epochs * self._steps_per_epoch))
        self._energy.poll()
        self.train_seconds += time.perf_counter() - began
        return float(np.mean(losses))

    def _pixels(self, rows: NDArray[np.int64], epoch: int, step: int) -> NDArray[np.float32]:
        """The samples at `rows`, augmented by draws that seed, epoch and step alone decide."""
        x = self._train.x[rows]
        if self._trial.augment:
            x = crop_and_flip(
                x, np.random.default_rng([self._trial.seed, epoch, step, _AUGMENTATION])
            )
        return as_floats(x)
