"""Serving through TensorRT, built, kept, refitted and swapped: three versions, fakes for the GPU.

The fakes (tests/fake_tensorrt) compute the real network with onnxruntime, refuse every call that
one of the versions would not take, and note what the real TensorRT would answer with undefined
behaviour. What a board alone can show is in ARCHITECTURE.md.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import threading

import numpy as np
import pytest

from engines import EngineFailedError, open_predict_engine, open_train_engine, tensorrt_predict
from engines.canary import CANARY_TOLERANCE
from engines.tensorrt_build import ROWS_MAX
from tests.contracts import CLASSES, SPEC, STEP, learned, samples
from tests.cuda_rig.pycuda_build import BUILD_TIMEOUT_SECONDS, pycuda_rig
from tests.fake_tensorrt import VERSIONS, FakeDriver, Rig, open_rig
from tests.networks import NETWORKS, batch_of
from tests.running import wait_for

__all__ = ["pycuda_rig"]
pytestmark = pytest.mark.timeout(BUILD_TIMEOUT_SECONDS)
MACHINES = [(version, "fake") for version in VERSIONS] + [("10.3", "pycuda"), ("11.4", "pycuda")]


@pytest.fixture(params=MACHINES, ids="-".join)
def rig(request):
    rig = open_rig(*request.param, request)
    yield rig
    gc.collect()
    assert rig.trt.violations == set()
    assert rig.trt.live == 0
    assert rig.driver is None or rig.driver.allocated == 0


@functools.cache
def version(number: int):
    """Versions of different numbers answer differently."""
    learner = learned(open_train_engine(SPEC, seed=number), steps=3)
    return learner.export(classes=CLASSES, version=number, parent=None, last_seq=0)


def by_torch(weights, x):
    with open_predict_engine("torch").open(weights) as engine:
        return engine.predict(x).goodness


def answers_for(engine, weights) -> bool:
    x = samples(70)[0]
    difference = np.abs(engine.predict(x).goodness - by_torch(weights, x)).max()
    return bool(difference < CANARY_TOLERANCE)


def test_a_version_is_built_and_answers_as_torch_does(rig):
    with rig.engines()(version(1)) as engine:
        assert answers_for(engine, version(1))
        assert not answers_for(engine, version(2))
    assert (rig.trt.built, rig.trt.refitted) == (1, 0)
    assert rig.trt.flags == {"REFIT"}  # strongly typed: no precision; TF32, on by default, is off


@pytest.mark.parametrize("rows", [0, 1, ROWS_MAX - 1, ROWS_MAX, ROWS_MAX + 1, 3 * ROWS_MAX + 5])
def test_a_request_of_any_size_passes_in_parts(rig, rows):
    x = samples(rows)[0] if rows else np.empty((0, 6), np.float32)
    with rig.engines()(version(1)) as engine:
        found = engine.predict(x)
    np.testing.assert_allclose(found.goodness, by_torch(version(1), x), atol=CANARY_TOLERANCE)
    assert found.class_index.shape == (rows,)


def test_the_latent_of_a_prefix_has_the_codes_of_torch(rig):
    x = samples(2 * ROWS_MAX + 3)[0]
    engines = rig.engines()
    for number in (1, 2):
        with (
            engines(version(number)) as engine,
            open_predict_engine("torch").open(version(number)) as reference,
        ):
            assert rig.trt.built == number  # that of a prefix when it is asked for, once for all
            for _ in range(2):
                found, wanted = engine.latent(x, 1), reference.latent(x, 1)
                np.testing.assert_array_equal(found.codes, wanted.codes)
                assert found.scale == wanted.scale
                assert found.codes.dtype == np.int8
            assert rig.trt.built == 2


def test_a_swap_is_a_refit_of_the_engine_that_is_idle(rig):
    engines = rig.engines()
    serving = engines(version(1))
    for number in range(2, 6):
        candidate = engines(version(number))
        assert answers_for(candidate, version(number))
        assert answers_for(serving, version(number - 1))
        serving = candidate  # the old one has no holder any more
    assert rig.trt.built == 1
    assert rig.trt.opened == rig.trt.live_max == 2
    assert rig.trt.refitted == 4
    assert "units.0.weight.codes" in rig.trt.given
    assert not [name for name in rig.trt.given if name.startswith("constant")]


def test_a_refused_candidate_gives_its_engine_back(rig):
    engines = rig.engines()
    serving = engines(version(1))
    for number in (2, 3, 4):
        engines(version(number)).close()
    assert answers_for(serving, version(1))
    assert rig.trt.live_max == 2


def test_an_engine_is_closed_once_and_answers_no_more(rig):
    engines = rig.engines()
    engine = engines(version(1))
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.predict(samples(1)[0])
    with engines(version(2)) as one, engines(version(3)) as other:  # both places are free
        assert answers_for(one, version(2))
        assert answers_for(other, version(3))


def test_closing_waits_for_the_request_that_runs(rig, monkeypatch):
    engines = rig.engines()
    engine = engines(version(1))
    native = engine._native
    entered, leave, events = threading.Event(), threading.Event(), []

    def slow(x):
        entered.set()
        assert leave.wait(30)
        events.append("answered")
        return np.zeros((len(x), SPEC.max_classes), np.float32)

    def close():
        engine.close()
        events.append("closed")

    monkeypatch.setattr(native, "run", slow)
    threads = [threading.Thread(target=engine.predict, args=samples(1)[:1])]
    threads[0].start()
    assert entered.wait(30)
    threads.append(threading.Thread(target=close))
    threads[1].start()
    threads[1].join(0.1)
    assert events == []
    leave.set()
    for thread in threads:
        thread.join(30)
    assert events == ["answered", "closed"]


def test_the_next_version_waits_for_the_request_that_holds_an_old_one(rig):
    engines = rig.engines()
    held, serving, opened = engines(version(1)), engines(version(2)), []
    opening = threading.Thread(target=lambda: opened.append(engines(version(3))))
    opening.start()
    for _ in range(3):
        assert answers_for(held, version(1))
        assert answers_for(serving, version(2))
    assert not opened
    del held
    opening.join(30)
    assert answers_for(serving, version(2))
    assert answers_for(opened.pop(), version(3))
    assert rig.trt.live_max == 2


def test_an_engine_that_only_garbage_holds_is_free(rig, monkeypatch):
    monkeypatch.setattr(tensorrt_predict, "_IDLE_SECONDS", 0.05)
    engines = rig.engines()
    gc.disable()
    try:
        for number in (1, 2):
            cycle = [engines(version(number))]
            cycle.append(cycle)
        del cycle
        assert answers_for(engines(version(3)), version(3))
    finally:
        gc.enable()


def test_two_engines_share_neither_stream_nor_buffers(rig):
    engines = rig.engines()
    one, other = (engines(version(number))._native._parts for number in (1, 2))
    for part in ("engine", "context", "stream", "input", "output"):
        assert getattr(one, part) is not getattr(other, part)
    del one, other


def test_a_version_that_is_never_let_go_is_named(rig, monkeypatch):
    monkeypatch.setattr(tensorrt_predict, "_IDLE_SECONDS", 0.05)
    engines = rig.engines()
    held = [engines(version(1)), engines(version(2))]
    with pytest.raises(EngineFailedError, match="both TensorRT engines are in use"):
        engines(version(3))
    held.pop()
    assert answers_for(engines(version(3)), version(3))


def test_every_answer_under_concurrent_swaps_is_of_the_version_it_names(rig):
    x = samples(40)[0]
    wanted = {number: by_torch(version(number), x) for number in range(1, 5)}
    engines = rig.engines()
    slot = [(1, engines(version(1)))]
    wrong: list[object] = []
    seen: list[int] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            number, engine = slot[0]
            got = engine.predict(x).goodness
            if not np.abs(got - wanted[number]).max() < CANARY_TOLERANCE:
                wrong.append(number)
            seen.append(number)
            del engine

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for turn in range(12):
            number = turn % 4 + 1
            slot[0] = (number, engines(version(number)))
            asked = len(seen)
            wait_for(lambda asked=asked: len(seen) > asked + 1, "an answer")
    finally:
        done.set()
        asking.join(30)
    slot.clear()
    assert wrong == []
    assert set(seen) == {1, 2, 3, 4}
    assert rig.trt.built == 1
    assert rig.trt.live_max == 2


@pytest.mark.parametrize("objective", ["class_goodness", "ff"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_built_and_refitted(name, objective):
    rig = Rig("10.3", FakeDriver())
    spec = dataclasses.replace(NETWORKS[name], objective=objective)
    engines = rig.engines()
    for number in (1, 2):
        weights = trained(spec, number)
        x = batch_of(spec, 3)[0]
        with engines(weights) as engine:
            found = engine.predict(x)
        wanted = by_torch(weights, x)
        scale = max(1.0, np.abs(wanted).max())
        assert np.abs(found.goodness - wanted).max() <= CANARY_TOLERANCE * scale
    assert (rig.trt.built, rig.trt.refitted) == (1, 1)


@functools.cache
def trained(spec, seed: int):
    engine = open_train_engine(spec, seed=seed)
    x, labels = batch_of(spec, 24, seed)
    engine.standardize_from(x)
    for _ in range(2):
        engine.train_step(x, labels, **STEP)
    classes = tuple(range(spec.max_classes))
    return engine.export(classes=classes, version=seed, parent=None, last_seq=0)


def test_no_class_in_use_gives_minus_one(rig):
    nothing = dataclasses.replace(version(1), classes=())
    with rig.engines()(nothing) as engine:
        assert engine.predict(samples(3)[0]).class_index.tolist() == [-1] * 3


# --- the cache on disk ----------------------------------------------------------------------------


def test_a_plan_is_built_once_for_all_processes(rig, tmp_path):
    for number in (1, 2):
        with rig.engines(tmp_path)(version(number)) as engine:
            assert answers_for(engine, version(number))
    assert (rig.trt.built, rig.trt.refitted) == (1, 1)


def test_builds_use_the_timings_of_earlier_ones(rig, tmp_path):
    def another(width):
        wide = dataclasses.replace(SPEC, hidden=(24, 20, width))
        return learned(open_train_engine(wide, seed=1)).export(
            classes=CLASSES, version=9, parent=None, last_seq=0
        )

    engines = rig.engines(tmp_path)
    engines(version(1)).close()
    engines(another(18)).close()
    assert rig.trt.timings == [b"", b"timed;"]
    rig.trt.timings_match = False  # of another driver, say: TensorRT does not take them
    engines(another(19)).close()
    rig.trt.timings_open = False  # nor does it read them
    engines(another(20)).close()
    assert rig.trt.timings == [b"", b"timed;", b"", b""]


def test_a_damaged_plan_is_built_again(rig, tmp_path):
    rig.engines(tmp_path)(version(1)).close()
    for path in tmp_path.glob("*.cache"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    for built in (2, 2):  # and kept again
        with rig.engines(tmp_path)(version(2)) as engine:
            assert answers_for(engine, version(2))
        assert rig.trt.built == built


def test_a_plan_that_does_not_open_is_built_again(rig, tmp_path, monkeypatch):
    rig.engines(tmp_path)(version(1)).close()
    monkeypatch.setattr(rig.trt, "version", rig.trt.version)
    engines = rig.engines(tmp_path)
    runtime = engines._library.runtime
    opening = type(runtime).deserialize_cuda_engine
    refusals = [None]  # the first one is refused, as after an update of the driver

    def refuse_once(self, plan):
        return refusals.pop() if refusals else opening(self, plan)

    monkeypatch.setattr(type(runtime), "deserialize_cuda_engine", refuse_once)
    with engines(version(2)) as engine:
        assert answers_for(engine, version(2))
    assert rig.trt.built == 2


def test_another_tensorrt_does_not_touch_the_plans_of_this_one(tmp_path, request):
    rigs = [open_rig(version, "fake", request) for version in VERSIONS]
    for rig in rigs * 2:
        with rig.engines(tmp_path)(version(1)) as engine:
            assert answers_for(engine, version(1))
    assert [rig.trt.built for rig in rigs] == [1, 1, 1]


def test_another_gpu_has_plans_of_its_own(tmp_path, request):
    rig = open_rig("10.3", "fake", request)
    rig.engines(tmp_path)(version(1)).close()
    engines = rig.engines(tmp_path)
    engines._gpu.compute_capability = "8.9"
    engines(version(1)).close()
    assert rig.trt.built == 2
