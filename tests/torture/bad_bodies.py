"""Bad requests without end: good ones damaged, nonsense, bombs, false lengths, wrong headers.

Each is made from a seed and its number alone. Some damage does no harm (a digit that becomes
another digit); whoever needs only bad ones asks the decoders which those are (`refusals`). What
must be refused whatever the decoders think, such as features that are not finite, is marked
`surely`.
"""

from __future__ import annotations

import gzip
import itertools
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np

from daemon.errors import RequestError
from daemon.ingest.forms import FORMS, JSON_LIMIT_BYTES, PREDICT_TYPES, SAMPLE_TYPES, Payload
from daemon.ingest.kept_predictions import KeptPredictions
from models import ModelSpec
from tests import sample_forms as forms
from tests.sample_forms import Given, Sent

SHAPE = (1, 8, 8)
SPEC = ModelSpec("mlp", SHAPE, 10, (64, 64))
MARK = "EvilMark"
KEPT = KeptPredictions(by_default=False)
NUMBERS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e39",
    "9" * 4000,
    "01",
    "-",
    "0x10",
    "1e",
    "-0",
]


@dataclass(frozen=True)
class BadBody:
    """One bad request: where it goes, what is sent, what kind of bad it is, whether surely."""

    route: str
    sent: Sent
    kind: str
    surely: bool = False


def bad_body(seed: int, number: int) -> BadBody:
    """The bad request of this number."""
    rng = random.Random(f"{seed} {number}")
    kind = rng.choices([*KINDS], [weight for weight, _ in KINDS.values()])[0]
    bad = KINDS[kind][1](rng)
    return replace(bad, kind=kind, route="/predict" if rng.random() < 0.2 else "/samples")


def bad_bodies(seed: int, count: int) -> Iterator[tuple[int, BadBody]]:
    """So many requests that must be refused, with their numbers."""
    numbered = ((number, bad_body(seed, number)) for number in itertools.count())
    found = ((number, bad) for number, bad in numbered if refusals(bad) is not None)
    return itertools.islice(found, count)


def refusals(bad: BadBody) -> list[RequestError] | None:
    """Why the decoders refuse it, one by one; None: they accept some of it."""
    kind = bad.sent.media_type.partition(";")[0].strip().lower()
    encoding = bad.sent.headers.get("Content-Encoding", "identity")
    predict = bad.route == "/predict"
    if kind not in (PREDICT_TYPES if predict else SAMPLE_TYPES) or encoding != "identity":
        return []
    length = bad.sent.headers.get("Inference-Header-Content-Length")
    sent = Payload(bad.sent.body, bad.sent.media_type, length, bad.sent.query)
    form = FORMS[kind]
    if len(sent.body) > form.limit_bytes:
        return []
    try:
        if predict:
            form.inputs(sent, SPEC)
            return None
        entries = form.samples(sent, SPEC, KEPT).entries
    except RequestError as error:
        return [error]
    refused = [entry for entry in entries if isinstance(entry, RequestError)]
    return refused if len(refused) == len(entries) else None


def _good(rng: random.Random, shape: tuple[int, ...] = SHAPE) -> Sent:
    count = rng.choice([1, 1, 2, 5])
    values = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (count, *shape))
    dtype = rng.choice(["uint8", "int8", "float32", "float64"])
    labels: Any = [rng.choice([1, 2]) for _ in range(count)]
    if rng.random() < 0.5:
        labels = [MARK + str(label) for label in labels]
    given = Given(values.astype(dtype), labels, [f"{MARK}-{i}" for i in range(count)], MARK)
    small = replace(given, x=values.astype(np.uint8))
    write: Callable[[], Sent] = rng.choice(
        [
            lambda: forms.json_batch(given),
            lambda: forms.json_batch(given, forms.base64_bytes),
            lambda: forms.json_batch(given, forms.infer_input),
            lambda: forms.lines(given),
            lambda: forms.message_pack(given),
            lambda: forms.message_pack(given, forms.raw_bytes),
            lambda: forms.tensors(given),
            lambda: forms.picture_form(small),
            lambda: forms.picture(small),
        ]
    )
    return write()


def _damaged(rng: random.Random) -> BadBody:
    """A good request, some bytes of it changed, cut, repeated or moved."""
    sent = _good(rng)
    body = bytearray(sent.body)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(body) + 1)
        end = min(len(body), at + rng.choice([1, 2, 8, 64]))
        action = rng.randrange(5)
        if action == 0:
            body[at:end] = rng.randbytes(end - at)
        elif action == 1:
            del body[at:end]
        elif action == 2:
            body[at:at] = rng.choice(
                [b"\0", b"]", b"}", b'"', b"\xff", b",", b"[", rng.randbytes(4)]
            )
        elif action == 3:
            body[at:at] = body[at:end]
        else:
            del body[at:]
    return BadBody("", replace(sent, body=bytes(body)), "")


def _another_shape(rng: random.Random) -> BadBody:
    """A good request of another model."""
    sent = _good(rng, rng.choice([(1, 1, 3), (1, 2, 5), (3, 2, 9)]))
    if sent.media_type.startswith(("image/", "multipart/")):  # pictures are fitted to any size
        return BadBody("", replace(sent, media_type="application/json"), "", surely=True)
    return BadBody("", sent, "", surely=True)


def _other_axes(rng: random.Random) -> BadBody:
    """As many numbers as the model takes, in another order of axes."""
    x = np.ones((rng.choice([1, 3]), *rng.choice([(8, 1, 8), (1, 4, 16), (64, 1)])))
    given = Given(x.astype("u1"), [1] * len(x), [f"{MARK}-{i}" for i in range(len(x))], MARK)
    ways = [forms.raw_bytes, forms.infer_input, forms.numbers]
    sent = rng.choice(
        [
            forms.tensors(given),
            forms.message_pack(given, rng.choice(ways)),
            forms.json_batch(given, rng.choice([forms.base64_bytes, *ways[1:]])),
        ]
    )
    return BadBody("", sent, "", surely=True)


def _not_finite(rng: random.Random) -> BadBody:
    """A good request, but for one number of each sample."""
    x = np.ones((rng.choice([1, 3]), *SHAPE), rng.choice(["<f4", "<f8"]))
    worst = rng.choice([np.nan, np.inf, -np.inf] + [1e300] * (x.dtype == np.float64))
    x.reshape(len(x), -1)[:, rng.randrange(64)] = worst
    given = Given(x, [1] * len(x), [f"{MARK}-{i}" for i in range(len(x))], MARK)
    sent = rng.choice(
        [
            forms.tensors(given),
            forms.message_pack(given),
            forms.message_pack(given, forms.raw_bytes),
            forms.message_pack(given, forms.infer_input),
            forms.json_batch(given),
            forms.json_batch(given, forms.base64_bytes),
            forms.lines(given),
        ]
    )
    return BadBody("", sent, "", surely=True)


def _random_bytes(rng: random.Random) -> BadBody:
    kind = rng.choice([*SAMPLE_TYPES, f"multipart/form-data; boundary={forms.BOUNDARY}"])
    headers = {"Inference-Header-Content-Length": str(rng.randrange(40))}
    start = rng.choice(
        [b"", b"{", b'{"x":[', b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"\x82\xa1x"]
    )
    body = start + rng.randbytes(rng.choice([0, 1, 10, 100, 2000]))
    return BadBody("", Sent(body, kind, headers), "", surely=len(body) < 30)


def _value(rng: random.Random, depth: int = 0) -> Any:
    plain = [None, True, 0, -1, 2**62 + 1, 1.5, "", " ", MARK, "s-1", "\0", "1", [1] * 64, [1] * 63]
    choice = rng.randrange(len(plain) + (2 if depth < 4 else 0))
    if choice < len(plain):
        return plain[choice]
    if choice == len(plain):
        return [_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(["x", "label", MARK]): _value(rng, depth + 1) for _ in range(3)}


def _nonsense(rng: random.Random) -> BadBody:
    """An object with fields that exist and values that do not belong there."""
    names = ["x", "x_b64", "dtype", "shape", "inputs", "label", "id", "inference_id", "source"]
    names += ["ts", "samples", "keep", MARK]
    body = {name: _value(rng) for name in rng.sample(names, rng.randrange(1, 5))}
    if rng.random() < 0.3:
        body = {"samples": [body] * rng.choice([1, 3, 300])}
    if rng.random() < 0.5:
        return BadBody("", Sent(msgspec.msgpack.encode(body), "application/msgpack"), "")
    text = json.dumps(body)
    if rng.random() < 0.3:
        text = text.replace("1", rng.choice(NUMBERS), 1)
    kind = rng.choice(["application/json", "application/x-ndjson"])
    return BadBody("", Sent(text.encode("utf-8", "surrogatepass"), kind), "")


def _deep(rng: random.Random) -> BadBody:
    depth = rng.choice([5, 100, 5000, 100_000])
    field = rng.choice(["x", "label", "samples", "inputs", MARK])
    if rng.random() < 0.5:
        inner = rng.choice([b"\x91", b"\x81\xa1a"]) * depth + b"\1"
        name = msgspec.msgpack.encode(field)
        return BadBody("", Sent(b"\x81" + name + inner, "application/msgpack"), "", surely=True)
    inner = b"[" * depth + b"1" + b"]" * rng.choice([0, depth])
    if rng.random() < 0.3:
        inner = b'{"a":' * (depth // 2) + b"1" + b"}" * (depth // 2)
    body = b'{"' + field.encode() + b'":' + inner + b"}"
    return BadBody("", Sent(body, "application/json"), "", surely=True)


def _false_length(rng: random.Random) -> BadBody:
    """Tensors whose sizes, shapes or header do not fit."""
    raw = rng.randbytes(rng.choice([0, 1, 63, 65, 640]))
    size = rng.choice([len(raw), len(raw) + 1, 64, 2**31, 2**63, -1])
    shape = rng.choice([[1, 64], [2**31, 64], [0, 64], [64], [], [1, 2**31, 2**31], [-1, 64]])
    kind = rng.choice(["UINT8", "FP32", "FP64", "BYTES", "BOOL", "INT4", MARK])
    part = forms.tensor(rng.choice(["x", "x", "label", MARK]), shape, kind, raw)
    part[0]["parameters"] = {"binary_data_size": size}
    sent = forms.binary([part] * rng.choice([1, 1, 2]), {})
    said = int(sent.headers["Inference-Header-Content-Length"])
    length = rng.choice([str(said), str(said + 1), str(said - 1), "0", "-1", "", MARK, "9" * 100])
    headers = {"Inference-Header-Content-Length": length}
    return BadBody("", replace(sent, headers=headers), "", surely=True)


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def _picture_bomb(rng: random.Random) -> bytes:
    """A PNG that is small as a file, and large, cut short or full of packed text otherwise."""
    width, height = rng.choice([(60_000, 60_000), (2**31 - 1, 1), (4097, 4096), (4096, 4096)])
    head = _png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    text = _png_chunk(b"zTXt", b"a\0\0" + _PACKED_ZEROS)
    data = _png_chunk(b"IDAT", rng.choice([b"", _PACKED_ZEROS, rng.randbytes(50)]))
    return b"\x89PNG\r\n\x1a\n" + head + text * rng.choice([0, 1, 40]) + data


_PACKED_ZEROS = zlib.compress(bytes(4 << 20))


def _bomb(rng: random.Random) -> BadBody:
    """Little that claims to be, or unpacks to be, much."""
    choice = rng.randrange(6)
    if choice == 0:
        return BadBody("", Sent(_picture_bomb(rng), "image/png"), "", surely=True)
    if choice == 1:
        sent = forms.form([("image", _picture_bomb(rng))] * rng.choice([1, 20]))
        return BadBody("", sent, "", surely=True)
    if choice == 2:
        claimed = rng.choice([b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9"]) + b"\xff\xff\xff\xff"
        body = rng.choice([b"\x81\xa1x", b"\x81\xa7samples", b""]) + claimed
        return BadBody("", Sent(body, "application/msgpack"), "", surely=True)
    if choice == 3:
        packed = gzip.compress(bytes(1 << 20), mtime=0)
        encoding = {"Content-Encoding": rng.choice(["gzip", "deflate", "br", "zstd"])}
        return BadBody("", Sent(packed, "application/json", encoding), "", surely=True)
    if choice == 4:
        parts = forms.form([("label", b"a")] * rng.choice([770, 3000]))
        return BadBody("", parts, "", surely=True)
    body = b'{"x":[' + b" " * (JSON_LIMIT_BYTES + rng.choice([0, 1, 5000]))
    return BadBody("", Sent(body, "application/json"), "", surely=True)


def _by_hand(rng: random.Random) -> BadBody:
    """JSON that is wrong in one way, which chance would seldom find."""
    x = [1] * 64
    bodies: list[bytes] = [
        MARK.encode(),
        b'{"x": [1e999], "label": "%s"}' % MARK.encode(),
        b'{"x": [1], "label": "\\ud800%s"}' % MARK.encode(),
        b'{"x": [1], "label": "%s\xff"}' % MARK.encode(),
        json.dumps({"x": x, "label": 1, MARK: 1}).encode(),
        json.dumps({"x": x, "label": {MARK: 1}}).encode(),
        json.dumps({"x": MARK, "label": 1}).encode(),
        json.dumps({"x": x, "label": 1, "id": f"{MARK} {MARK}"}).encode(),
        json.dumps({"x": x, "label": 1, "source": MARK * 40}).encode(),
    ]
    return BadBody("", Sent(rng.choice(bodies), "application/json"), "")


def _wrong_header(rng: random.Random) -> BadBody:
    sent = _good(rng)
    kinds = ["text/plain", "application/pickle", "application/x-npy", "", "application/json,", MARK]
    kinds += ["multipart/form-data", "multipart/form-data; boundary=", "application/x-npz", "*/*"]
    return BadBody("", replace(sent, media_type=rng.choice(kinds)), "", surely=True)


KINDS: dict[str, tuple[int, Callable[[random.Random], BadBody]]] = {
    "damaged": (30, _damaged),
    "another shape": (10, _another_shape),
    "other axes": (5, _other_axes),
    "not finite": (5, _not_finite),
    "random bytes": (15, _random_bytes),
    "nonsense": (20, _nonsense),
    "deep": (5, _deep),
    "false length": (10, _false_length),
    "bomb": (3, _bomb),
    "by hand": (5, _by_hand),
    "wrong header": (7, _wrong_header),
}
