"""Streams: what comes and in which order, what the baselines remember, and one small run."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from benchmarks import streams
from benchmarks.datasets import Split
from benchmarks.samples import Samples
from benchmarks.stream_learners import BASELINES, FRESH, LEARNER_NAMES, OURS
from benchmarks.stream_memories import Balanced, Greedy, Memory, Newest, Reservoir
from benchmarks.stream_orders import (
    CLASS_INCREMENTAL,
    DRIFTING,
    IMBALANCED,
    STREAM_NAMES,
    open_stream,
)
from benchmarks.stream_runs import run_stream
from benchmarks.stream_tables import alarm_after
from benchmarks.trial import TrialError
from daemon.config import LearnerSettings
from models import ModelSpec

CLASSES = 4
SPEC = ModelSpec("mlp", (16,), CLASSES, (16, 16))
SETTINGS = LearnerSettings(
    block_samples=32, steps_per_block=4, batch_samples=16, replay_samples=40, learning_rate=3e-3
)


def made(count: int, seed: int) -> Samples:
    """Classes told apart by which fourth of the features is large; values within 0..1."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    x = draw.random((count, 16), dtype=np.float32) * np.float32(0.5)
    for row, label in zip(x, labels, strict=True):
        row[4 * label : 4 * label + 4] += 0.5
    return Samples(x, labels.astype(np.int64), tuple(map(str, range(CLASSES))))


SPLIT = Split(made(800, 1), made(80, 2), held_out=False)


@pytest.mark.parametrize("name", STREAM_NAMES)
def test_a_stream_follows_from_its_seed_and_repeats_no_sample(name: str) -> None:
    stream = open_stream(name, SPLIT, seed=3, samples=400)
    again = open_stream(name, SPLIT, seed=3, samples=400)
    other = open_stream(name, SPLIT, seed=4, samples=400)
    assert (stream.x == again.x).all()
    assert (stream.labels == again.labels).all()
    assert stream.x.shape != other.x.shape or (stream.x != other.x).any()
    rows = {row.tobytes() for row in stream.x}
    assert len(rows) == len(stream) == stream.ends[-1] <= 400
    assert rows.isdisjoint(row.tobytes() for test in stream.tests for row in test.x)
    if name not in DRIFTING:
        assert rows <= {row.tobytes() for row in SPLIT.train.x}


@pytest.mark.parametrize(("name", "together"), [("class-pairs", 2), ("class-by-class", 1)])
def test_tasks_have_classes_of_their_own(name: str, together: int) -> None:
    stream = open_stream(name, SPLIT, seed=0, samples=400)
    seen: set[int] = set()
    for start, end, test in zip((0, *stream.ends), stream.ends, stream.tests, strict=False):
        task = set(stream.labels[start:end].tolist())
        assert len(task) == together
        assert task.isdisjoint(seen)
        assert set(test.labels.tolist()) == task
        seen |= task
    assert len(seen) == CLASSES
    assert sum(map(len, stream.tests)) == len(SPLIT.test)


def test_the_world_changes_where_it_is_said_to() -> None:
    before = {
        row.tobytes(): int(label)
        for row, label in zip(SPLIT.train.x, SPLIT.train.labels, strict=True)
    }
    for name in DRIFTING:
        stream = open_stream(name, SPLIT, seed=0, samples=300)
        changed = [
            before.get(row.tobytes()) != label
            for row, label in zip(stream.x, stream.labels.tolist(), strict=True)
        ]
        spans = {
            "drift-labels": [(False, 150), (True, 150)],
            "drift-inputs": [(False, 150), (True, 150)],
            "recurring": [(False, 100), (True, 100), (False, 100)],
            "drift-gradual": [(False, 101), (True, 199)],
        }
        assert [(kind, len([*run])) for kind, run in groupby(changed)] == spans[name]
        assert stream.change in stream.ends
    gradual = open_stream("drift-gradual", SPLIT, seed=0, samples=300)
    means = [part.mean() for part in np.array_split(gradual.x, 3)]
    assert means[0] < means[1] < means[2]
    assert gradual.x[200:].min() >= 0.5


def test_what_comes_after_the_change_is_a_stream() -> None:
    whole = open_stream("recurring", SPLIT, seed=0, samples=300)
    after = whole.after_change()
    assert (after.ends, after.present, len(after)) == ((100,), (0,), 100)
    assert (after.x == whole.x[200:]).all()
    with pytest.raises(TrialError, match="no change"):
        open_stream("long-tail", SPLIT, seed=0, samples=300).after_change()


def test_the_rarest_class_is_fifty_times_rarer_and_bursts_are_of_one_class() -> None:
    large = Split(made(4000, 1), SPLIT.test, held_out=False)
    changes = {}
    for name in IMBALANCED:
        stream = open_stream(name, large, seed=0, samples=1200)
        counts = sorted(Counter(stream.labels.tolist()).values())
        assert counts[-1] / counts[0] == pytest.approx(50, rel=0.1)
        changes[name] = int((np.diff(stream.labels) != 0).sum())
    assert changes["bursty"] < 60 < 300 < changes["long-tail"]


def test_what_cannot_be_a_stream_says_so() -> None:
    with pytest.raises(TrialError, match=r"unknown; known: class-pairs"):
        open_stream("sorted", SPLIT, seed=0, samples=100)
    with pytest.raises(TrialError, match="too few"):
        open_stream("drift-labels", SPLIT, seed=0, samples=1)


# --- what baselines remember -------------------------------------------------------------------


def remembered(memory: Memory, labels: list[int]) -> Counter[int]:
    for row, label in enumerate(labels):
        memory.add(row, label)
    assert len(memory.rows) == len(set(memory.rows)) == memory.size
    assert [labels[row] for row in memory.rows] == memory.labels
    return Counter(memory.labels)


def test_newest_and_reservoir() -> None:
    newest = Newest(10, 0)
    remembered(newest, [0] * 50 + [1] * 50)
    assert newest.rows == [*range(90, 100)]
    halves = Counter[int]()
    for seed in range(50):
        halves += remembered(Reservoir(10, seed), [0] * 50 + [1] * 50)
    assert halves[0] == pytest.approx(250, abs=60)  # five deviations of 500 fair draws


@pytest.mark.parametrize("kind", [Greedy, Balanced])
def test_balanced_memories_keep_rare_classes(kind: type[Memory]) -> None:
    labels = [0] * 100 + [1] * 5 + [2] * 100 + [0] * 100
    assert remembered(kind(30, 0), labels)[1] == 5
    assert max(remembered(kind(30, 0), labels).values()) <= 15
    # GDumb keeps the first that came, a reservoir any.
    greedy = kind(10, 0)
    remembered(greedy, [0] * 200)
    assert (greedy.rows == [*range(10)]) == (kind is Greedy)


# --- runs --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def records() -> dict[str, dict[str, object]]:
    stream = open_stream("class-pairs", SPLIT, seed=0, samples=300)
    return {name: run_stream(name, stream, SPEC, SETTINGS) for name in LEARNER_NAMES}


def test_every_learner_gets_the_same_samples_and_steps(
    records: dict[str, dict[str, object]],
) -> None:
    samples = {record["samples"] for record in records.values()}
    assert len(samples) == 1
    assert 230 < samples.pop() < 300  # the hold-out is not learned
    steps = {name: record["steps"] for name, record in records.items()}
    others = {count for name, count in steps.items() if name != "gdumb"}
    assert len(others) == 1
    assert steps["gdumb"] > others.pop()  # begun anew at both ends
    for record in records.values():
        assert [len(row) for row in record["accuracy_matrix"]] == [2, 2]


def test_ours_is_scored_as_its_learner_scores_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import stream_learners

    kept = []
    learner = stream_learners.Learner
    monkeypatch.setattr(
        stream_learners, "Learner", lambda *a, **k: kept.append(learner(*a, **k)) or kept[-1]
    )
    stream = open_stream("drift-labels", SPLIT, seed=0, samples=300)
    record = run_stream(OURS, stream, SPEC, SETTINGS, serve=True, fresh_level=0.5)
    (own,) = kept
    assert own.score.total == record["samples"]
    assert own.score.accuracy == record["progressive_accuracy"]
    served = record["served"]
    # Everything serves, so that what answered is what had been learned.
    assert served["no gate"]["accuracy"] == record["progressive_accuracy"]
    assert served["no gate"]["recovery_samples"] == record["recovery_samples"]
    assert len(served["gate"]["decisions"]) == len(record["blocks"])


def test_an_alarm_is_told_in_samples_after_the_change() -> None:
    assert alarm_after({"change": 500, "alarms": [300, 640, 800]}) == 140
    assert alarm_after({"change": 500, "alarms": [300]}) is None


def test_replay_remembers_what_fine_tuning_forgets(records: dict[str, dict[str, object]]) -> None:
    assert records["fine-tuning"]["forgetting"] > records["bp-balanced"]["forgetting"] + 0.2
    assert records["fine-tuning"]["accuracy"] < records["gdumb"]["accuracy"]


def test_fresh_begins_at_the_change() -> None:
    stream = open_stream("drift-inputs", SPLIT, seed=0, samples=300)
    fresh = run_stream(FRESH, stream, SPEC, SETTINGS)
    whole = run_stream("newest", stream, SPEC, SETTINGS)
    assert fresh["samples"] == whole["samples"] - whole["change"]
    assert (fresh["change"], fresh["level_before"]) == (0, None)


def test_a_small_run_writes_records_tables_and_plots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "made.npz"
    samples = made(500, 1)
    np.savez(data, x=samples.x, y=samples.labels)
    file = tmp_path / "streams.json"
    chosen = ("class-pairs", "drift-labels", "long-tail")
    arguments = (
        f"--data {data} --json {file} --streams {','.join(chosen)} --seeds 0 --samples 200 "
        "--memory 40 --hidden 8,8"
    ).split()
    assert streams.main([*arguments, "--learners", "ours,newest"]) == 0
    first = json.loads(file.read_text())
    assert [(r["stream"], r["method"]) for r in first] == [
        ("class-pairs", "ours"), ("class-pairs", "newest"),
        ("drift-labels", "fresh"), ("drift-labels", "ours"), ("drift-labels", "newest"),
        ("long-tail", "ours"), ("long-tail", "newest"),
    ]  # fmt: skip
    for name in ("classes", "matrix", "drift", "imbalance", "served"):
        assert (tmp_path / f"streams-{name}.png").stat().st_size > 10_000
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1])["records"] == 7
    assert sum(re.match(r"(class-pairs|long-tail): ours", line) is not None for line in lines) == 2
    assert any(line.startswith("drift-labels: no gate") for line in lines)
    # With --keep the others are added, and what is there is not measured again.
    assert streams.main([*arguments, "--learners", "ours,newest,reservoir", "--keep"]) == 0
    second = json.loads(file.read_text())
    assert second[:7] == first
    assert {r["method"] for r in second[7:]} == {"reservoir"}


def test_what_cannot_be_done_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "streams.json")
    for wrong, said in (
        (["--streams", "class-pairs,none"], "--streams none: unknown"),
        (["--learners", "sgd"], "--learners sgd: unknown"),
        (["--seeds", "1,1"], "--seeds names one twice"),
        (["--memory", "0"], "--memory is 0; wanted at least 1"),
    ):
        assert streams.main(["--data", "digits", "--json", file, *wrong]) == 2
        assert said in capsys.readouterr().err


def test_every_stream_and_learner_has_a_line_that_says_what_it_is() -> None:
    from benchmarks import stream_learners, stream_orders

    for name in STREAM_NAMES:
        assert f"\n| `{name}` |" in (stream_orders.__doc__ or "")
    for name in (*LEARNER_NAMES, FRESH):
        assert f"\n| `{name}` |" in (stream_learners.__doc__ or "")
    assert set(STREAM_NAMES) == {*CLASS_INCREMENTAL, *DRIFTING, *IMBALANCED}
    assert set(LEARNER_NAMES) == {OURS, *BASELINES}
