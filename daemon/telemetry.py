"""Every metric that `GET /metrics` shows, on a registry given from outside.

One prefix, base units, counters end in `_total`; no label takes values from a client without bound.
A reading that does not exist is absent, never zero.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from itertools import islice

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from daemon import __version__
from daemon.store import RETIRED_NAMES, SampleStore

SOURCE_LIMIT = 32
CLASS_LIMIT = 100
# What may slow learning or pause it.
THROTTLES = (
    *("power", "temperature", "memory", "processor", "latency", "telemetry"),
    *("budget_seconds", "budget_steps", "budget_joules", "hours", "operator"),
)
# What may happen to the network that learns.
LEARNER_EVENTS = (
    "drift",
    "inputs",
    "diverged",
    "began_anew",
    "retreated",
    "no_checkpoint",
    "passed_over",
)
_SWAP = (1e-6, 1e-5, 1e-4, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.1)
_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class Telemetry:
    """The metrics, as attributes.

    Args:
        registry: Where they live; one per daemon.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._sources: set[str] = set()
        self._build_info = Gauge(
            "ffedge_build_info", "Always 1.", ["version", "engine"], registry=registry
        )
        self._received = Counter(
            "ffedge_samples_received",
            "Samples in requests, by what became of them.",
            ["source", "result"],
            registry=registry,
        )
        self.commit_seconds = Histogram(
            "ffedge_commit_duration_seconds",
            "Time to make one group of samples durable.",
            buckets=_FAST,
            registry=registry,
        )
        self.commit_samples = Histogram(
            "ffedge_commit_batch_samples",
            "Samples in one group.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
            registry=registry,
        )
        self.inference_requests = Counter(
            "ffedge_inference_requests",
            "Prediction requests, by HTTP status.",
            ["code"],
            registry=registry,
        )
        self.inference_seconds = Histogram(
            "ffedge_inference_duration_seconds",
            "Time from the whole body received to the answer ready.",
            buckets=_FAST,
            registry=registry,
        )
        self.http_requests = Counter(
            "ffedge_http_requests", "All requests.", ["route", "method", "code"], registry=registry
        )
        self.requests_refused = Counter(
            "ffedge_requests_refused",
            "Requests and connections refused before a route saw them.",
            ["reason"],
            registry=registry,
        )
        self.open_connections = Gauge(
            "ffedge_open_connections", "HTTP connections that are open.", registry=registry
        )
        self.learner_up = Gauge(
            "ffedge_learner_up", "Whether the learner process reports.", registry=registry
        )
        self.learner_paused = Gauge(
            "ffedge_learner_paused",
            "Whether the learner is up and learns nothing, since the disk does not take it.",
            registry=registry,
        )
        self._duty = Reading(
            "ffedge_learner_duty_ratio", "Share of the time that the learner may work."
        )
        self._throttled = Gauge(
            "ffedge_throttled",
            "Whether learning is slowed or paused by it.",
            ["reason"],
            registry=registry,
        )
        for reason in THROTTLES:
            self._throttled.labels(reason)
        self.learner_restarts = Counter(
            "ffedge_learner_restarts",
            "Times the learner process ended without being told to, by why.",
            ["reason"],
            registry=registry,
        )
        self.learner_heartbeat = Reading(
            "ffedge_learner_heartbeat_age_seconds", "Time since the learner was last heard."
        )
        self.learner_events = Counter(
            "ffedge_learner_events",
            "What happened to the network that learns, since start.",
            ["kind"],
            registry=registry,
        )
        for kind in LEARNER_EVENTS:
            self.learner_events.labels(kind)
        self.learner_backlog = Reading("ffedge_learner_backlog_samples", "Samples not yet learned.")
        self.learned_samples = Counter(
            "ffedge_learn_samples", "Samples learned since start.", registry=registry
        )
        self.learn_steps = Counter(
            "ffedge_learn_steps", "Training steps since start.", registry=registry
        )
        self.learn_seconds = Counter(
            "ffedge_learn_seconds", "Time spent in training since start.", registry=registry
        )
        self.learner_written_bytes = Counter(
            "ffedge_learner_written_bytes",
            "Candidates and checkpoints that were written since start.",
            registry=registry,
        )
        self.unit_loss = Gauge(
            "ffedge_unit_loss", "Own loss of each unit, last step.", ["unit"], registry=registry
        )
        self._progressive = Gauge(
            "ffedge_progressive_accuracy_ratio",
            "Right answers on samples not yet learned: over all, over the newest 500, and with "
            "fading factor 0.999.",
            ["window"],
            registry=registry,
        )
        self.holdout_accuracy = Gauge(
            "ffedge_holdout_accuracy_ratio",
            "Hold-out accuracy at the last gate decision.",
            ["role"],
            registry=registry,
        )
        self.holdout_samples = Reading(
            "ffedge_holdout_samples", "Hold-out samples at the last decision."
        )
        self.holdout_missing_classes = Reading(
            "ffedge_holdout_missing_classes",
            "Classes that the learner knows and the hold-out has no sample of.",
        )
        self.forgetting = Reading(
            "ffedge_forgetting_ratio",
            "Hold-out accuracy that a class has lost against the best of any version, mean.",
        )
        self.class_accuracy = ClassAccuracies()
        self.delayed_labels = Counter(
            "ffedge_delayed_labels",
            "Labels that came for predictions, by whether the answer had been right.",
            ["result"],
            registry=registry,
        )
        self.delayed_accuracy = Reading(
            "ffedge_delayed_accuracy_ratio",
            "Right answers among the newest 500 predictions whose label came.",
        )
        self.model_version = Gauge(
            "ffedge_model_version", "The version that answers.", registry=registry
        )
        self.gate_decisions = Counter(
            "ffedge_gate_decisions",
            "Verdicts on candidates.",
            ["decision", "reason"],
            registry=registry,
        )
        for decision in ("accepted", "refused"):
            self.gate_decisions.labels(decision, "")
        self.swaps = Counter(
            "ffedge_model_swaps",
            "Changes of the version that answers.",
            ["result"],
            registry=registry,
        )
        for result in ("swapped", "rolled_back", "activated", "failed"):
            self.swaps.labels(result)
        self.swap_seconds = Histogram(
            "ffedge_swap_duration_seconds",
            "Time in a swap in which no request could take a version.",
            buckets=_SWAP,
            registry=registry,
        )
        for result in ("right", "wrong"):
            self.delayed_labels.labels(result)
        for reading in (
            self.learner_backlog,
            self.learner_heartbeat,
            self.holdout_samples,
            self.holdout_missing_classes,
            self.forgetting,
            self.class_accuracy,
            self.delayed_accuracy,
            self._duty,
        ):
            registry.register(reading)
        self.learner_up.set(0)

    def received(self, source: str, result: str, count: int = 1) -> None:
        """Count samples by source; sources beyond the 32nd count as `other`."""
        if source not in self._sources:
            if len(self._sources) >= SOURCE_LIMIT:
                source = "other"
            else:
                self._sources.add(source)
        self._received.labels(source, result).inc(count)

    def committed(self, samples: int, seconds: float) -> None:
        """Count one durable group."""
        self.commit_samples.observe(samples)
        self.commit_seconds.observe(seconds)

    def served_by(self, engine: str) -> None:
        """Name the engine that answers."""
        self._build_info.clear()
        self._build_info.labels(__version__, engine).set(1)

    def swapped(self, version: int, engine: str, result: str, seconds: float) -> None:
        """Count a change of the version that answers.

        Args:
            version: That answers from now on.
            engine: Answers.
            result: Why it changed. By the gate, it is about to tell how good this version is; else
                it has told that of another one, which counts no more.
            seconds: In which no request could take a version.
        """
        self.swap_seconds.observe(seconds)
        self.swaps.labels(result).inc()
        self.model_version.set(version)
        self.served_by(engine)
        if result != "swapped":
            self.holdout_accuracy.clear()
            self.class_accuracy.set("holdout", {})

    def progressive(
        self, accuracy: float | None, recent: float | None, faded: float | None
    ) -> None:
        """Set the progressive accuracies; None: none yet."""
        for window, value in (("all", accuracy), ("recent", recent), ("faded", faded)):
            if value is not None:
                self._progressive.labels(window).set(value)

    def governed(self, duty: float, reasons: Collection[str]) -> None:
        """Show what learning may do, and which of `THROTTLES` are why."""
        self._duty.set(duty)
        for reason in THROTTLES:
            self._throttled.labels(reason).set(reason in reasons)

    def refused(self, reason: str) -> None:
        """Count a request or a connection that no route saw."""
        self.requests_refused.labels(reason).inc()

    def watch_store(self, store: SampleStore) -> None:
        """Read the store's sizes at each scrape."""
        self.registry.register(_StoreCollector(store))


class Reading(Collector):
    """A gauge that is absent until it has been read for the first time, or while it is not known.

    Args:
        name: Its name.
        text: What it says.
    """

    def __init__(self, name: str, text: str) -> None:
        self._name, self._text = name, text
        self._read: Callable[[], float | None] = lambda: None

    def set(self, value: float | None) -> None:
        """Take a reading; None: it is not known any more."""
        self._read = lambda: value

    def set_function(self, read: Callable[[], float | None]) -> None:
        """Read at each scrape."""
        self._read = read

    def collect(self) -> list[GaugeMetricFamily]:
        """See `Collector.collect`."""
        return [GaugeMetricFamily(self._name, self._text, self._read())]


class ClassAccuracies(Collector):
    """Accuracies by label, of the first hundred: absent until they are known."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, float]] = {}

    def set(self, kind: str, accuracies: Mapping[str, float]) -> None:
        """Take in those of a kind; they take the place of all before.

        Args:
            kind: How they were found.
            accuracies: By label, text of at most 64 characters.
        """
        self._known[kind] = dict(islice(accuracies.items(), CLASS_LIMIT))

    def collect(self) -> list[GaugeMetricFamily]:
        """See `Collector.collect`."""
        family = GaugeMetricFamily(
            "ffedge_class_accuracy_ratio",
            "Accuracy by class: progressive, over its newest 100 samples; on the hold-out, of the "
            "version that serves, at the last decision.",
            labels=["label", "kind"],
        )
        for kind, accuracies in [*self._known.items()]:
            for label, accuracy in accuracies.items():
                family.add_metric([label, kind], accuracy)
        return [family]


class _StoreCollector(Collector):
    def __init__(self, store: SampleStore) -> None:
        self._store = store

    def collect(self) -> list[GaugeMetricFamily]:
        counts = self._store.counts
        readings = {
            "ffedge_samples_stored": ("Samples in the store.", counts.samples),
            "ffedge_samples_holdout": ("Of them, kept to score only.", counts.holdout),
            "ffedge_samples_unlabelled": ("Of them, without a label yet.", counts.unlabelled),
            "ffedge_sample_queue_depth": (
                "Samples waiting to be written.",
                self._store.queue_depth,
            ),
            "ffedge_sample_queue_limit": ("Most that may wait.", self._store.queue_limit),
        }
        retired = GaugeMetricFamily(
            "ffedge_samples_retired", "Rows that no longer count.", labels=["reason"]
        )
        for why, name in RETIRED_NAMES.items():
            retired.add_metric([name], counts.retired.get(why, 0))
        if not self._store.known:
            readings = {name: of for name, of in readings.items() if "queue" in name}
        plain = [GaugeMetricFamily(name, text, value) for name, (text, value) in readings.items()]
        return [*plain, retired] if self._store.known else plain
