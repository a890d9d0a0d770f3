"""TensorRT's Python module, its log and its factories: the one file that imports it.

Written for 10.3, 10.16 and 11.4 alike: no name that one of them lacks, and enum values only as
`int(trt.Enum.NAME)`, since the integers moved.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
from types import ModuleType
from typing import Any, SupportsInt

from engines.gpu import Gpu, GpuError

log = logging.getLogger(__name__)

_ERRORS_KEPT = 8


@dataclasses.dataclass(frozen=True)
class Library:
    """What all builds and engines of a process share.

    Args:
        trt: The module.
        logger: Takes TensorRT's messages; see `told`.
        builder: Makes plans; one thread at a time.
        runtime: Opens plans; outlives every engine.
        errors: The newest messages of errors.
    """

    trt: ModuleType
    logger: Any
    builder: Any
    runtime: Any
    errors: collections.deque[str]

    @property
    def version(self) -> str:
        """Such as 10.3.0."""
        return str(self.trt.__version__)

    def told(self) -> str:
        """What TensorRT has complained of since this was last asked, for an error's message."""
        messages = []
        with contextlib.suppress(IndexError):  # another thread may ask at the same time
            while True:
                messages.append(self.errors.popleft())
        return "; ".join(messages) or "TensorRT gave no reason"


def open_library(gpu: Gpu) -> Library:
    """TensorRT on this GPU.

    Raises:
        ImportError: TensorRT is not installed, lacks its libraries, or cannot use the GPU.
    """
    try:
        import tensorrt as trt
    except (ImportError, OSError) as error:
        raise ImportError(f"TensorRT unavailable: {error}") from error
    errors: collections.deque[str] = collections.deque(maxlen=_ERRORS_KEPT)
    logger = _logger(trt, errors)
    try:
        with gpu.current():
            builder, runtime = trt.Builder(logger), trt.Runtime(logger)
    except (TypeError, GpuError) as error:  # a factory that returned nullptr is a TypeError
        why = "; ".join([*errors, str(error)])
        raise ImportError(f"TensorRT unavailable: {trt.__version__}, no GPU: {why}") from error
    return Library(trt, logger, builder, runtime, errors)


def _logger(trt: ModuleType, errors: collections.deque[str]) -> object:
    base: Any = trt.ILogger

    class Log(base):  # type: ignore[misc]
        """Passes TensorRT's messages on."""

        def __init__(self) -> None:
            base.__init__(self)  # pybind11 demands it by name

        def log(self, severity: SupportsInt, message: str) -> None:
            """Called by TensorRT, from any thread."""
            if int(severity) <= int(base.ERROR):
                errors.append(message)
                log.error("TensorRT", extra={"said": message})
            elif int(severity) == int(base.WARNING):
                log.info("TensorRT", extra={"said": message})

    return Log()
