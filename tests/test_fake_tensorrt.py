"""The fake refuses what TensorRT would: names, numbers and calls of the emulated version."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fake_tensorrt import VERSIONS, FakeTensorRT
from tests.fake_tensorrt.api import binds, dump, parameters


@pytest.fixture(params=VERSIONS)
def fake(request):
    return FakeTensorRT(request.param)


def logger(fake):
    class Log(fake.module.ILogger):
        def log(self, severity, message):
            pass

    return Log()


def test_enum_numbers_are_those_of_the_version():
    ten, eleven = FakeTensorRT("10.3").module, FakeTensorRT("11.4").module
    assert int(ten.NetworkDefinitionCreationFlag.STRONGLY_TYPED) == 1
    assert int(eleven.NetworkDefinitionCreationFlag.STRONGLY_TYPED) == 0
    assert int(ten.BuilderFlag.STRIP_PLAN) != int(eleven.BuilderFlag.STRIP_PLAN)


def test_what_a_version_lacks_is_absent():
    assert hasattr(FakeTensorRT("10.16").module.BuilderFlag, "INT8")
    assert not hasattr(FakeTensorRT("11.4").module.BuilderFlag, "INT8")
    assert not hasattr(FakeTensorRT("11.4").module.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH")
    assert not hasattr(FakeTensorRT("10.3").module.SerializationFlag, "INCLUDE_REFIT")


def test_an_enum_member_is_no_number(fake):
    flag = fake.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    with pytest.raises(TypeError):
        1 << flag


def test_a_call_that_would_not_bind_is_a_type_error(fake):
    trt = fake.module
    builder = trt.Builder(logger(fake))
    config = builder.create_builder_config()
    for call in (
        lambda: builder.create_network("flags"),
        lambda: builder.build_serialized_network(config),
        lambda: config.set_flag(int(trt.BuilderFlag.REFIT)),
        lambda: config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1.5),
        lambda: config.set_timing_cache(config.create_timing_cache(b"")),
        lambda: config.set_timing_cache(config.create_timing_cache(b""), overwrite=True),
        lambda: trt.Weights([1, 2]),
    ):
        with pytest.raises(TypeError, match="incompatible function arguments"):
            call()


def test_without_a_gpu_its_factories_return_nothing(fake):
    fake.gpu = False
    for factory in (fake.module.Builder, fake.module.Runtime):
        with pytest.raises(TypeError, match="factory function returned nullptr"):
            factory(logger(fake))


def test_work_without_a_context_and_refits_from_lost_arrays_are_noted(fake):
    fake.has_current_context = lambda: False
    builder = fake.module.Builder(logger(fake))
    builder.create_network(0)
    assert fake.violations == {
        "Builder.__init__ without a current context",
        "Builder.create_network without a current context",
        "the network is not strongly typed",
    }
    weights = fake.module.Weights(np.zeros(3, np.int8))
    assert weights._array() is None  # a pointer, as the real one keeps


@pytest.mark.parametrize("version", VERSIONS)
def test_every_recorded_signature_can_be_read(version):
    for owner, methods in dump(version).items():
        for method, signatures in methods.items() if isinstance(methods, dict) else ():
            for signature in signatures if isinstance(signatures, list) else ():
                assert all(p.name.isidentifier() and p.kind for p in parameters(signature)), (
                    owner,
                    method,
                )
    assert binds(version, "OnnxParser", "parse", (b"model",), {})
    assert not binds(version, "OnnxParser", "parse", ("model",), {})
