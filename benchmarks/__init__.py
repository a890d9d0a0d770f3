"""Measurements: every training method on the same data, recipe and machine, kept as records."""
