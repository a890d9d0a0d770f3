"""Whole data sets into a running daemon and out of it, over HTTP like any client."""

from daemon.transfer.exporting import run_export
from daemon.transfer.importing import run_import

__all__ = ["run_export", "run_import"]
