"""The load tool, small: it runs, and its records say what happened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import ingest
from benchmarks.ingest_parts import PARTS
from benchmarks.ingest_requests import FORMS, make_requests


def test_a_small_run_writes_records_a_table_and_a_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "records.json"
    arguments = f"--json {file} --parts open --seconds 0.5 --rounds 1 --rate 100 --features 4"
    assert ingest.main([*arguments.split(), "--fsync-delays", "2", "--folder", str(tmp_path)]) == 0
    (record,) = json.loads(file.read_text())
    assert record["statuses"] == {"201": record["planned"]}
    assert 20 <= record["planned"] <= 100
    assert len(record["latency_quantiles"]) > 100
    # Every post waited for an fsync, and every fsync for the shim.
    assert record["latency_quantiles"][0] >= 0.002
    assert record["p50"] <= record["p99"] <= record["p999"]
    assert record["cpu_microseconds_per_post"] > 0
    assert file.with_suffix(".png").stat().st_size > 10_000
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["loads"]["open fsync+2ms"]["p99_seconds"] == record["p99"]


def test_what_cannot_be_done_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "records.json")
    assert ingest.main(["--json", file, "--parts", "closed,none"]) == 2
    assert "--parts are of closed, open" in capsys.readouterr().err


def test_every_part_has_a_line_of_help() -> None:
    assert ingest.__doc__ is not None
    for name in PARTS:
        assert f"\n    {name} " in ingest.__doc__


@pytest.mark.parametrize("form", FORMS)
def test_a_request_is_as_long_as_it_says(form: str) -> None:
    for request in make_requests(form, 3, 5, "x", seed=0):
        head, _, body = request.partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}\r\n".encode() in head + b"\r\n"


def test_a_large_store_is_shown_beside_an_empty_one() -> None:
    full = {"part": "full_and_empty", "empty_ready_seconds": 2.0}
    records = [full | {"samples_per_second": {"full": n, "empty": 10.0}} for n in (8.0, 9.0, 12.0)]
    summary = ingest._summary(records)
    assert summary["figures"]["rate, full / empty"] == 0.9
    assert isinstance(ingest.tabulate(records), list)
