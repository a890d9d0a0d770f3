"""Memory runs out: told whatever words it comes in; nothing half learned is learned from."""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from daemon.learning import process as learner_process
from daemon.learning.shortage import MemoryShortageError
from daemon.messages import JobFailed, JobStarted, Judged, Proposed, Train
from daemon.store import SampleStore
from engines import (
    EngineFailedError,
    is_out_of_memory,
    open_predict_engine,
    open_train_engine,
    release_memory,
)
from engines.predict_network import PredictNetwork
from tests.test_learner import SETTINGS, SPEC, exported, fill, make_learner
from tests.test_learner_process import running

TEGRA = (
    'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "/opt/pytorch/c10/cuda/CUDACachingAllocator.cpp"'
    ":1016, please report a bug to PyTorch. "
)
HALF = SETTINGS.model_copy(update={"batch_samples": SETTINGS.batch_samples // 2})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    store = SampleStore(tmp_path, max_classes=4, holdout_ratio=0.2, queue_samples=4096)
    yield store
    store.close()


# --- what says that memory ran out ----------------------------------------------------------------


def pycuda_error(name: str, said: str) -> Exception:
    """pycuda's errors have names that Python's own have, and another module's."""
    base = type("Error", (Exception,), {"__module__": "pycuda._driver"})
    return type(name, (base,), {"__module__": "pycuda._driver"})(said)


def test_what_a_shortage_has_led_to_is_one_too() -> None:
    error = EngineFailedError("no answer")
    assert not is_out_of_memory(error)
    error.__cause__ = MemoryError()
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), EngineFailedError),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), EngineFailedError),
        (RuntimeError("the sizes of tensors must match"), RuntimeError),  # our own fault
    ],
    ids=str,
)
def test_serving_by_torch_tells_a_fault_as_every_engine_does(
    monkeypatch: pytest.MonkeyPatch, fault: Exception, told: type[Exception]
) -> None:
    fresh = open_train_engine(SPEC, seed=0)
    weights = fresh.export(classes=("a", "b"), version=1, parent=None, last_seq=0)
    with open_predict_engine("torch").open(weights) as engine:

        def fail(*_: object) -> None:
            raise fault

        monkeypatch.setattr(PredictNetwork, "goodness", fail)
        with pytest.raises(told) as raised:
            engine.predict(np.zeros((1, *SPEC.input_shape), np.float32))
    assert type(raised.value) is told


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(TEGRA),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        MemoryError(),
        pycuda_error("MemoryError", "cuMemAlloc failed: out of memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_way_to_say_it_is_known(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError(
            'mode != nullptr INTERNAL ASSERT FAILED at "/opt/c10/cuda/CUDACachingAllocator.cpp":1'
        ),
        RuntimeError("self.size(0) needs to be greater than 16, but got 4"),
        ValueError("out of memory"),
        pycuda_error("LogicError", "cuModuleLoadData failed: invalid device context"),
    ],
    ids=lambda error: str(error)[:20],
)
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_torch_and_numpy_say_it_as_expected_on_this_machine() -> None:
    for allocate in (lambda: torch.empty(2**50), lambda: np.empty(2**50)):
        with pytest.raises(Exception, match="allocate") as caught:
            allocate()
        assert is_out_of_memory(caught.value)


def test_memory_can_be_released_without_torch(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    release_memory()


# --- what a learner does then -------------------------------------------------------------------


class Shortage:
    """Stands before `torch._int_mm`: from the n-th product on, `times` of them find no memory."""

    def __init__(self, monkeypatch, first: int, times: int = 1) -> None:
        self.calls = 0
        product = torch._int_mm

        def failing(*args, **kwargs):
            self.calls += 1
            if first <= self.calls < first + times:
                raise RuntimeError(TEGRA)
            return product(*args, **kwargs)

        monkeypatch.setattr(torch, "_int_mm", failing)


def products_of(monkeypatch, work: Callable[[], object]) -> int:
    with monkeypatch.context() as patch:
        counter = Shortage(patch, first=0, times=0)
        work()
    return counter.calls


# Each of a step's products: forward of two units, their weight gradients, one input gradient.
PRODUCTS_OF_A_STEP = 5


def test_a_step_has_so_many_products(monkeypatch, store: SampleStore, tmp_path: Path) -> None:
    fill(store, 100)
    learner = make_learner(tmp_path)
    learner.learn_block()
    assert products_of(monkeypatch, lambda: learner.rehearse(1)) == PRODUCTS_OF_A_STEP


@pytest.mark.parametrize("product", range(1, PRODUCTS_OF_A_STEP + 1))
@pytest.mark.parametrize("saved", [False, True])
def test_whichever_product_fails_the_block_is_learned_whole_with_half_the_batch(
    monkeypatch, caplog, store: SampleStore, tmp_path: Path, product: int, saved: bool
) -> None:
    """To the bit what a learner of half the batch learns from the same checkpoint, or from none."""
    fill(store, 100)
    if saved:
        first = make_learner(tmp_path)
        first.learn_block()
        first.save()
    wanted, learner = make_learner(tmp_path, HALF), make_learner(tmp_path)
    for each in (wanted, learner):
        assert each.restore() == saved
    wanted.learn_block()
    # The 2nd step of the block: the first has moved every unit, and scoring came before it.
    before_steps = products_before_steps(monkeypatch, tmp_path, saved)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        Shortage(patch, before_steps + PRODUCTS_OF_A_STEP + product)
        report = learner.learn_block()
    assert report.steps == SETTINGS.steps_per_block
    assert exported(learner) == exported(wanted)
    assert (learner.last_seq, learner.steps) == (wanted.last_seq, wanted.steps)
    assert learner.score.total == wanted.score.total
    (line,) = [record for record in caplog.records if "memory ran out" in record.message]
    assert (line.why, line.batch_samples) == (TEGRA.strip(), SETTINGS.batch_samples)


def products_before_steps(monkeypatch, folder: Path, saved: bool) -> int:
    """Those of a block that lie before its first step: an export's canary and the score."""
    learner = make_learner(folder, SETTINGS)
    assert learner.restore() == saved
    total = products_of(monkeypatch, learner.learn_block)
    return total - SETTINGS.steps_per_block * PRODUCTS_OF_A_STEP


def test_what_failed_half_way_would_have_been_learned_from(
    monkeypatch, store: SampleStore, tmp_path: Path
) -> None:
    """That the engine is thrown away is no formality: units behind the failed one have moved."""
    fill(store, 100)
    learner = make_learner(tmp_path)
    learner.learn_block()
    engine = learner._state.engine
    before = engine.state()
    with monkeypatch.context() as patch:
        Shortage(patch, PRODUCTS_OF_A_STEP)  # the last one, of the first unit
        learner.rehearse(1)
    assert learner._state.engine is not engine
    after = engine.state()
    weight = "units.{}.weight.weight"
    assert not np.array_equal(before[weight.format(1)], after[weight.format(1)])
    assert np.array_equal(before[weight.format(0)], after[weight.format(0)])


def test_a_second_failure_is_named_and_leaves_the_checkpoint(
    monkeypatch, store: SampleStore, tmp_path: Path
) -> None:
    fill(store, 200)
    learner = make_learner(tmp_path)
    learner.learn_block()
    learner.save()
    saved, seq = exported(learner), learner.last_seq
    learner.learn_block()
    with monkeypatch.context() as patch:
        Shortage(patch, 1, times=10_000)
        with pytest.raises(
            MemoryShortageError, match=r"twice, at last with 16 samples a step: NVML"
        ):
            learner.learn_block()
    assert (exported(learner), learner.last_seq) == (saved, seq)
    assert learner.learn_block().samples == SETTINGS.block_samples


@pytest.mark.parametrize("call", ["export", "compare"])
def test_beside_a_step_nothing_has_changed(
    monkeypatch, store: SampleStore, tmp_path: Path, call: str
) -> None:
    fill(store, 100)
    learner = make_learner(tmp_path)
    learner.learn_block()
    weights = learner.export(version=1, parent=None)
    before = exported(learner)
    calls = {
        "export": lambda: learner.export(version=2, parent=1),
        "compare": lambda: learner.compare(weights, weights, [weights]),
    }
    with monkeypatch.context() as patch:
        Shortage(patch, 1)
        with pytest.raises(MemoryShortageError, match="made or scored: NVML"):
            calls[call]()
    assert exported(learner) == before


def test_an_error_of_another_kind_is_not_tried_again(
    monkeypatch, store: SampleStore, tmp_path: Path
) -> None:
    fill(store, 100)
    learner = make_learner(tmp_path)
    learner.learn_block()
    calls: list[object] = []

    def broken(*args, **kwargs):
        calls.append(args)
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch, "_int_mm", broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        learner.rehearse(1)
    assert len(calls) == 1


def test_no_tensor_of_a_failed_step_outlives_it(
    monkeypatch, store: SampleStore, tmp_path: Path
) -> None:
    """The second try begins with the memory that the first one had."""
    fill(store, 100)
    learner = make_learner(tmp_path)
    learner.learn_block()
    learner.save()
    held: list[weakref.ref] = []
    product = torch._int_mm

    def failing(a, b, **kwargs):
        held.append(weakref.ref(a))
        if len(held) == PRODUCTS_OF_A_STEP:
            raise RuntimeError(TEGRA)
        if len(held) == PRODUCTS_OF_A_STEP + 1:
            assert not [ref for ref in held[:PRODUCTS_OF_A_STEP] if ref() is not None]
        return product(a, b, **kwargs)

    monkeypatch.setattr(torch, "_int_mm", failing)
    learner.rehearse(1)
    assert len(held) == 2 * PRODUCTS_OF_A_STEP


# --- what the process does ----------------------------------------------------------------------


def test_the_job_fails_and_the_learner_lives(
    monkeypatch, store: SampleStore, tmp_path: Path
) -> None:
    monkeypatch.setattr(learner_process, "_REST_SECONDS", 0.5)
    with monkeypatch.context() as patch, running(tmp_path) as peer:
        Shortage(patch, 1, times=10_000)
        fill(store, 100)
        assert "memory ran out twice" in peer.hear_next(JobFailed).error
        patch.undo()
        assert peer.hear_next(JobStarted).trigger == "samples"
        peer.say(Judged(peer.hear_next(Proposed).version, accepted=True))


def test_it_rests_after_that_but_does_what_it_is_told(
    monkeypatch, store: SampleStore, tmp_path: Path
) -> None:
    monkeypatch.setattr(learner_process, "_REST_SECONDS", 1e9)
    with monkeypatch.context() as patch, running(tmp_path) as peer:
        Shortage(patch, 1, times=10_000)
        fill(store, 100)
        peer.hear_next(JobFailed)
        patch.undo()
        peer.say(Train(4))
        assert peer.hear_next(JobStarted).trigger == "manual"
        peer.say(Judged(peer.hear_next(Proposed).version, accepted=True))
