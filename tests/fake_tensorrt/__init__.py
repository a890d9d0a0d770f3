"""TensorRT without a GPU, in three versions: see module.py."""

from tests.fake_tensorrt.module import FakeTensorRT

__all__ = ["FakeTensorRT"]
