"""Samples on disk: one process writes, in one thread; others read."""

from daemon.store.acknowledgement import Acknowledgement
from daemon.store.counts import StoreCounts
from daemon.store.idempotency import KeyedAnswer, RequestKey, request_key
from daemon.store.retention import Limits
from daemon.store.sample_list import count_samples, find_features, list_samples
from daemon.store.sample_reader import SampleReader, StoredSample
from daemon.store.sample_rows import Outcome, Stored
from daemon.store.sample_store import SampleStore
from daemon.store.schema import RETIRED_NAMES
from daemon.store.scrub import Scrub

__all__ = [
    "RETIRED_NAMES",
    "Acknowledgement",
    "KeyedAnswer",
    "Limits",
    "Outcome",
    "RequestKey",
    "SampleReader",
    "SampleStore",
    "Scrub",
    "StoreCounts",
    "Stored",
    "StoredSample",
    "count_samples",
    "find_features",
    "list_samples",
    "request_key",
]
