"""The commands in docs/api.md do what they say, on a running daemon."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.running import RunningDaemon

API = (Path(__file__).parents[1] / "docs" / "api.md").read_text()


def commands(title: str) -> list[str]:
    """The commands of one section, with their continued lines."""
    section = API.split(f"\n## `{title}`\n")[1].split("\n## ")[0]
    return re.findall(r"^\$ ((?:.*\\\n)*.*)$", section, re.MULTILINE)


@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples are for curl")
def test_the_examples_work(tmp_path: Path) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "b.jpg")
    prediction = ""
    seen = set()
    environment = {"FFEDGE_MODEL__INPUT_SHAPE": "[1, 2, 2]"}
    with RunningDaemon(tmp_path, environment=environment) as daemon:
        address = str(daemon.client.base_url).removeprefix("http://").rstrip("/")
        for command in commands("POST /predict") + commands("POST /samples"):
            line = command.replace("localhost:8484", address).replace("p-Xk3wQ9", prediction)
            done = subprocess.run(
                ["bash", "-c", line], cwd=tmp_path, capture_output=True, check=True, timeout=30
            )
            if "curl" not in command:
                continue
            answer = json.loads(done.stdout)
            assert "error" not in answer, (command, answer)
            if "/predict" in command:
                assert "model_version" in answer
                prediction = prediction or answer["id"]
            else:
                assert answer["rejected"] == [], command
                assert answer["accepted"] >= 1, command
            seen |= set(re.findall(r"Content-Type: ([\w./-]+)", command))
        assert daemon.metric("ffedge_samples_stored") >= 12
    assert seen >= {"application/json", "application/x-ndjson", "application/msgpack"}
    assert seen >= {"application/octet-stream", "image/png", "image/jpeg"}
