"""The weights that answer before anything was learned, made here or by a child."""

from __future__ import annotations

import subprocess
import sys

import pytest

from engines import untrained, weights_digest
from engines.untrained import untrained_weights, untrained_weights_by_child
from tests.contracts import SPEC
from tests.networks import TINY


@pytest.mark.parametrize("spec", [SPEC, TINY["resnet8"]], ids=lambda spec: spec.name)
def test_a_child_makes_the_same_weights(spec):
    here = untrained_weights(spec, seed=5, version=3)
    assert weights_digest(untrained_weights_by_child(spec, seed=5, version=3)) == weights_digest(
        here
    )
    assert (here.version, here.classes, here.parent, here.last_seq) == (3, (), None, 0)
    assert weights_digest(untrained_weights(spec, seed=6, version=3)) != weights_digest(here)


def test_while_a_child_makes_them_this_process_has_no_torch():
    code = f"""if True:
        import sys
        from engines.untrained import untrained_weights_by_child
        from models import ModelSpec
        spec = ModelSpec.from_json({SPEC.to_json()})
        print(untrained_weights_by_child(spec, seed=1, version=7).version, "torch" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["7", "False"]


def test_a_child_that_fails_is_an_error_that_says_so(monkeypatch, capfd):
    monkeypatch.setattr(untrained.sys, "executable", "/bin/false")
    with pytest.raises(OSError, match="ended with 1"):
        untrained_weights_by_child(SPEC, seed=1, version=1)
