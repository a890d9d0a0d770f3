"""Against NVIDIA's real bindings of three versions, where only TensorRT and the GPU are missing.

That our calls bind is shown in two steps: the fake refuses calls that the dumps do not allow, and
the dumps say what the real modules say.
"""

from __future__ import annotations

import json

import pytest

from tests.fake_tensorrt.api import VERSIONS, dump
from tests.fake_tensorrt.bindings import HERE, open_bindings
from tests.fake_tensorrt.classes import CLASSES

WITH_A_GPU = """
import pytest
from tests.fake_tensorrt.pycuda_driver import FakeDriver
FakeDriver().enter(pytest.MonkeyPatch())
"""


@pytest.fixture(scope="module", params=VERSIONS)
def version(request):
    return request.param


@pytest.fixture(scope="module")
def bindings(version):
    return open_bindings(version)


def said(done) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_dumps_say_what_the_real_module_says(bindings, version):
    recorded = dump(version)
    names = [name for name in recorded if name != "__version__"]
    real = json.loads(said(bindings.run(str(HERE / "introspect.py"), *names)))
    assert real == recorded


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_the_fake_has_no_name_that_no_version_has(kind):
    for name in vars(kind):
        if not name.startswith("_"):
            assert any(name in dump(v)[kind.__name__] for v in VERSIONS), name


def test_without_a_gpu_the_registry_reports_tensorrt_and_torch_serves(bindings, version):
    code = WITH_A_GPU + (
        "from engines import open_predict_engine\n"
        "opened = open_predict_engine()\n"
        "print(opened.name, opened.reason, sep='|')"
    )
    name, reason = said(bindings.run("-c", code)).split("|")
    assert name == "torch"
    number = dump(version)["__version__"]
    assert reason == (
        "first in order that opened; on cpu (asked for by name); "
        f"tensorrt: TensorRT unavailable: {number}, no GPU: "
        "pybind11::init(): factory function returned nullptr"
    )


def test_without_its_libraries_tensorrt_is_named_as_unavailable(bindings, version):
    code = WITH_A_GPU + "from engines import open_predict_engine as o; print(o().reason)"
    reason = said(bindings.run("-c", code, stubs=False))
    major = version.partition(".")[0]
    assert "tensorrt: TensorRT unavailable: libnv" in reason
    assert f".so.{major}: cannot open shared object file" in reason


def test_our_logger_is_one_that_tensorrt_takes(bindings):
    code = """
import collections, tensorrt as trt
from engines.tensorrt_library import _logger
errors = collections.deque()
logger = _logger(trt, errors)
for name in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO"):
    severity = getattr(trt.ILogger, name)
    logger.log(severity, str(int(severity)))
print(isinstance(logger, trt.ILogger), *errors)
"""
    assert said(bindings.run("-c", code)) == "True 0 1"


def test_arrays_as_we_give_them_have_the_type_and_size_that_we_compare(bindings):
    code = """
import numpy as np, tensorrt as trt
for array in (np.zeros((2, 3), np.int8), np.float32(2), np.zeros((4, 1, 1), np.float32)):
    weights = trt.Weights(np.array(array).reshape(-1))
    print(weights.dtype == trt.DataType.INT8, weights.dtype == trt.DataType.FLOAT, weights.size)
"""
    assert said(bindings.run("-c", code)).splitlines() == [
        "True False 6",
        "False True 1",
        "False True 4",
    ]


def test_flags_are_numbers_only_through_int(bindings, version):
    code = """
import tensorrt as trt
print(int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED), int(trt.BuilderFlag.REFIT),
      int(trt.BuilderFlag.TF32), int(trt.MemoryPoolType.WORKSPACE))
"""
    typed = "0" if version == "11.4" else "1"
    assert said(bindings.run("-c", code)).split() == [typed, "4", "6", "0"]
