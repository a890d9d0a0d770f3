"""Peak of the tensor memory that training needs, counted from the allocator's own events.

The other way to see memory is the kernel's (`benchmarks/meter.py`): what the process really
occupied, with all that the C library keeps and rounds up. This one is exact and repeatable: torch's
profiler reports each allocation and release of tensor memory with its size, whoever asks: eager
operations, the inside of an operation, compiled code, a hand-written engine. So the same count
serves every method:

    build the method, take two steps, take a third: its highest sum of bytes not yet released

Weights, optimizer state and kept scratch are in the sum since they were allocated before and are
still alive; activations, gradients and temporaries come and go in it. Not counted: what a library
takes from the system behind torch's back (oneDNN's packed weights, which favours float32), and
NumPy's arrays.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import TypeVar

from torch.profiler import ProfilerActivity, profile, record_function

_STEP = "ffedge.live_bytes.step"
_WARM_UP_STEPS = 2

T = TypeVar("T")


def peak_live_bytes(build: Callable[[], T], step: Callable[[T], object]) -> int:
    """Highest sum of live tensor bytes within one step, above what lived before `build`.

    Args:
        build: Makes what is trained; called once.
        step: Trains it by one step; called three times, so that what a first step allocates for
            good is there.
    """
    # Else the profiler's library prints a line on standard error at each start and stop.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    # Else garbage of an earlier count may be released in this one, which never saw it allocated.
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trained = build()
        for _ in range(_WARM_UP_STEPS):
            step(trained)
        with record_function(_STEP):
            step(trained)
    events = profiler.profiler.kineto_results.events()
    (window,) = (event for event in events if event.name() == _STEP)
    began, ended = window.start_ns(), window.start_ns() + window.duration_ns()
    changes = sorted(
        ((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"),
        key=lambda change: change[0],
    )
    live = peak = 0
    for time, size in changes:
        if time > ended:
            break
        live += size
        peak = live if time < began else max(peak, live)
    return peak
