"""Structured log lines on standard error: JSON for machines, or text for a person at a terminal."""

from __future__ import annotations

import json
import logging
import sys

from daemon.clock import stamp

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class LineFormatter(logging.Formatter):
    """One line a record; what is passed as `extra` becomes fields.

    Args:
        style: `json` or `text`.
    """

    def __init__(self, style: str) -> None:
        super().__init__()
        self._json = style == "json"

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        fields = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        when, level, text = stamp(record.created), record.levelname.lower(), record.getMessage()
        if self._json:
            line = {"time": when, "level": level, "logger": record.name, "message": text} | fields
            return json.dumps(line, default=str)
        rest = "".join(f" {key}={value}" for key, value in fields.items())
        return f"{when} {level:7} {record.name}: {text}{rest}"


def configure_logs(level: str, style: str) -> None:
    """Send every logger's records to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(style))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
