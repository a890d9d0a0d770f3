"""The harness of predictions beside training, small: it runs, and its figures are what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import serving_latency
from benchmarks.ingest_requests import make_predictions
from benchmarks.serving_rounds import Variant


def test_a_small_run_alternates_and_every_prediction_is_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "records.json"
    size = "--rounds 1 --seconds 1 --rate 40 --features 16 --hidden 20,20"
    assert serving_latency.main(["--json", str(file), *size.split()]) == 0
    off, on = json.loads(file.read_text())
    assert (off["training"], on["training"]) == (False, True)
    for record in (off, on):
        assert record["statuses"] == {"200": record["planned"]}
        assert record["planned"] > 10
        assert 0 < record["p50"] <= record["p99"]
    assert (off["duty"], off["steps"]) == (0.0, 0.0)
    assert on["duty"] == 1.0
    assert on["learner_cpu_ratio"] > off["learner_cpu_ratio"]
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["default"]["failed"] == 0
    assert summary["default"]["p99_ratio"] == pytest.approx(on["p99"] / off["p99"])


def test_variants_are_settings_of_the_daemon() -> None:
    found = Variant.parse("niceness=19,policy=idle,governor.max_duty=0.5,cores=0+1")
    assert found.environment == {
        "FFEDGE_LEARNER__NICENESS": "19",
        "FFEDGE_GOVERNOR__MAX_DUTY": "0.5",
    }
    assert (found.learner_cores, found.policy) == ((0, 1), "idle")


@pytest.mark.parametrize("arguments", ["--rounds 0", "--variant fast", "--rate -1"])
def test_what_cannot_be_done_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str
) -> None:
    file = str(tmp_path / "records.json")
    assert serving_latency.main(["--json", file, *arguments.split()]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_predictions_have_no_label_and_the_length_they_say() -> None:
    for request in make_predictions("json", 1, 5, "x", seed=0):
        head, _, body = request.partition(b"\r\n\r\n")
        assert head.startswith(b"POST /predict ")
        assert f"Content-Length: {len(body)}\r\n".encode() in head + b"\r\n"
        assert json.loads(body).keys() == {"x"}
