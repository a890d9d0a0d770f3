"""No body makes a server error, a hang, a growing process or a stored sample."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from daemon.errors import BadFieldError
from daemon.ingest import encoding, features, form_data, objects, pictures, tensors
from models import ModelSpec
from tests.torture.bad_bodies import MARK, SHAPE, bad_body, refusals
from tests.torture.posting_bad import post_bad_bodies
from tests.torture.processes import ForkedDaemon

SEED = 20261128
GROWTH_BYTES = 50 << 20
FULL_BODIES = 10_000
SLOWEST_SECONDS = 5.0


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


def test_a_daemon_refuses_every_bad_body(zygote, tmp_path, size, record) -> None:
    count = size("--bad-bodies")
    with ForkedDaemon(zygote, tmp_path, model__input_shape=[*SHAPE]) as daemon:
        # What is loaded and allocated once is no growth: each kind of request has come before.
        assert post_bad_bodies(daemon, SEED, 100).broken == []
        refused = post_bad_bodies(daemon, SEED, count)
        record(refused)
        assert refused.broken == []
        assert refused.bodies == count
        assert refused.growth_bytes <= GROWTH_BYTES
        if count >= FULL_BODIES:
            assert refused.slowest_seconds < SLOWEST_SECONDS
        assert daemon.process.poll() is None
        good = {"x": [1] * 64, "label": "a"}
        assert daemon.client.post("/samples", json=good).status_code == 201
        assert daemon.client.post("/predict", json={"x": [1] * 64}).status_code == 200
        assert len(refused.codes) >= 8
