"""`ffedge demo` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.timeout(300)
def test_the_demo_learns_digits_over_http() -> None:
    command = [sys.executable, "-m", "daemon", "demo", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["samples"] == 1797
    assert result["holdout_accuracy"] >= 0.95
    assert result["progressive_accuracy"] > 0.7
    assert result["swaps_accepted"] >= 3
    assert result["predictions"] > 100
    assert result["predictions_failed"] == 0
