"""R10: bad requests to a daemon: each must get one clear error that repeats nothing."""

from __future__ import annotations

import http.client
import json
import time
import urllib.parse
from collections import Counter
from dataclasses import dataclass, field

import psutil

from tests.running import RunningDaemon
from tests.torture.bad_bodies import MARK, BadBody, bad_bodies

_HANGS_SECONDS = 60.0


@dataclass
class Refused:
    """What bad bodies met.

    Args:
        codes: How often each error code was answered.
        growth_bytes: Of the server's resident memory, at the end.
        peak_growth_bytes: Likewise, the most that was seen.
        slowest_seconds: The longest that an answer took.
    """

    bodies: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    growth_bytes: int = 0
    peak_growth_bytes: int = 0
    slowest_seconds: float = 0.0
    broken: list[str] = field(default_factory=list)


def post_bad_bodies(daemon: RunningDaemon, seed: int, count: int) -> Refused:
    """Each must be answered 4xx by one object that does not echo; nothing may be stored."""
    refused, codes = Refused(), Counter[str]()
    server = psutil.Process(daemon.process.pid)
    before = server.memory_info().rss
    for number, bad in bad_bodies(seed, count):
        started = time.monotonic()
        status, media_type, body = _post(daemon, bad)
        refused.slowest_seconds = max(refused.slowest_seconds, time.monotonic() - started)
        refused.bodies += 1
        if wrong := _wrong(status, media_type, body):
            refused.broken.append(f"number {number}, {bad.kind}: {wrong}: {status} {body[:300]!r}")
        else:
            codes[json.loads(body)["code"]] += 1
        refused.growth_bytes = server.memory_info().rss - before
        refused.peak_growth_bytes = max(refused.peak_growth_bytes, refused.growth_bytes)
    refused.codes = dict(codes.most_common())
    if kept := daemon.metric("ffedge_samples_stored"):
        refused.broken.append(f"{kept:.0f} samples of bad bodies are kept")
    return refused


def _post(daemon: RunningDaemon, bad: BadBody) -> tuple[int, str | None, bytes]:
    """Over a connection of its own: some of them have the server close it."""
    address = daemon.client.base_url
    connection = http.client.HTTPConnection(address.host, address.port, timeout=_HANGS_SECONDS)
    path = bad.route + ("?" + urllib.parse.urlencode(bad.sent.query) if bad.sent.query else "")
    try:
        connection.request("POST", path, bad.sent.body, bad.sent.all_headers)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read()
    finally:
        connection.close()


def _wrong(status: int, media_type: str | None, body: bytes) -> str | None:
    """Why an answer is not one clear error, or None."""
    if not 400 <= status < 500:
        return "not refused"
    if MARK.encode() in body:
        return "repeats what was sent"
    if media_type != "application/json":
        return "not JSON"
    answer = json.loads(body)
    if not {"error", "code"} <= answer.keys() <= {"error", "code", "field", "rejected"}:
        return "other fields"
    error = answer["error"]
    return None if isinstance(error, str) and 0 < len(error) < 400 else "no clear text"
