"""The benchmark command: trials, meters, records, and one tiny real run."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.child import Fit
from benchmarks.datasets import DIGITS
from benchmarks.meter import EnergyMeter, MemoryMeter, commit, machine
from benchmarks.report import summarize
from benchmarks.samples import label_samples
from benchmarks.trial import METHOD_NAMES, Trial, TrialError

ROOT = Path(__file__).resolve().parents[1]
FIELDS = [
    "method", "model", "width", "data", "seed", "epochs", "batch", "parameters", "accuracy",
    "accuracy_by_epoch", "diverged", "train_seconds", "step_milliseconds", "peak_training_bytes",
    "planned_training_bytes", "energy_joules", "commit", "machine",
]  # fmt: skip


def trial(**changes: object) -> Trial:
    fields = {
        "method": "ff-int8", "model": "mlp", "data": DIGITS, "test": None, "seed": 0, "epochs": 8,
        "batch": 16, "hidden": (20, 20), "width": 1.0, "learning_rate": 1e-3,
        "schedule": "cosine", "weight_decay": 0.0, "augment": False, "look_ahead": (0.2, 1.6),
        "limit": None, "threads": None, "fusion": "eager",
    }  # fmt: skip
    return Trial(**(fields | changes))


# --- trials and methods ------------------------------------------------------------------------


def test_schedules():
    t = trial(epochs=8)
    assert t.learning_rate_at(0) == 1e-3
    assert t.learning_rate_at(4) == pytest.approx(5e-4)
    assert t.learning_rate_at(8) == pytest.approx(0.0)
    assert [t.look_ahead_at(0), t.look_ahead_at(7)] == pytest.approx([0.2, 1.6])
    assert t.look_ahead_at(3) == pytest.approx(0.8)  # the prototype's 0.2 + 0.2 e
    assert t.look_ahead_at(7.99) == pytest.approx(1.6)  # constant within an epoch
    assert trial(epochs=1).look_ahead_at(0) == 0.2


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "bp"}, {"model": "cnn"}, {"epochs": 0}, {"batch": 0}, {"seed": -1},
        {"width": 0.0}, {"learning_rate": float("nan")}, {"look_ahead": (-1.0, 0.0)},
        {"limit": 0}, {"threads": 0}, {"schedule": "step"}, {"fusion": "none"},
        {"weight_decay": -0.1}, {"masters": "int4"}, {"optimizer": "adam2"}, {"window": -1},
        {"look_ahead_form": "squared"}, {"negatives": "soft"}, {"threshold": 0.0},
        {"optimizer": "sgd", "weight_decay": 0.1},
    ],
)  # fmt: skip
def test_trials_that_cannot_be(changes):
    with pytest.raises(TrialError, match=r"wanted|known"):
        trial(**changes)


def test_width_scales_hidden_and_may_not_go_below_the_classes():
    assert trial(width=1.5).spec((64,), 10).hidden == (30, 30)
    conv = trial(model="resnet8", width=0.5).spec((3, 32, 32), 10)
    assert (conv.hidden, conv.width) == ((), 0.5)
    with pytest.raises(TrialError, match="--hidden and --width"):
        trial(width=0.25).spec((64,), 10)
    with pytest.raises(TrialError, match="--augment wants"):
        trial(augment=True).spec((64,), 10)


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_methods_learn_count_and_repeat(name):
    from benchmarks.methods import METHODS

    random = np.random.default_rng(0)
    labels = np.arange(200) % 4
    x = (np.eye(4)[labels] + 0.2 * random.normal(size=(200, 4))).astype(np.float32)
    samples = label_samples(x, labels, "made up")
    before = samples.x.copy()
    t = trial(method=name, learning_rate=1e-2)
    runs = []
    for _ in range(2):
        method = METHODS[name](t, t.spec((4,), 4), samples)
        method.start_step(0.0)
        losses = [method.step(samples.x, samples.labels) for _ in range(30)]
        # An INT8 weight that steps too small for its code cannot move it; a threshold that rows of
        # four features hardly reach slows the paper's objective; the others learn this.
        loss, accuracy = {"bp-int8-codes": (0.9, 0.5), "ff-int8-two-pass": (0.75, 0.9)}.get(
            name, (0.5, 0.95)
        )
        assert losses[-1] < losses[0] * loss
        assert method.accuracy(samples) > accuracy
        runs.append(losses)
    assert runs[0] == runs[1]
    np.testing.assert_array_equal(samples.x, before)
    hidden = 4 * 20 + 20 + 20 * 20 + 20
    more = {"ff-int8": 0, "ff-int8-two-pass": 4 * 20}.get(name, 20 * 4 + 4)  # labels, or a head
    assert method.parameters == hidden + more


def test_one_cycle_is_torch_s():
    t = trial(schedule="one-cycle", epochs=10)
    weight = torch.zeros(1, requires_grad=True)
    adam = torch.optim.AdamW([weight], lr=1e-3)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        adam, 1e-3, total_steps=10_001, cycle_momentum=False
    )
    wanted = []
    for _ in range(10_001):
        wanted.append(cycle.get_last_lr()[0])
        adam.step()
        if len(wanted) < 10_001:
            cycle.step()
    # torch ends its rise one step early.
    found = [t.learning_rate_at(step / 1000) for step in range(10_001)]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert found[0] == pytest.approx(1e-3 / 25)
    assert max(found) == found[3000] == 1e-3
    assert found[-1] == pytest.approx(1e-3 / 25e4)


def test_augmentation_is_the_same_for_every_method():
    x = np.random.default_rng(0).integers(0, 256, (40, 3, 8, 8)).astype(np.uint8)
    samples = label_samples(x, np.arange(40) % 2, "made up")

    def batches(**changes: object) -> list[tuple[bytes, float]]:
        seen = []

        class Recorder:
            def start_step(self, epoch: float) -> None:
                self.epoch = epoch

            def step(self, x: np.ndarray, labels: np.ndarray) -> float:
                assert (x.dtype, x.max() <= 1.0) == (np.float32, True)
                seen.append((x.tobytes(), self.epoch))
                return 0.0

        fit = Fit(trial(**changes), samples, 20, EnergyMeter(Path("absent")), lambda message: None)
        for epoch in range(2):
            fit.epoch(Recorder(), epoch)
        return seen

    plain, moved = batches(), batches(augment=True)
    assert [epoch for _, epoch in moved] == [0.0, 0.5, 1.0, 1.5]
    assert batches(augment=True, method="bp-fp32") == moved
    assert all(a != b for a, b in zip(plain, moved, strict=True))
    assert {*batches(augment=True, seed=1)}.isdisjoint(moved)


def test_every_method_name_has_a_method():
    from benchmarks.methods import METHODS

    assert tuple(METHODS) == METHOD_NAMES


# --- meters ------------------------------------------------------------------------------------


def test_memory_meter_sees_an_allocation():
    meter = MemoryMeter()
    if not meter.mark():
        pytest.skip("the high-water mark cannot be set back here")
    before = meter.high_water_bytes()
    block = np.ones(64 << 20, dtype=np.uint8)
    del block  # the mark stays
    peak = meter.high_water_bytes()
    assert before is not None
    assert peak is not None
    # 64 MiB, within what the kernel's per-core counts and the interpreter itself may add or lack.
    assert abs((peak - before) - (64 << 20)) < 4 << 20
    assert meter.mark()
    after = meter.high_water_bytes()
    assert after is not None
    assert after < peak - (60 << 20)


def test_memory_meter_without_a_kernel_that_tells(tmp_path):
    meter = MemoryMeter(tmp_path / "absent")
    assert not meter.mark()
    assert meter.high_water_bytes() is None
    (tmp_path / "status").write_text("VmPeak:\t  9 kB\nVmHWM:\t   123 kB\n")
    assert MemoryMeter(tmp_path).high_water_bytes() == 123 * 1024


def rapl(root: Path, domain: str, name: str, energy: int) -> Path:
    folder = root / domain
    folder.mkdir(exist_ok=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text("999999\n")
    return folder / "energy_uj"


def test_energy_counts_packages_once_and_survives_a_wrap(tmp_path):
    first = rapl(tmp_path, "intel-rapl:0", "package-0", 100)
    second = rapl(tmp_path, "intel-rapl:1", "package-1", 999_990)
    others = [
        rapl(tmp_path, "intel-rapl:0:0", "core", 0),
        rapl(tmp_path, "intel-rapl-mmio:0", "package-0", 0),
    ]
    meter = EnergyMeter(tmp_path)
    meter.start()
    first.write_text("600")
    second.write_text("10")  # 999,990 -> 10 in a counter of a million values: 20
    for other in others:
        other.write_text("5000")
    meter.poll()
    assert meter.joules == pytest.approx(520e-6)
    first.write_text("100600")  # between trainings: not counted
    meter.start()
    first.write_text("100700")
    meter.poll()
    assert meter.joules == pytest.approx(620e-6)
    first.unlink()
    meter.poll()
    assert meter.joules is None  # a part unknown is a sum unknown


def test_energy_without_a_meter_is_absent_not_zero(tmp_path):
    meter = EnergyMeter(tmp_path / "absent")
    meter.start()
    meter.poll()
    assert meter.joules is None


def test_machine_and_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: sse avx512_vnni amx_int8\n"
    )
    (tmp_path / "meminfo").write_text("MemTotal:       1000 kB\n")
    (tmp_path / "device-tree").mkdir()
    (tmp_path / "device-tree" / "model").write_bytes(b"NVIDIA Jetson\0")
    found = machine(tmp_path)
    assert (found["cpu"], found["board"], found["memory_bytes"]) == (
        "Some CPU", "NVIDIA Jetson", 1_024_000,
    )  # fmt: skip
    assert found["malloc"]["MALLOC_ARENA_MAX"] == "2"
    assert found["int8"] == ["amx_int8", "avx512_vnni"]
    assert found["onednn"]["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert machine(tmp_path / "absent")["memory_bytes"] is None
    assert commit(tmp_path / "absent") is None


# --- report ------------------------------------------------------------------------------------


def test_differences_are_taken_seed_by_seed():
    def record(method: str, seed: int, accuracy: float, step: float, peak: int | None) -> dict:
        return {
            "method": method, "seed": seed, "accuracy": accuracy, "parameters": 5,
            "train_seconds": 1.0, "step_milliseconds": step, "peak_training_bytes": peak,
            "planned_training_bytes": 2 * accuracy, "energy_joules": None,
        }  # fmt: skip

    summaries = summarize(
        [
            record("bp-fp32", 0, 0.90, 2.0, 100),
            record("ff-int8", 0, 0.92, 1.0, 50),
            record("bp-fp32", 1, 0.80, 4.0, 100),
            record("ff-int8", 1, 0.81, 1.0, None),
        ]
    )
    bp, ff = summaries["bp-fp32"], summaries["ff-int8"]
    assert bp["accuracy_mean"] == pytest.approx(0.85)
    assert bp["accuracy_deviation"] == pytest.approx(0.1 / 2**0.5)
    assert (bp["points"], bp["step_ratio"]) == (None, None)
    assert ff["points"] == pytest.approx(1.5)
    assert ff["step_ratio"] == pytest.approx(0.375)
    assert (ff["peak_training_bytes"], ff["peak_ratio"]) == (None, None)
    assert ff["planned_ratio"] == pytest.approx((0.92 / 0.90 + 0.81 / 0.80) / 2)
    alone = summarize([record("ff-int8", 0, 0.9, 1.0, 50)])["ff-int8"]
    assert (alone["points"], alone["accuracy_deviation"]) == (None, None)


# --- the command -------------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "benchmarks.train", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip


def test_tiny_run_on_digits(tmp_path):
    file = tmp_path / "records.json"
    done = command(
        *("--model", "mlp", "--data", DIGITS, "--methods", "bp-fp32,ff-int8", "--epochs", "2"),
        *("--seeds", "3", "--width", "0.1", "--learning-rate", "5e-3", "--batch", "32"),
        *("--threads", "1", "--fusion", "eager", "--json", str(file)),
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    records = json.loads(file.read_text())
    assert [r["method"] for r in records] == ["bp-fp32", "ff-int8"]
    for record in records:
        assert [name for name in record if name != "settings"] == FIELDS
        assert (record["model"], record["data"], record["seed"]) == ("mlp", DIGITS, 3)
        assert (record["width"], record["epochs"], record["batch"]) == (0.1, 2, 32)
        assert record["accuracy_by_epoch"][-1] == record["accuracy"] > 0.8
        assert len(record["accuracy_by_epoch"]) == 2
        assert record["train_seconds"] > record["step_milliseconds"] / 1e3 > 0
        assert record["peak_training_bytes"] is None or record["peak_training_bytes"] > 0
        assert record["planned_training_bytes"] > 3 * 4 * record["parameters"]  # and two moments
        assert record["machine"]["threads"] == 1
        assert record["settings"]["hidden"] == [100, 100, 100]
    assert list(tmp_path.iterdir()) == [file]
    lines = done.stdout.splitlines()
    summary = json.loads(lines[-1])
    assert summary["records"] == 2
    assert summary["methods"]["ff-int8"]["points"] == pytest.approx(
        100 * (records[1]["accuracy"] - records[0]["accuracy"])
    )
    assert any(line.startswith("ff-int8") for line in lines)
    assert "ff-int8 seed 3: epoch 2/2" in done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--methods": "bp-fp32,ff-int4"}, "method 'ff-int4' is unknown; known: bp-fp32, bp-"),
        ({"--model": "vgg"}, "model 'vgg' is unknown; known: mlp"),
        ({"--model": "resnet8"}, "must be [channels, height, width] for resnet8"),
        ({"--hidden": "5"}, "hidden [5] needs"),
        ({"--augment": "--limit=9"}, "--augment wants [channels, height, width]"),
        ({"--data": "absent"}, "--data absent: nothing is there"),
        ({"--test": "absent"}, "--test absent: nothing is there"),
        ({"--json": "absent/a.json"}, "--json absent/a.json: wanted a file in a folder"),
        ({"--seeds": "1,x"}, "--seeds: found '1,x'; wanted integers"),
        ({"--seeds": "1,1"}, "--seeds names one twice"),
        ({"--look-ahead": "1"}, "--look-ahead has 1 numbers"),
        ({"--epoch": "2"}, "unrecognized arguments: --epoch 2"),
    ],
)
def test_commands_that_cannot_be_used(capsys, tmp_path, changes, message):
    from benchmarks.train import main

    given = {"--model": "mlp", "--data": DIGITS, "--epochs": "2", "--json": str(tmp_path / "a")}
    assert main([part for pair in (given | changes).items() for part in pair]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_data_that_cannot_be_used_is_one_line_and_status_2(capsys, tmp_path):
    from benchmarks.train import main

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"no image")
    options = ["--model", "mlp", "--epochs", "1", "--data", str(tmp_path)]
    assert main([*options, "--json", str(tmp_path / "records.json")]) == 2
    printed = capsys.readouterr().err
    assert "a/x.png: cannot be decoded" in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "records.json").exists()


def test_divergence_is_said_and_has_its_own_status(tmp_path):
    done = command(
        *("--model", "mlp", "--data", DIGITS, "--methods", "bp-fp32", "--epochs", "9"),
        *("--hidden", "16,16,16", "--learning-rate", "1e30"),
        *("--json", str(tmp_path / "a.json")),
    )
    assert done.returncode == 1
    assert "lower --learning-rate" in done.stderr
    assert "Traceback" not in done.stderr
