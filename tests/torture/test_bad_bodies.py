"""No body makes a server error, a hang, a growing process or a stored sample."""

from __future__ import annotations

import http.client
import itertools
import json
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.running import RunningDaemon
from tests.torture.bad_bodies import MARK, SHAPE, BadBody, bad_body, is_bad

SEED = 20261128
GROWTH_BYTES = 50 << 20
SLOWEST_SECONDS = 5.0


def bad_bodies(count: int) -> Iterator[tuple[int, BadBody]]:
    """So many requests that must be refused, with their numbers."""
    found = ((n, bad) for n in itertools.count() if is_bad(bad := bad_body(SEED, n)))
    return itertools.islice(found, count)


def test_decoders_raise_nothing_but_a_request_error(pytestconfig: pytest.Config) -> None:
    harmless: Counter[str] = Counter()
    runs: int = pytestconfig.getoption("--decoder-runs")
    for number in range(runs):
        bad = bad_body(SEED + 1, number)
        refused = is_bad(bad)  # anything but a RequestError ends the test here
        assert refused or not bad.surely, (number, bad.kind)
        harmless[bad.kind] += not refused
    assert sum(harmless.values()) < runs * 0.4


class Client:
    """Sends over one connection, opened anew where the server has closed it."""

    def __init__(self, daemon: RunningDaemon) -> None:
        self._address = urllib.parse.urlsplit(str(daemon.client.base_url)).netloc
        self._connection = http.client.HTTPConnection(self._address, timeout=30)

    def post(self, bad: BadBody) -> tuple[int, str, bytes]:
        path = bad.route + ("?" + urllib.parse.urlencode(bad.sent.query) if bad.sent.query else "")
        try:
            self._connection.request("POST", path, bad.sent.body, bad.sent.all_headers)
            answer = self._connection.getresponse()
            return answer.status, answer.headers["Content-Type"], answer.read()
        finally:
            self._connection.close()


def check(number: int, bad: BadBody, status: int, media_type: str, text: bytes) -> str:
    """The code of an answer that is one clear error."""
    where = f"number {number}, {bad.kind}: {status} {text[:300]!r}"
    assert 400 <= status < 500, where
    assert media_type == "application/json", where
    answer: dict[str, Any] = json.loads(text)
    assert {"error", "code"} <= answer.keys() <= {"error", "code", "field", "rejected"}, where
    assert isinstance(answer["error"], str), where
    assert 0 < len(answer["error"]) < 400, where
    assert MARK.encode() not in text, where
    return str(answer["code"])


def test_a_daemon_refuses_every_bad_body(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    count: int = pytestconfig.getoption("--bad-bodies")
    environment = {"FFEDGE_MODEL__INPUT_SHAPE": str([*SHAPE])}
    with RunningDaemon(tmp_path, environment=environment) as daemon:
        client, server = Client(daemon), psutil.Process(daemon.process.pid)
        # What is loaded and allocated once is no growth: each kind of request has come before.
        for number, bad in bad_bodies(100):
            check(number, bad, *client.post(bad))
        before = peak = server.memory_info().rss
        codes: Counter[str] = Counter()
        slowest = 0.0
        for number, bad in bad_bodies(count):
            started = time.monotonic()
            codes[check(number, bad, *client.post(bad))] += 1
            slowest = max(slowest, time.monotonic() - started)
            peak = max(peak, server.memory_info().rss)
        after = server.memory_info().rss
        print(  # noqa: T201 - the figures of a full run
            json.dumps(
                {
                    "bodies": count,
                    "codes": dict(codes.most_common()),
                    "rss_before": before,
                    "rss_growth": after - before,
                    "rss_peak_growth": peak - before,
                    "slowest_seconds": round(slowest, 3),
                }
            )
        )
        assert daemon.metric("ffedge_samples_stored") == 0
        assert after - before <= GROWTH_BYTES
        assert slowest < SLOWEST_SECONDS
        assert daemon.process.poll() is None
        good = {"x": [1] * 64, "label": "a"}
        assert daemon.client.post("/samples", json=good).status_code == 201
        assert daemon.client.post("/predict", json={"x": [1] * 64}).status_code == 200
        assert len(codes) >= 8
