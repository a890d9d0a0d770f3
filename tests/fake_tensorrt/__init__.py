"""TensorRT without a GPU, in three versions: see module.py and rig.py."""

from tests.fake_tensorrt.api import VERSIONS
from tests.fake_tensorrt.module import FakeTensorRT
from tests.fake_tensorrt.pycuda_driver import FakeDriver
from tests.fake_tensorrt.rig import Rig, open_rig

__all__ = ["VERSIONS", "FakeDriver", "FakeTensorRT", "Rig", "open_rig"]
