"""Prediction with TensorRT: two native engines, one that answers and one that is made ready.

`open` runs off the request path. It takes the idle engine, gives it the new version's values by a
refit, and checks it against the canary before anyone may ask it; a request that still holds the old
version keeps the other engine until it is done. What is tried, in order, each with its reason:

    refit      every value that differs can be named to the engine; those that cannot are unchanged
    rebuild    a new plan, with the timings of earlier builds
    refuse     `EngineUnavailableError`: the registry serves through the next engine

Threads: one predicts, another opens. They meet in the pool alone, a queue that may be used from a
garbage collector's callback too, since an engine comes back when the last request lets it go.
"""

from __future__ import annotations

import gc
import logging
import queue
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.base import (
    EngineFailedError,
    EngineUnavailableError,
    PredictEngine,
    Prediction,
    Weights,
)
from engines.batch import check_input
from engines.canary import CANARY_TOLERANCE, canary_error
from engines.gpu import open_gpu
from engines.latent import Latent, latent_scale_name, latent_shape
from engines.onnx_model import OnnxModel, answering_model, prefix_model
from engines.plan_cache import PlanCache
from engines.tensorrt_build import Plan, PlanBuilder
from engines.tensorrt_library import open_library
from engines.tensorrt_native import NativeEngine, RefitError

log = logging.getLogger(__name__)

ENGINES = 2
# How long `open` waits for a request to let the old version go.
_IDLE_SECONDS = 30.0

Make = Callable[[Plan], NativeEngine]
Verify = Callable[[NativeEngine], None]


class TensorRTPredictEngine(PredictEngine):
    """See `PredictEngine`. Made by `TensorRTEngines`.

    Args:
        weights: Checked.
        native: Holds their values.
        give_back: Takes it when this engine is closed, or gone.
        open_prefix: Makes the native engine of the first units.
    """

    def __init__(
        self,
        weights: Weights,
        native: NativeEngine,
        give_back: Callable[[NativeEngine], None],
        open_prefix: Callable[[Weights, int], NativeEngine],
    ) -> None:
        self._weights = weights
        self._native: NativeEngine | None = native
        self._open_prefix = open_prefix
        self._prefixes: dict[int, NativeEngine] = {}
        self._lock = threading.Lock()  # so that `close` waits for a request
        self._give_back = weakref.finalize(self, give_back, native)

    def predict(self, x: NDArray[np.float32]) -> Prediction:
        """See `PredictEngine.predict`."""
        check_input(x, self._weights.spec)
        with self._lock:
            goodness: NDArray[np.float32] = self._opened().run(x)
        classes = len(self._weights.classes)
        if classes == 0:
            return Prediction(np.full(len(x), -1, dtype=np.int64), goodness)
        return Prediction(goodness[:, :classes].argmax(axis=1).astype(np.int64), goodness)

    def latent(self, x: NDArray[np.float32], units: int) -> Latent:
        """See `PredictEngine.latent`; builds the engine of a prefix when first asked for it."""
        spec = self._weights.spec
        latent_shape(spec, units)
        check_input(x, spec)
        with self._lock:
            self._opened()
            if units not in self._prefixes:
                self._prefixes[units] = self._open_prefix(self._weights, units)
            codes = self._prefixes[units].run(x)
        scale = self._weights.arrays[latent_scale_name(spec, units)]
        return Latent(codes, np.array(scale, dtype=np.float32))

    def _opened(self) -> NativeEngine:
        if self._native is None:
            raise RuntimeError("the engine is closed")
        return self._native

    def close(self) -> None:
        """See `PredictEngine.close`."""
        with self._lock:
            self._native = None
            self._prefixes.clear()
            self._give_back()


class TensorRTEngines:
    """Opens versions, one at a time.

    Args:
        cache: Folder for plans and timings; None: they are built in every process.

    Raises:
        ImportError: TensorRT, pycuda or the GPU cannot be had.
    """

    def __init__(self, cache: Path | None) -> None:
        self._gpu = open_gpu()
        self._library = open_library(self._gpu)
        self._builder = PlanBuilder(self._library, self._gpu, PlanCache(cache))
        self._plans: dict[str, Plan] = {}  # by structure
        # What a taker may have: an engine that is idle, or None, the room for one.
        self._pool: queue.SimpleQueue[NativeEngine | None] = queue.SimpleQueue()
        for _ in range(ENGINES):
            self._pool.put(None)
        self._opening = threading.Lock()
        self.builds = 0  # how often a refit was not enough

    def __call__(self, weights: Weights) -> TensorRTPredictEngine:
        """An engine for one version of the weights, checked against its canary.

        Args:
            weights: Checked.

        Raises:
            WeightsError: The weights must not serve.
            EngineUnavailableError: TensorRT cannot serve them.
            EngineFailedError: Requests have held both engines for too long.
        """
        weights.check()
        model = answering_model(weights)
        with self._opening:
            native = self._take(weights, model)
        return TensorRTPredictEngine(weights, native, self._pool.put, self._open_prefix)

    def _take(self, weights: Weights, model: OnnxModel) -> NativeEngine:
        try:
            if self._pool.empty():
                gc.collect()  # the traceback of a failed request may hold its engine in a cycle
            idle = self._pool.get(timeout=_IDLE_SECONDS)
        except queue.Empty as error:
            raise EngineFailedError(
                f"both TensorRT engines are in use, and none came back in {_IDLE_SECONDS:g} s: "
                "an older version is still held"
            ) from error
        try:
            return self._made_ready(weights, model, idle)
        except BaseException:
            self._pool.put(None)
            raise

    def _made_ready(
        self, weights: Weights, model: OnnxModel, idle: NativeEngine | None
    ) -> NativeEngine:
        spec = weights.spec

        def make(plan: Plan) -> NativeEngine:
            gpu, shape, output = self._gpu, spec.input_shape, (spec.max_classes,)
            return NativeEngine(self._library, gpu, plan, shape, "goodness", output, np.float32)

        def verify(native: NativeEngine) -> None:
            error = canary_error(weights, native.run)
            if not error <= CANARY_TOLERANCE:
                raise EngineUnavailableError(
                    f"TensorRT differs from the learner by {error:.3g} on the canary; at most "
                    f"{CANARY_TOLERANCE:g} may serve"
                )

        if idle is not None and idle.plan.structure != model.structure:
            idle.close()
            idle = None
        return self._refitted_or_rebuilt(model, spec.input_shape, idle, make, verify)

    def _open_prefix(self, weights: Weights, units: int) -> NativeEngine:
        """No canary tells what a prefix should give; its plan is made and refitted as the other."""
        spec, model = weights.spec, prefix_model(weights, units)

        def make(plan: Plan) -> NativeEngine:
            gpu, shape, output = self._gpu, spec.input_shape, latent_shape(spec, units)
            return NativeEngine(self._library, gpu, plan, shape, "codes", output, np.int8)

        with self._opening:
            return self._refitted_or_rebuilt(model, spec.input_shape, None, make, lambda _: None)

    def _refitted_or_rebuilt(
        self,
        model: OnnxModel,
        input_shape: tuple[int, ...],
        idle: NativeEngine | None,
        make: Make,
        verify: Verify,
    ) -> NativeEngine:
        plan = self._plans.get(model.structure) or self._builder.cached(model)
        if plan is not None:
            try:
                idle = idle or make(plan)
                _refit(idle, model)
                verify(idle)
                self._plans[model.structure] = plan
                return idle
            except (RefitError, EngineUnavailableError, EngineFailedError) as error:
                why = str(error)
            # Here, since an error on its way keeps hold of what is to be given back.
            log.warning("TensorRT engine is built again", extra={"why": why})
            if idle is not None:  # half of it may be new, and the build wants the memory
                idle.close()
        plan = self._builder.build(model, input_shape)
        self.builds += 1
        native = make(plan)
        try:
            verify(native)
        except (EngineUnavailableError, EngineFailedError) as error:
            native.close()
            raise EngineUnavailableError(str(error)) from error
        self._plans[model.structure] = plan
        self._builder.keep(plan)
        return native


def _refit(native: NativeEngine, model: OnnxModel) -> None:
    if fixed := sorted(native.fixed(model)):
        raise RefitError(
            f"{len(fixed)} values have changed that cannot be given to a built engine, such as "
            f"{fixed[0]!r}"
        )
    native.refit(model)
