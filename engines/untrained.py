"""Weights before anything was learned, for a service that must answer from its first moment.

Only the training engine draws them and knows their canary, and it loads torch. A process that
serves without torch has a child make them.
"""

from __future__ import annotations

import json
import subprocess
import sys

from engines.base import Weights
from engines.python_child import python_command
from engines.registry import open_train_engine
from engines.weights_file import weights_from_bytes, weights_to_bytes
from models import ModelSpec


def untrained_weights(spec: ModelSpec, *, seed: int, version: int) -> Weights:
    """Weights as drawn.

    Args:
        spec: The network.
        seed: Draws them.
        version: Their number.
    """
    fresh = open_train_engine(spec, seed=seed)
    return fresh.export(classes=(), version=version, parent=None, last_seq=0)


def untrained_weights_by_child(spec: ModelSpec, *, seed: int, version: int) -> Weights:
    """The same, while this process stays without torch.

    Raises:
        OSError: The child could not be started, or failed; what it had to say is in the log.
    """
    asked = {"spec": spec.to_json(), "seed": seed, "version": version}
    command = python_command("engines.untrained", json.dumps(asked))
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)  # noqa: S603 - our own
    if done.returncode:
        raise OSError(f"the process that makes the first weights ended with {done.returncode}")
    return weights_from_bytes(done.stdout)


def _main() -> None:
    asked = json.loads(sys.argv[1])
    spec = ModelSpec.from_json(asked["spec"])
    weights = untrained_weights(spec, seed=asked["seed"], version=asked["version"])
    sys.stdout.buffer.write(weights_to_bytes(weights))


if __name__ == "__main__":
    _main()
