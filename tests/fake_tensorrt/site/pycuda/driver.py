"""See tests/fake_tensorrt/pycuda_driver.py."""

import sys

from tests.fake_tensorrt.pycuda_driver import FakeDriver

sys.modules[__name__] = FakeDriver().module
