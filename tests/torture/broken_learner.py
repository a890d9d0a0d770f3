"""A learner whose candidates hold what is no number, or no size, and which does not notice.

    BROKEN_VALUE=nan python -m tests.torture.broken_learner learner --config FILE

File and digest agree, so that only a server that looks for itself can tell. `serve` is the daemon
that has such a learner.
"""

from __future__ import annotations

import dataclasses
import os

import numpy as np

import daemon.__main__
import daemon.learning.process as process
import engines.python_child
from engines import Weights


def _spoilt(weights: Weights) -> Weights:
    bias = np.array(weights.arrays["units.0.bias"])
    bias[0] = float(os.environ["BROKEN_VALUE"])
    return dataclasses.replace(weights, arrays={**weights.arrays, "units.0.bias": bias})


def learner() -> None:
    """Be the learner."""
    to_bytes, digest = process.weights_to_bytes, process.weights_digest
    process.weights_to_bytes = lambda weights: to_bytes(_spoilt(weights))
    process.weights_digest = lambda weights: digest(_spoilt(weights))
    daemon.__main__.main()


def serve() -> None:
    """Be the daemon."""
    real = engines.python_child.python_command

    def command(module: str, *arguments: str) -> list[str]:
        if arguments[:1] == ("learner",):
            return real("tests.torture.broken_learner", *arguments)
        return real(module, *arguments)

    engines.python_child.python_command = command
    daemon.__main__.main()


if __name__ == "__main__":
    learner()
