"""TensorRT's engines on the fakes, opened and looked into."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.tensorrt_predict import TensorRTEngines
from tests.fake_tensorrt.module import FakeTensorRT
from tests.fake_tensorrt.pycuda_driver import FakeDriver


class Rig:
    """A machine with a GPU and one version of TensorRT.

    Args:
        version: One of `api.VERSIONS`.
        driver: Stands in for pycuda; None: the real one, on the fake driver.
    """

    def __init__(self, version: str, driver: FakeDriver | None) -> None:
        self.trt = FakeTensorRT(version)
        self.driver = driver
        if driver is None:
            import pycuda.driver

            self.trt.has_current_context = lambda: pycuda.driver.Context.get_current() is not None
        else:
            self.trt.has_current_context = lambda: driver.depth > 0

    @contextlib.contextmanager
    def installed(self) -> Iterator[pytest.MonkeyPatch]:
        """The modules as a process of this machine would import them."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "tensorrt", self.trt.module)
            if self.driver is not None:
                self.driver.enter(patch)
            yield patch

    def engines(self, cache: Path | None = None) -> TensorRTEngines:
        """As a process opens them at its start."""
        with self.installed():
            return TensorRTEngines(cache)


def open_rig(version: str, driver: str, request: pytest.FixtureRequest | Any) -> Rig:
    """A rig on `fake`, or on the real `pycuda` where that can be built."""
    if driver == "fake":
        return Rig(version, FakeDriver())
    request.getfixturevalue("pycuda_rig").enter()
    return Rig(version, None)
