"""Whether predictions are answered: by having one computed, as a client would."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np

from daemon.serving.slot import ServingSlot
from engines import EngineFailedError
from models import ModelSpec

# A load balancer waits about as long for an answer to its question.
_DEADLINE_SECONDS = 5.0


class PredictCheck:
    """Asks for one prediction at a time, however many want to know.

    Args:
        spec: The network.
        slot: What answers.
        predicting: Where predictions compute.
    """

    def __init__(self, spec: ModelSpec, slot: ServingSlot, predicting: Executor) -> None:
        self._slot, self._predicting = slot, predicting
        self._zeros = np.zeros((1, *spec.input_shape), np.float32)
        self._asked: Future[Any] | None = None

    async def why_not(self) -> str | None:
        """Why predictions are not answered; None: they are."""
        if self._asked is None or self._asked.done():
            served = self._slot.current
            self._asked = self._predicting.submit(served.answer, self._zeros)
        asked = self._asked
        try:
            # Shielded: who gives up waiting, or hangs up, must not cancel it for the others.
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(asked)), _DEADLINE_SECONDS)
        except EngineFailedError:
            return "the engine does not answer"
        except asyncio.TimeoutError:
            return f"no prediction was computed within {_DEADLINE_SECONDS:g} s"
        return None
