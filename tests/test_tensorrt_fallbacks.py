"""What happens when TensorRT cannot: every way down has its reason, and torch serves at its end."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys

import numpy as np
import pytest

from engines import (
    EngineFailedError,
    EngineUnavailableError,
    WeightsError,
    open_predict_engine,
)
from tests.contracts import samples
from tests.fake_tensorrt import VERSIONS, FakeDriver, Rig
from tests.test_tensorrt_predict import answers_for, version


@pytest.fixture(params=VERSIONS)
def rig(request):
    rig = Rig(request.param, FakeDriver())
    yield rig
    assert rig.trt.violations == set()


def refusal(rig, number: int = 1, cache=None) -> str:
    with pytest.raises(EngineUnavailableError) as caught:
        rig.engines(cache)(version(number))
    return str(caught.value)


def log_of(caplog) -> str:
    return " ".join(str(vars(record)) for record in caplog.records)


# --- values that cannot be given to a built engine ------------------------------------------------


def test_unnamed_values_that_have_not_changed_do_not_hinder_a_refit(rig):
    rig.trt.unnamed = lambda name: "codes" in name  # as if int8 behind a DQ could not be named
    arrays = dict(version(1).arrays)
    arrays["units.2.bias"] = arrays["units.2.bias"] + np.float32(0.25)
    changed = with_canary(dataclasses.replace(version(1), arrays=arrays, version=2))
    engines = rig.engines()
    engines(version(1)).close()
    with engines(changed) as engine:
        assert answers_for(engine, changed)
    assert (rig.trt.built, rig.trt.refitted) == (1, 1)
    assert "units.2.bias" in rig.trt.given


def with_canary(weights):
    """What another learner would have exported."""
    spec, arrays = weights.spec, dict(weights.arrays)
    batch = arrays["canary.input"]
    with open_predict_engine("torch").open(weights) as engine:
        x = batch.reshape(len(batch), *spec.input_shape)
        arrays["canary.goodness"] = engine.predict(x).goodness
    return dataclasses.replace(weights, arrays=arrays)


@pytest.mark.parametrize("hindrance", ["unnamed", "narrow"])
def test_values_that_cannot_be_given_and_have_changed_take_a_new_build(rig, hindrance, caplog):
    setattr(rig.trt, hindrance, lambda name: name == "units.1.weight.codes")
    engines = rig.engines()
    serving = engines(version(1))
    for number in (2, 3, 4):
        candidate = engines(version(number))
        assert answers_for(candidate, version(number))
        assert answers_for(serving, version(number - 1))
        serving = candidate
    assert (rig.trt.built, rig.trt.refitted) == (4, 0)
    assert rig.trt.live_max == 2  # the idle one goes before a new one is made
    assert "such as 'units.1.weight.codes'" in log_of(caplog)


def test_an_engine_that_cannot_be_refitted_at_all_is_built_anew(rig):
    rig.trt.unnamed = lambda name: True
    engines = rig.engines()
    engines(version(1)).close()
    with engines(version(2)) as engine:
        assert answers_for(engine, version(2))
    assert (rig.trt.built, rig.trt.refitted) == (2, 0)


def test_the_same_version_again_needs_nothing_where_nothing_can_be_given(rig):
    rig.trt.unnamed = lambda name: True
    engines = rig.engines()
    engines(version(1)).close()
    engines(version(1)).close()
    assert rig.trt.built == 1


def test_constants_that_are_fused_with_what_was_learned_come_along(rig):
    rig.trt.fused = [{"units.0.factor", "constant.float32.127.0"}]
    engines = rig.engines()
    engines(version(1)).close()
    with engines(version(2)) as engine:
        assert answers_for(engine, version(2))
    assert (rig.trt.built, rig.trt.refitted) == (1, 1)
    assert "constant.float32.127.0" in rig.trt.given


def test_weights_that_tensorrt_misses_take_a_new_build(rig, caplog):
    rig.trt.fused = [{"units.0.factor", "(Unnamed Layer* 7) [Constant]"}]
    engines = rig.engines()
    engines(version(1)).close()
    with engines(version(2)) as engine:
        assert answers_for(engine, version(2))
    assert (rig.trt.built, rig.trt.refitted) == (2, 0)
    assert "TensorRT also wants (Unnamed Layer* 7) [Constant]" in log_of(caplog)


def test_a_refit_that_fails_half_way_costs_the_engine(rig, caplog):
    engines = rig.engines()
    serving = engines(version(1))
    engines(version(2)).close()
    rig.trt.refits = False
    with engines(version(3)) as engine:
        assert answers_for(engine, version(3))
        assert answers_for(serving, version(1))
        assert rig.trt.live_max == 2  # the half-refitted one was dropped before the build
    assert rig.trt.built == 2
    assert "refit failed half-way" in log_of(caplog)
    rig.trt.refits = True
    with engines(version(4)) as engine:
        assert answers_for(engine, version(4))
    assert rig.trt.built == 2


def test_an_engine_that_answers_wrongly_after_a_refit_is_built_anew(rig, caplog):
    engines = rig.engines()
    engines(version(1)).close()
    rig.trt.refit_drops_bias = True
    with engines(version(2)) as engine:
        assert answers_for(engine, version(2))
    assert rig.trt.built == 2
    assert "on the canary" in log_of(caplog)


# --- refusals -----------------------------------------------------------------------------------


def test_a_parser_error_lists_all_that_the_parser_found(rig):
    rig.trt.parses = False
    said = refusal(rig)
    assert said == (
        "TensorRT cannot parse the network: In node 0: UNSUPPORTED_NODE; "
        "In node 1: UNSUPPORTED_NODE"
    )


def test_a_build_that_gives_nothing_says_what_tensorrt_said(rig):
    rig.trt.builds = False
    assert refusal(rig) == (
        "TensorRT could not build the network: "
        "Could not find any implementation for node {ForeignNode}: OutOfMemory"
    )


def test_a_plan_that_does_not_open_is_refused(rig):
    rig.trt.opens = False
    assert "the plan does not open: The engine plan file is not compatible" in refusal(rig)


def test_want_of_memory_for_an_execution_context_is_refused(rig):
    rig.trt.has_context = False
    assert "no execution context: Requested amount of GPU memory" in refusal(rig)


def test_want_of_memory_for_a_refitter_is_refused(rig):
    rig.trt.has_refitter = False
    assert refusal(rig).startswith("TensorRT engine: no refitter: ")


def test_a_plan_of_another_network_is_refused(rig):
    trt = rig.trt.module
    trt.ICudaEngine.get_tensor_dtype = lambda self, name: trt.DataType.INT8
    assert "the plan has inputs and outputs" in refusal(rig)


def test_want_of_memory_for_buffers_is_refused_and_leaves_nothing_behind(rig):
    rig.driver.memory_left = 1000
    assert "CUDA: cuMemAlloc failed: out of memory" in refusal(rig)
    assert rig.driver.allocated == 0


def test_a_build_that_drops_biases_is_found_by_the_canary_and_not_kept(rig, tmp_path):
    rig.trt.drops_bias = True
    assert "TensorRT differs from the learner by" in refusal(rig, cache=tmp_path)
    rig.trt.drops_bias = False  # a fixed TensorRT that calls itself the same
    with rig.engines(tmp_path)(version(1)) as engine:
        assert answers_for(engine, version(1))
    assert rig.trt.built == 2


def test_an_engine_that_fails_at_its_canary_is_refused(rig):
    rig.trt.runs = False
    assert refusal(rig) == "TensorRT did not answer: Cuda Runtime (out of memory)"


def test_a_refused_version_leaves_room_for_the_next(rig):
    engines = rig.engines()
    serving = engines(version(1))
    rig.trt.refits = rig.trt.builds = False
    for _ in range(4):
        with pytest.raises(EngineUnavailableError):
            engines(version(2))
    assert answers_for(serving, version(1))
    rig.trt.refits = rig.trt.builds = True
    assert answers_for(engines(version(2)), version(2))


def test_weights_that_must_not_serve_are_not_even_exported(rig):
    arrays = dict(version(1).arrays)
    del arrays["units.0.bias"]
    with pytest.raises(WeightsError, match=r"units\.0\.bias"):
        rig.engines()(dataclasses.replace(version(1), arrays=arrays))
    assert rig.trt.built == 0


@pytest.mark.parametrize("fault", ["runs", "cuMemcpyHtoDAsync", "cuStreamSynchronize"])
def test_a_fault_while_serving_is_this_request_s_alone(rig, fault):
    x = samples(5)[0]
    with rig.engines()(version(1)) as engine:
        before = engine.predict(x).goodness
        if fault == "runs":
            rig.trt.runs = False
        else:
            rig.driver.fails = fault
        with pytest.raises(EngineFailedError, match="TensorRT did not answer"):
            engine.predict(x)
        rig.trt.runs, rig.driver.fails = True, None
        np.testing.assert_array_equal(engine.predict(x).goodness, before)
        assert answers_for(engine, version(1))


# --- what the registry makes of it ----------------------------------------------------------------


def test_where_tensorrt_opens_it_is_preferred(rig):
    with rig.installed():
        opened = open_predict_engine()
        with opened.open(version(1)) as engine:
            assert answers_for(engine, version(1))
    assert (opened.name, opened.reason) == ("tensorrt", "first in order that opened; on the GPU")
    assert rig.trt.built == 1


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda rig: setattr(rig.trt, "gpu", False), "nullptr"),
        (lambda rig: setattr(rig.driver, "device", False), "no CUDA-capable device"),
    ],
)
def test_without_a_gpu_torch_serves_and_says_why(rig, spoil, why):
    spoil(rig)
    with rig.installed():
        opened = open_predict_engine()
        with pytest.raises(EngineUnavailableError, match=f"no engine opened: tensorrt: .*{why}"):
            open_predict_engine("tensorrt")
    assert opened.name == "torch"
    assert why in opened.reason


@pytest.mark.parametrize("module", ["tensorrt", "pycuda", "pycuda.driver"])
def test_without_a_module_torch_serves_and_names_it(rig, module):
    with rig.installed() as patch:
        patch.setitem(sys.modules, module, None)
        opened = open_predict_engine()
    assert opened.name == "torch"
    assert f"import of {module} halted" in opened.reason.partition("tensorrt: ")[2]


def test_without_onnx_torch_serves_and_names_it():
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "from engines import open_predict_engine as o; print(o().name, o().reason)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    where = "torch first in order that opened; on cpu (asked for by name)"
    assert done.stdout.startswith(f"{where}; tensorrt: import of onnx")


def test_a_wrong_canary_hands_over_to_torch_for_good(rig, caplog):
    rig.trt.drops_bias = True
    with rig.installed():
        opened = open_predict_engine()
        with opened.open(version(1)) as engine:
            assert answers_for(engine, version(1))
        with opened.open(version(2)) as engine:
            assert answers_for(engine, version(2))
    assert opened.name == "torch"
    assert "tensorrt: TensorRT differs from the learner by" in opened.reason
    assert rig.trt.built == 1
    assert "engine changed" in caplog.text


def test_asked_for_by_name_tensorrt_refuses_a_version_and_stays(rig):
    with rig.installed():
        opened = open_predict_engine("tensorrt")
        serving = opened.open(version(1))
        rig.trt.refits = rig.trt.builds = False
        with pytest.raises(EngineUnavailableError, match="could not build"):
            opened.open(version(2))
        rig.trt.refits = rig.trt.builds = True
        assert answers_for(opened.open(version(3)), version(3))
    assert answers_for(serving, version(1))
    assert (opened.name, opened.reason) == ("tensorrt", "asked for by name; on the GPU")


def test_the_registry_reports_what_tensorrt_logged(rig, caplog):
    caplog.set_level(logging.INFO)
    rig.trt.gpu = False
    with rig.installed():
        reason = open_predict_engine().reason
    assert "TensorRT unavailable" in reason
    assert "CUDA initialization failure with error: 35" in reason
