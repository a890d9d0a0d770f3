"""Samples on disk: one process writes, in one thread; others read."""

from daemon.store.sample_reader import SampleReader, StoredSample
from daemon.store.sample_store import SampleStore, StoreCounts, Stored

__all__ = ["SampleReader", "SampleStore", "StoreCounts", "Stored", "StoredSample"]
