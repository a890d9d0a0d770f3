"""From an ONNX model to a TensorRT plan, built once and kept.

The network is strongly typed: the quantize and dequantize nodes of the model decide what is int8,
and no precision flag may be set. It has one optimisation profile, as a refittable engine must.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping

from engines.base import EngineUnavailableError
from engines.gpu import Gpu, GpuError
from engines.onnx_model import OnnxModel, fingerprint
from engines.plan_cache import Entry, PlanCache
from engines.tensorrt_library import Library

log = logging.getLogger(__name__)

# Rows that pass at a time: enough to fill the GPU, and what a request's buffers are sized for.
ROWS_MAX = 32
INPUT = "x"
_WORKSPACE_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True)
class Plan:
    """A built network.

    Args:
        content: What TensorRT opens.
        structure: Of the model that it was built from.
        built_with: Name of each learned value to its fingerprint at the time.
    """

    content: bytes
    structure: str
    built_with: Mapping[str, str]


class PlanBuilder:
    """Makes plans; one thread at a time.

    Args:
        library: TensorRT.
        gpu: What plans are made for.
        cache: Keeps them.
    """

    def __init__(self, library: Library, gpu: Gpu, cache: PlanCache) -> None:
        self._library = library
        self._gpu = gpu
        self._cache = cache

    def cached(self, model: OnnxModel) -> Plan | None:
        """The plan that was kept for this structure, whatever values it was built with."""
        entry = self._cache.load(self._key(model.structure))
        if entry is None:
            return None
        return Plan(entry.content, model.structure, entry.notes)

    def keep(self, plan: Plan) -> None:
        """Keep a plan that has proved right."""
        self._cache.save(self._key(plan.structure), Entry(plan.content, dict(plan.built_with)))

    def build(self, model: OnnxModel, input_shape: tuple[int, ...]) -> Plan:
        """A new plan with the model's values, timed with what earlier builds have measured.

        Args:
            model: The network.
            input_shape: Of one sample.

        Raises:
            EngineUnavailableError: TensorRT cannot parse or build it; the message says why.
        """
        started = time.monotonic()
        try:
            with self._gpu.current():
                content = self._build(model.content, input_shape)
        except GpuError as error:
            raise EngineUnavailableError(f"TensorRT could not build: {error}") from error
        built_with = {name: fingerprint(array) for name, array in model.learned.items()}
        seconds = round(time.monotonic() - started, 3)
        log.info("TensorRT plan built", extra={"seconds": seconds, "bytes": len(content)})
        return Plan(content, model.structure, built_with)

    def _build(self, onnx: bytes, input_shape: tuple[int, ...]) -> bytes:
        trt, builder = self._library.trt, self._library.builder
        self._library.errors.clear()
        typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(typed)
        parser = trt.OnnxParser(network, self._library.logger)
        if not parser.parse(onnx):
            errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
            raise EngineUnavailableError(
                "TensorRT cannot parse the network: " + ("; ".join(errors) or self._library.told())
            )
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)
        config.set_flag(trt.BuilderFlag.REFIT)
        config.clear_flag(trt.BuilderFlag.TF32)  # ten bits of a product's factors are too few
        profile = builder.create_optimization_profile()
        smallest, largest = (1, *input_shape), (ROWS_MAX, *input_shape)
        profile.set_shape(INPUT, smallest, largest, largest)
        config.add_optimization_profile(profile)
        kept = self._cache.load(self._key("timing"))
        timings = config.create_timing_cache(b"" if kept is None else kept.content)
        # None: of another TensorRT, or damaged.
        if timings is None or not config.set_timing_cache(timings, ignore_mismatch=False):
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            why = self._library.told()
            raise EngineUnavailableError(f"TensorRT could not build the network: {why}")
        measured = bytes(config.get_timing_cache().serialize())
        self._cache.save(self._key("timing"), Entry(measured, {}))
        return bytes(plan)

    def _key(self, structure: str) -> dict[str, str]:
        return {
            "structure": structure,
            "tensorrt": self._library.version,
            "gpu": self._gpu.name,
            "compute_capability": self._gpu.compute_capability,
            "rows": str(ROWS_MAX),
            "workspace_bytes": str(_WORKSPACE_BYTES),
        }
