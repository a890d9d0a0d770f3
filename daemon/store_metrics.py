"""Metrics of how the store keeps alive: whether it takes samples, what went, what was damaged."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from daemon.store import SampleStore, Scrub


class StoreMetrics(Collector):
    """Read at each scrape.

    Args:
        store: The store.
        scrub: What passes over its rows.
    """

    def __init__(self, store: SampleStore, scrub: Scrub) -> None:
        self._store = store
        self._scrub = scrub

    def collect(self) -> Iterator[Metric]:
        """See `Collector.collect`."""
        store, report = self._store, self._scrub.report
        yield GaugeMetricFamily(
            "ffedge_store_available",
            "Whether samples are taken: 0 while the disk or the quota does not let them in.",
            store.refuses is None,
        )
        yield GaugeMetricFamily(
            "ffedge_samples_lost",
            "Acknowledged samples that the database was found without.",
            store.samples_lost,
        )
        removed = CounterMetricFamily(
            "ffedge_store_removed_rows",
            "Rows that retention removed since the start, by which limit.",
            labels=["limit"],
        )
        for limit, rows in store.removed.rows.items():
            removed.add_metric([limit], rows)
        yield removed
        yield CounterMetricFamily(
            "ffedge_store_removed_unlearned_rows",
            "Samples that retention removed since the start before they were learned.",
            store.removed.unlearned,
        )
        counters = {
            "ffedge_scrub_rows": ("Rows checked since the start.", report.rows),
            "ffedge_scrub_damaged_rows": ("Rows found damaged since the start.", report.damaged),
            "ffedge_scrub_unreadable_rows": (
                "Numbers under which no row could be read, its page being damaged.",
                report.unreadable,
            ),
            "ffedge_scrub_passes": ("Whole passes since the start.", report.passes),
        }
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(name, text, value)
        if report.passed_at is not None:
            yield GaugeMetricFamily(
                "ffedge_scrub_pass_age_seconds",
                "Since the last whole pass ended.",
                time.monotonic() - report.passed_at,
            )
