"""What `import tensorrt` gives in a process that has this folder on its path."""

import os
import sys

from tests.fake_tensorrt.module import FakeTensorRT

fake = FakeTensorRT(os.environ["FAKE_TENSORRT_VERSION"])
fake.drops_bias = fake.refit_drops_bias = "FAKE_TENSORRT_DROPS_BIAS" in os.environ
sys.modules[__name__] = fake.module
