"""Metrics: one prefix, base units, bounded labels, and nothing shown before it was measured."""

from __future__ import annotations

import dataclasses
import re

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from daemon.serving.gate import Scores
from daemon.telemetry import SOURCE_LIMIT, Telemetry
from engines import weights_digest
from tests.daemon_fixtures import WAIT_SECONDS, daemon_parts, network, put, sample

SUFFIXES = {
    "counter": (
        "_(requests|samples|labels|swaps|steps|seconds|bytes|restarts|decisions|events|received|refused)"
    ),
    "histogram": r"_(seconds|samples)",
}


@pytest.fixture
def telemetry():
    return Telemetry(CollectorRegistry())


def reading(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    return telemetry.registry.get_sample_value(name, labels)


def test_names_have_one_prefix_base_units_and_a_help_text(tmp_path):
    with daemon_parts(tmp_path) as parts:
        parts.telemetry.watch_store(parts.store)
        families = [*parts.telemetry.registry.collect()]
    assert len(families) > 20
    for family in families:
        assert re.fullmatch(r"ffedge(_[a-z]+)+", family.name), family.name
        assert not re.search(r"_(ms|us|ns|milliseconds|minutes|percent|pct|kb|mb)\b", family.name)
        assert family.documentation.endswith("."), family.name
        if suffix := SUFFIXES.get(family.type):
            assert re.search(suffix + "$", family.name), family.name
        if "duration" in family.name:
            assert family.name.endswith("_duration_seconds")
        if "accuracy" in family.name:
            assert family.name.endswith("_ratio")


def test_counters_end_in_total(telemetry):
    telemetry.received("cam0", "accepted", 3)
    telemetry.learner_restarts.labels("oom").inc()
    assert reading(telemetry, "ffedge_learner_restarts_total", reason="oom") == 1
    labels = {"source": "cam0", "result": "accepted"}
    assert reading(telemetry, "ffedge_samples_received_total", **labels) == 3
    text = generate_latest(telemetry.registry).decode()
    for name in re.findall(r"^# TYPE (\w+) counter", text, re.MULTILINE):
        assert name.endswith("_total"), name


def test_the_33rd_source_is_other(telemetry):
    for number in range(40):
        telemetry.received(f"cam{number}", "accepted")
    telemetry.received("cam0", "accepted")

    def received(source: str) -> float | None:
        labels = {"source": source, "result": "accepted"}
        return reading(telemetry, "ffedge_samples_received_total", **labels)

    assert received("cam0") == 2
    assert received(f"cam{SOURCE_LIMIT - 1}") == 1
    assert received(f"cam{SOURCE_LIMIT}") is None
    assert received("other") == 40 - SOURCE_LIMIT


@pytest.mark.parametrize("source", ["", 'a"b\n# HELP x', "\\", "ä\x00"])
def test_a_hostile_source_stays_one_label(telemetry, source):
    telemetry.received(source, "accepted")
    lines = generate_latest(telemetry.registry).decode().split("\n")
    assert sum(line.startswith("ffedge_samples_received_total{") for line in lines) == 1
    assert all(line.startswith(("#", "ffedge_")) for line in lines if line)


@pytest.mark.parametrize(
    "name",
    [
        "ffedge_progressive_accuracy_ratio",
        "ffedge_holdout_accuracy_ratio",
        "ffedge_unit_loss",
        "ffedge_holdout_samples",
        "ffedge_holdout_missing_classes",
        "ffedge_class_accuracy_ratio",
        "ffedge_forgetting_ratio",
        "ffedge_delayed_accuracy_ratio",
        "ffedge_learner_backlog_samples",
    ],
)
def test_a_reading_that_does_not_exist_is_absent_and_never_zero(telemetry, name):
    text = generate_latest(telemetry.registry).decode()
    assert not re.search(rf"^{name}[ {{]", text, re.MULTILINE)


def test_progressive_accuracies_appear_with_their_first_value(telemetry):
    name = "ffedge_progressive_accuracy_ratio"
    telemetry.progressive(None, None, None)
    assert reading(telemetry, name, window="all") is None
    telemetry.progressive(0.0, 0.5, 0.25)
    assert reading(telemetry, name, window="all") == 0.0
    assert reading(telemetry, name, window="recent") == 0.5
    assert reading(telemetry, name, window="faded") == 0.25


@pytest.mark.parametrize("label", ['a"b\n# HELP x', "\\", "ü" * 64])
def test_a_hostile_class_stays_one_label(telemetry, label):
    telemetry.class_accuracy.set("holdout", {label: 0.5})
    lines = generate_latest(telemetry.registry).decode().split("\n")
    assert sum(line.startswith("ffedge_class_accuracy_ratio{") for line in lines) == 1
    assert all(line.startswith(("#", "ffedge_")) for line in lines if line)


def test_of_many_classes_the_first_hundred_are_shown_and_old_ones_leave(telemetry):
    name = "ffedge_class_accuracy_ratio"
    telemetry.class_accuracy.set("holdout", {str(i): i / 1000 for i in range(1000)})
    assert reading(telemetry, name, label="99", kind="holdout") == 0.099
    assert reading(telemetry, name, label="100", kind="holdout") is None
    telemetry.class_accuracy.set("holdout", {"3": 1.0})
    telemetry.class_accuracy.set("progressive", {"4": 0.0})
    assert reading(telemetry, name, label="3", kind="holdout") == 1.0
    assert reading(telemetry, name, label="4", kind="holdout") is None
    assert reading(telemetry, name, label="4", kind="progressive") == 0.0


def test_what_is_known_to_be_nothing_is_zero(telemetry):
    assert reading(telemetry, "ffedge_learner_up") == 0
    assert reading(telemetry, "ffedge_gate_decisions_total", decision="accepted", reason="") == 0


def test_a_commit_is_counted(telemetry):
    telemetry.committed(200, 0.003)
    assert reading(telemetry, "ffedge_commit_batch_samples_sum") == 200
    assert reading(telemetry, "ffedge_commit_duration_seconds_sum") == 0.003
    assert reading(telemetry, "ffedge_commit_duration_seconds_bucket", le="0.005") == 1
    assert reading(telemetry, "ffedge_commit_duration_seconds_bucket", le="0.0025") == 0


def test_the_store_is_read_at_each_scrape(tmp_path):
    with daemon_parts(tmp_path) as parts:
        parts.telemetry.watch_store(parts.store)
        assert parts.reading("ffedge_samples_stored") == 0
        parts.store.add([sample(i) for i in range(50)]).result(WAIT_SECONDS)
        assert parts.reading("ffedge_samples_stored") == 50
        assert parts.reading("ffedge_samples_holdout") == parts.store.counts.holdout > 0
        assert parts.reading("ffedge_sample_queue_depth") == 0
        assert parts.reading("ffedge_sample_queue_limit") == 1000


def test_each_daemon_has_its_own_registry():
    first, second = Telemetry(CollectorRegistry()), Telemetry(CollectorRegistry())
    first.learner_restarts.labels("oom").inc()
    assert reading(second, "ffedge_learner_restarts_total", reason="oom") is None


@pytest.mark.parametrize("act", ["rollback", "activate"])
def test_what_the_gate_found_of_another_version_is_no_metric_any_more(tmp_path, act):
    with daemon_parts(tmp_path) as parts:

        def judged(number: int, parent: int) -> str | None:
            weights = put(parts.versions, dataclasses.replace(network(number), parent=parent))
            digest = weights_digest(weights)
            return parts.promotion.consider(number, digest, Scores(100, 80, 80, 90)).reason

        def accuracies() -> list[float | None]:
            name = "ffedge_holdout_accuracy_ratio"
            return [parts.reading(name, role=role) for role in ("active", "candidate")]

        judged(2, 1)
        assert accuracies() == [0.9, 0.9]
        getattr(parts.swaps, act)(1, "for a reason")
        assert accuracies() == [None, None]
        parts.swaps.retreated(parts.versions.manifest.retreat)
        assert (judged(3, 2), accuracies()) == ("overtaken", [None, None])
        assert (judged(4, 1), accuracies()) == (None, [0.9, 0.9])
