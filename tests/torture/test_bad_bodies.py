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

import numpy as np
import psutil
import pytest

from daemon.errors import BadFieldError
from daemon.ingest import encoding, features, form_data, objects, pictures, tensors
from models import ModelSpec
from tests.running import RunningDaemon
from tests.torture.bad_bodies import MARK, SHAPE, BadBody, bad_body, refusals

SEED = 20261128
GROWTH_BYTES = 50 << 20
SLOWEST_SECONDS = 5.0


def bad_bodies(count: int) -> Iterator[tuple[int, BadBody]]:
    """So many requests that must be refused, with their numbers."""
    numbered = ((number, bad_body(SEED, number)) for number in itertools.count())
    found = ((number, bad) for number, bad in numbered if refusals(bad) is not None)
    return itertools.islice(found, count)


def test_decoders_raise_nothing_but_a_request_error(pytestconfig: pytest.Config) -> None:
    runs: int = pytestconfig.getoption("--decoder-runs")
    harmless = sum(check_decoders(number) for number in range(runs))
    assert harmless < runs * 0.4


# What each bug is, and the name that it replaces.
Bug = tuple[Any, str, Any]


def unchecked_rows(raw: bytes, code: str, rows: int, spec: ModelSpec, field: str) -> Any:
    return np.frombuffer(raw, code).reshape(rows, spec.features)


def echoing(value: str, field: str) -> str:
    raise BadFieldError(f"field '{field}': {value} is no good", field=field)


BUGS: dict[str, Bug] = {
    "depth is not bounded": (encoding, "RecursionError", KeyError),
    "text need not be UTF-8": (encoding, "UnicodeDecodeError", KeyError),
    "sizes of objects are believed": (objects, "rows_from_bytes", unchecked_rows),
    "sizes of tensors are believed": (tensors, "rows_from_bytes", unchecked_rows),
    "shapes are believed": (objects, "check_shape", lambda *_: None),
    "lists of numbers may not be finite": (features, "check_finite", lambda *_: None),
    "bytes may not be finite": (objects, "check_finite", lambda *_: None),
    "the picture library's errors come through": (pictures, "Exception", KeyError),
    "the form library's errors come through": (form_data, "MultipartError", KeyError),
    "an error repeats input": (objects, "check_text", echoing),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_seeded_bug_is_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name, replacement = BUGS[bug]
    monkeypatch.setattr(module, name, replacement, raising=False)
    assert any(fails(number) for number in range(2000))


def fails(number: int) -> bool:
    try:
        check_decoders(number)
    except Exception:  # noqa: BLE001 - whatever the bug lets through
        return True
    return False


def check_decoders(number: int) -> bool:
    """Have the decoders refuse one request, and say whether it did no harm."""
    bad = bad_body(SEED + 1, number)
    refused = refusals(bad)
    assert refused is not None or not bad.surely, (number, bad.kind)
    for error in refused or []:
        assert MARK not in json.dumps(error.body()), (number, bad.kind)
    return refused is None


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
