"""Bodies that are wrong in one way each, all with a word that no answer may repeat."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture.ledger import FEATURES
from tests.torture.processes import ForkedDaemon, Zygote

SECRET = "hunter2"  # noqa: S105 - a word to look for
_X = [1] * FEATURES
WRONG: dict[str, bytes] = {
    "no JSON": SECRET.encode(),
    "a number that is none": b'{"x": [NaN], "label": "%s"}' % SECRET.encode(),
    "a number too large": b'{"x": [1e999], "label": "%s"}' % SECRET.encode(),
    "half a character": b'{"x": [1], "label": "\\ud800%s"}' % SECRET.encode(),
    "bytes that are no text": b'{"x": [1], "label": "%s\xff"}' % SECRET.encode(),
    "an unknown field": json.dumps({"x": _X, "label": 1, SECRET: 1}).encode(),
    "a label that is neither": json.dumps({"x": _X, "label": {SECRET: 1}}).encode(),
    "text for features": json.dumps({"x": SECRET, "label": 1}).encode(),
    "too few features": json.dumps({"x": [1], "label": SECRET}).encode(),
    "an id that is none": json.dumps({"x": _X, "label": 1, "id": f"{SECRET} {SECRET}"}).encode(),
    "a long source": json.dumps({"x": _X, "label": 1, "source": SECRET * 40}).encode(),
    "nested without end": b'{"x": ' + b"[" * 100_000 + SECRET.encode(),
}


@dataclass
class Refused:
    """What wrong bodies met."""

    bodies: int = 0
    broken: list[str] = field(default_factory=list)


def post_wrong(zygote: Zygote, folder: Path, bugs: Sequence[str] = ()) -> Refused:
    """Each must be answered 4xx by one object that does not echo; nothing may be stored."""
    refused = Refused()
    with ForkedDaemon(zygote, folder, *bugs) as daemon:
        for name, body in WRONG.items():
            headers = {"Content-Type": "application/json"}
            answer = daemon.client.post("/samples", content=body, headers=headers)
            refused.bodies += 1
            if not 400 <= answer.status_code < 500:
                refused.broken.append(f"{name}: answered {answer.status_code}")
            elif not {"error", "code"} <= answer.json().keys():
                refused.broken.append(f"{name}: the answer has no error and code")
            if SECRET in answer.text:
                refused.broken.append(f"{name}: the answer repeats what was sent")
        if kept := daemon.metric("ffedge_samples_stored"):
            refused.broken.append(f"{kept:.0f} samples of wrong bodies are kept")
    return refused
