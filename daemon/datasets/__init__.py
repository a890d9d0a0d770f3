"""Labelled data in the layouts that people have, read row by row and never trusted."""

from daemon.datasets.layouts import open_dataset
from daemon.datasets.rows import BadRow, Dataset, Row

__all__ = ["BadRow", "Dataset", "Row", "open_dataset"]
