"""The commands that draw figures and tables: each at a tiny size, and its arithmetic by hand."""

from __future__ import annotations

import gc
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from benchmarks import child, runner
from benchmarks.paper import FIG_6

ROOT = Path(__file__).resolve().parents[1]
PNG = b"\x89PNG\r\n\x1a\n"
TINY = ("--epochs", "1", "--limit", "96", "--batch", "32", "--fusion", "eager")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch, capsys) -> Iterator[Run]:
    """A command of `benchmarks`, its trials in this process."""
    # What pytest has loaded is no garbage: meters collect it several times a trial.
    gc.freeze()
    monkeypatch.setattr(
        runner,
        "run_child",
        lambda trial, split, show: child.run_trial(
            trial, split, lambda message: show(trial, message)
        ),
    )

    def call(name: str, *arguments: str) -> tuple[int, str, str]:
        status = import_module(f"benchmarks.{name}").main([*arguments])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    yield call
    gc.unfreeze()


def drawn_again(run: Run, monkeypatch, name: str, file: Path, out: str, *options: str) -> None:
    """`--draw` shows the same from the file alone, and a plot."""

    def forbidden(*arguments: object) -> None:
        raise AssertionError("--draw measures nothing")

    plot = file.with_suffix(".png")
    assert plot.read_bytes().startswith(PNG)
    plot.unlink()
    monkeypatch.setattr(runner, "run_child", forbidden)
    status, again, _ = run(name, "--json", str(file), "--draw", *options)
    assert (status, again) == (0, out)
    assert plot.read_bytes().startswith(PNG)
    assert sorted(file.parent.iterdir()) == sorted([file, plot])


# --- every command at a tiny size ---------------------------------------------------------------


def test_collapse(run, monkeypatch, tmp_path):
    file = tmp_path / "a.json"
    status, out, err = run(
        "collapse", "--data", "digits", *TINY, "--depths", "0,2", "--hidden-width", "12",
        "--methods", "bp-fp32,bp-int8,ff-int8", "--seeds", "0,1", "--json", str(file),
    )  # fmt: skip
    assert status == 0, err
    records = json.loads(file.read_text())
    found = [(r["seed"], len(r["settings"]["hidden"]), r["method"]) for r in records]
    below = [(0, "bp-fp32"), (0, "bp-int8"), (2, "bp-fp32"), (2, "bp-int8"), (2, "ff-int8")]
    assert found == [(seed, *one) for seed in (0, 1) for one in below]
    rows = out.splitlines()
    assert rows[2].split()[0] == "0"
    assert rows[2].split()[-3:] == ["-", "89.5", "88.7"]  # no unit, and the paper's Table I
    assert rows[3].split()[-2:] == ["94.5", "62.4"]
    summary = json.loads(rows[-1])
    assert summary["accuracy_by_depth"]["2"]["ff-int8"] == pytest.approx(
        np.mean([r["accuracy"] for r in records if r["method"] == "ff-int8"])
    )
    drawn_again(run, monkeypatch, "collapse", file, out)


def test_a_network_that_diverges_is_a_result(run, tmp_path):
    file = tmp_path / "a.json"
    status, out, _ = run(
        "collapse", "--data", "digits", *TINY, "--learning-rate", "1e38", "--depths", "0",
        "--methods", "bp-fp32", "--seeds", "0", "--json", str(file),
    )  # fmt: skip
    assert status == 0
    assert "diverged: bp-fp32 seed 0" in out
    (record,) = json.loads(file.read_text())
    assert "lower --learning-rate" in record["diverged"]
    assert record["accuracy"] == record["accuracy_by_epoch"][-1] < 0.5


def test_whatever_diverges_leaves_its_record(run, tmp_path):
    """Forward-Forward's weights are refused by serving then: nothing is answered rightly."""
    file = tmp_path / "a.json"
    status, out, err = run(
        "train", "--data", "digits", "--model", "mlp", "--hidden", "33", "--epochs", "1",
        "--fusion", "eager", "--learning-rate", "1e38", "--optimizer", "sgd",
        "--methods", "bp-fp32,ff-int8", "--json", str(file),
    )  # fmt: skip
    assert status != 0
    assert err.count("lower --learning-rate") == 2
    records = json.loads(file.read_text())
    assert [r["method"] for r in records] == ["bp-fp32", "ff-int8"]
    assert all(r["diverged"] for r in records)
    assert records[1]["accuracy"] == 0.0
    assert "ff-int8" in out


@pytest.mark.parametrize("command", ["steps", "operations"])
def test_threads_are_those_asked_for(run, tmp_path, command):
    file = tmp_path / "a.json"
    sweeps = ("--batches", "20", "--widths", "1") if command == "operations" else ()
    status, _, err = run(
        command, "--hidden", "24,24", "--fusion", "eager", "--rounds", "1", "--steps", "1",
        "--threads", "1", *sweeps, "--json", str(file),
    )  # fmt: skip
    assert status == 0, err
    assert {r["machine"]["threads"] for r in json.loads(file.read_text())} == {1}


def test_look_ahead(run, monkeypatch, tmp_path):
    file = tmp_path / "a.json"
    status, out, err = run(
        "look_ahead", "--data", "digits", *TINY, "--hidden", "20,20,20", "--seeds", "0,1",
        "--variants", "off,on,exact,window-1", "--json", str(file),
    )  # fmt: skip
    assert status == 0, err
    records = json.loads(file.read_text())
    # Of the mlp, `on` is `exact`: run once.
    assert len(records) == 6
    gains = json.loads(out.splitlines()[-1])["points_above_off"]
    assert [*gains] == ["ff-int8, exact", "ff-int8, exact, window 1"]
    off, exact, _ = (records[place]["accuracy"] for place in range(3))
    assert 100 * (exact - off) == pytest.approx(gains["ff-int8, exact"]["low"]) or 100 * (
        exact - off
    ) == pytest.approx(gains["ff-int8, exact"]["high"])
    assert f"about {FIG_6['mlp'][0].accuracy:g} % at epoch 180 without" in " ".join(out.split())
    drawn_again(run, monkeypatch, "look_ahead", file, out)


def test_gradients(run, monkeypatch, tmp_path):
    file = tmp_path / "a.json"
    status, out, err = run(
        "gradients", "--data", "digits", *TINY, "--depths", "1,2", "--hidden-width", "12",
        "--json", str(file),
    )  # fmt: skip
    assert status == 0, err
    records = json.loads(file.read_text())
    layers = [(r["depth"], r["method"], r["layer"]) for r in records if r["quantity"] == "error"]
    assert layers == [
        (1, "bp-fp32", 1), (1, "bp-fp32", 2), (1, "ff-int8", 1),
        (2, "bp-fp32", 1), (2, "bp-fp32", 2), (2, "bp-fp32", 3), (2, "ff-int8", 1),
        (2, "ff-int8", 2),
    ]  # fmt: skip
    assert all(sum(r["counts"]) == r["elements"] for r in records)
    weights = {(r["method"], r["layer"]): r["elements"] for r in records if r["depth"] == 2
               and r["quantity"] == "weight"}  # fmt: skip
    assert weights["bp-fp32", 3] == 12 * 10
    assert weights["ff-int8", 1] == 64 * 12
    drawn_again(run, monkeypatch, "gradients", file, out)


def test_operations(run, monkeypatch, tmp_path):
    file = tmp_path / "a.json"
    status, out, err = run(
        "operations", "--hidden", "24,24", "--fusion", "eager", "--rounds", "2", "--steps", "1",
        "--batches", "8,24", "--widths", "1,2", "--widths-batch", "8", "--json", str(file),
    )  # fmt: skip
    assert status == 0, err
    summary = json.loads(out.splitlines()[-1])
    forward = 10 * (784 * 24 + 24 * 24)
    assert summary["macs"]["ff-int8, lambda 0"] == 2 * forward
    assert summary["macs"]["bp-fp32"] == 3 * (forward + 10 * 24 * 10) - 10 * 784 * 24
    assert [*summary["lines"]] == ["batch", "width"]
    for record in json.loads(file.read_text()):
        if record["kind"] == "count" and record["counted"]:
            walked = record["walked"]["int8_gemm"] + record["walked"]["float32"]
            assert sum(record["counted"].values()) >= walked > 0  # 10 rows are padded to 17
    drawn_again(run, monkeypatch, "operations", file, out)


def test_memory_is_measured_with_an_allocator_that_keeps_nothing(run, monkeypatch, tmp_path):
    file = tmp_path / "a.json"
    in_process, seen = runner.run_child, []

    def watched(*arguments: object) -> dict:
        seen.append(os.environ.get("MALLOC_MMAP_THRESHOLD_"))
        return in_process(*arguments)

    monkeypatch.setattr(runner, "run_child", watched)
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    status, out, err = run(
        "memory", "--hidden", "20", "--batch", "16", "--fusion", "eager", "--repeats", "2",
        "--methods", "bp-fp32,ff-int8", "--json", str(file),
    )  # fmt: skip
    assert status == 0, err
    assert seen == ["65536"] * 4
    assert "MALLOC_MMAP_THRESHOLD_" not in os.environ
    records = json.loads(file.read_text())
    assert [(r["method"], r["seed"]) for r in records] == [
        ("bp-fp32", 0), ("ff-int8", 0), ("bp-fp32", 1), ("ff-int8", 1),
    ]  # fmt: skip
    live = [r["planned_training_bytes"] for r in records[:2]]
    summary = json.loads(out.splitlines()[-1])
    assert summary["ratios"]["ff-int8/bp-fp32 live"] == pytest.approx(live[1] / live[0])
    drawn_again(run, monkeypatch, "memory", file, out)


def test_steps(run, tmp_path):
    file = tmp_path / "a.json"
    status, out, err = run(
        "steps", "--hidden", "20", "--fusion", "eager", "--rounds", "3", "--steps", "2",
        "--methods", "bp-fp32,bp-gdai8-like,ff-int8", "--clock", "cpu", "--json", str(file),
    )  # fmt: skip
    assert status == 0, err
    (record,) = json.loads(file.read_text())
    assert [*record["methods"]] == ["bp-fp32", "bp-gdai8-like", "ff-int8"]
    assert all(len(found["milliseconds"]) == 3 for found in record["methods"].values())
    assert record["methods"]["ff-int8"]["settings"]["masters"] == "float32"
    own, base = (record["methods"][m]["milliseconds"] for m in ("ff-int8", "bp-fp32"))
    given = json.loads(out.splitlines()[-1])["ratios"]["ff-int8/bp-fp32"]
    assert given["median"] == pytest.approx(
        np.median([a / b for a, b in zip(own, base, strict=True)])
    )
    assert [*tmp_path.iterdir()] == [file]  # nothing is drawn


def test_table5_and_networks_one_by_one(run, monkeypatch, tmp_path):
    file = tmp_path / "a.json"
    recipe = " ".join(TINY)
    options = (
        "--methods", "bp-fp32,ff-int8", "--seeds", "0", "--repeats", "1", "--rounds", "2",
        "--steps", "1", "--json", str(file),
    )  # fmt: skip
    mlp = f"--model mlp --data digits --hidden 20 {recipe}"
    status, _, err = run("table5", "--network", mlp, *options)
    assert status == 0, err
    resnet = f"--model resnet8 --width 0.5 --data digit-images {recipe}"
    status, out, err = run("table5", "--keep", "--network", resnet, *options)
    assert status == 0, err
    records = json.loads(file.read_text())
    assert [r["steps"]["model"] for r in records] == ["mlp", "resnet8"]
    assert [len(r["trials"]) for r in records] == [2, 2]
    # What it has of the same network is replaced.
    status, out, err = run("table5", "--keep", "--network", mlp, *options)
    assert status == 0, err
    again = json.loads(file.read_text())
    assert [r["steps"]["model"] for r in again] == ["resnet8", "mlp"]
    assert again[0] == records[1]
    summary = json.loads(out.splitlines()[-1])["ff-int8"]
    (bp, ff) = again[1]["trials"]
    points = 100 * (ff["accuracy"] - bp["accuracy"])
    assert summary["mlp/bp-fp32"]["points"] == pytest.approx(points)
    assert summary["mlp/bp-gdai8-like"]["time"] is None
    assert "[0.57]" in out  # the paper's memory of the mlp
    drawn_again(run, monkeypatch, "table5", file, out)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("collapse", ("--epochs", "1"), "--data is missing"),
        ("collapse", ("--draw",), "cannot be drawn"),
        ("look_ahead", ("--data", "digits", "--epochs", "1", "--variants", "of"), "known: off"),
        ("gradients", ("--data", "digits", "--epochs", "1", "--model", "resnet8"), "of the mlp"),
        ("table5", (), "there is no --network"),
        ("table5", ("--network", "--model mlp --epochs 1"), "--data is missing"),
        ("table5", ("--network", "--modl mlp"), "unrecognized arguments: --modl"),
        ("operations", ("--input-shape", "x"), "--input-shape: found 'x'"),
        ("memory", ("--methods", "bp-fp32,bp-fp32"), "--methods names one twice"),
        ("steps", ("--methods", "bp"), "method 'bp' is unknown"),
    ],
)
def test_commands_that_cannot_be_used(run, tmp_path, name, arguments, message):
    status, out, err = run(name, *arguments, "--json", str(tmp_path / "a.json"))
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_plot_needs_matplotlib_and_the_records_do_not(run, monkeypatch, tmp_path):
    file = tmp_path / "a.json"
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, out, err = run(
        "operations", "--hidden", "24", "--fusion", "eager", "--rounds", "0", "--json", str(file)
    )
    assert (status, [*tmp_path.iterdir()]) == (0, [file])
    assert "Table IV" in out
    assert "pip install '.[bench]' in the checkout" in err


def test_every_command_of_the_makefile_and_of_the_records_is_understood(tmp_path):
    """Its options parse; that it then finds no records is where `--draw` ends."""
    make = ["/usr/bin/env", "make", "--no-print-directory", "-n", "bench"]
    made = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    written = (ROOT / "benchmarks" / "RECORDS.md").read_text()
    texts = [made, *re.findall(r"(?:^    .*\n)+", written, re.MULTILINE)]
    commands = [
        shlex.split(line)
        for text in texts
        for line in text.replace("\\\n", " ").splitlines()
        if "-m benchmarks." in line
    ]
    assert len(commands) >= 12
    for command in commands:
        name, *options = command[command.index("-m") + 1 :]
        for option in ("--json", "--plot"):
            if option in options:
                options[options.index(option) + 1] = str(tmp_path / "absent")
        module = import_module(name)
        draws = name.removeprefix("benchmarks.") not in ("train", "steps")
        if draws:
            with pytest.raises(Exception, match="cannot be drawn"):
                module.run([*options, "--draw"])
        else:
            with pytest.raises(Exception, match=r"nothing is there|a folder that can be"):
                module.run([*options, "--data", "absent", "--json", str(tmp_path / "no" / "a")])
