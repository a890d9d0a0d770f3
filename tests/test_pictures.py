"""Pictures: what is decoded, how, and what is refused before or while it is decoded."""

from __future__ import annotations

import contextlib
import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from daemon.errors import BadPictureError, BadShapeError, RequestError, TooLargeError
from daemon.ingest.pictures import (
    PIXEL_LIMIT,
    REQUEST_PIXEL_LIMIT,
    REQUEST_WORK_LIMIT,
    SCAN_LIMIT,
    PictureDecoder,
)
from models import ModelSpec

GREY = ModelSpec("mlp", (1, 4, 6), 3, (8,))
COLOUR = ModelSpec("mlp", (3, 4, 6), 3, (8,))


def file(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    written = io.BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()


def decode(data: bytes, spec: ModelSpec = COLOUR) -> np.ndarray:
    x = PictureDecoder(spec).decode(data, "image")
    assert (x.dtype, x.shape) == (np.uint8, (spec.features,))
    return x.reshape(spec.input_shape)


RGB = np.random.default_rng(1).integers(0, 256, (4, 6, 3), np.uint8)
PLAIN = Image.fromarray(RGB)


def chunk(kind: bytes, content: bytes) -> bytes:
    checked = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checked


def claimed(width: int, height: int, content: bytes = b"", before: bytes = b"") -> bytes:
    """A PNG that says it is so large."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = before + chunk(b"IDAT", content) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


def test_pixels_become_channels_first() -> None:
    np.testing.assert_array_equal(decode(file(PLAIN)), RGB.transpose(2, 0, 1))


def test_grey_and_colour_become_what_the_model_takes() -> None:
    grey = PLAIN.convert("L")
    np.testing.assert_array_equal(decode(file(grey)), np.stack([np.asarray(grey)] * 3))
    np.testing.assert_array_equal(decode(file(PLAIN), GREY), np.asarray(grey)[None])


def test_another_size_is_stretched() -> None:
    halves = np.zeros((40, 60), np.uint8)
    halves[:, 30:] = 200
    x = decode(file(Image.fromarray(halves)), GREY)[0]
    np.testing.assert_array_equal(x[:, [0, 1, 4, 5]], [[0, 0, 200, 200]] * 4)


def test_the_camera_may_have_been_turned() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned to the left: upright is a quarter turn to the right
    upright = PLAIN.convert("L")
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    turned = decode(file(stored, "PNG", exif=exif), GREY)
    np.testing.assert_array_equal(turned[0], np.asarray(upright))


def test_jpeg() -> None:
    flat = Image.new("RGB", (60, 40), (200, 100, 50))
    x = decode(file(flat, "JPEG", quality=95))
    assert np.abs(x.astype(int) - np.array([200, 100, 50])[:, None, None]).max() <= 3


def test_of_sixteen_bits_the_upper_eight_are_taken() -> None:
    deep = np.arange(24, dtype=np.uint16).reshape(4, 6) * 2730
    x = decode(file(Image.fromarray(deep)), GREY)
    np.testing.assert_array_equal(x[0], deep >> 8)


@pytest.mark.parametrize("mode", ["P", "1", "LA", "RGBA"])
def test_palette_bits_and_transparency_become_plain(mode: str) -> None:
    image = PLAIN.convert("L").convert(mode) if mode == "LA" else PLAIN.convert(mode)
    if mode == "RGBA":
        image.putalpha(128)
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode(file(image)), expected)


def test_cmyk_becomes_rgb() -> None:
    black = Image.new("CMYK", (6, 4), (0, 0, 0, 255))
    assert decode(file(black, "JPEG")).max() <= 3


@pytest.mark.parametrize("shape", [(24,), (2, 12), (2, 3, 4)])
def test_a_model_that_takes_no_pictures_says_so(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadShapeError, match="pictures need a model"):
        PictureDecoder(ModelSpec("mlp", shape, 3, (8,)))


def animated() -> bytes:
    second = Image.new("RGB", PLAIN.size, "red")
    return file(PLAIN, "PNG", save_all=True, append_images=[second])


REFUSED = {
    "nothing": b"",
    "text": b"not a picture",
    "GIF": file(PLAIN, "GIF"),
    "BMP": file(PLAIN, "BMP"),
    "WebP signature": b"RIFF\x00\x00\x00\x00WEBPVP8 ",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "a signature alone": b"\x89PNG\r\n\x1a\n",
    "PNG cut short": file(PLAIN)[:-30],
    "JPEG cut short": file(Image.new("RGB", (60, 40), "red"), "JPEG")[:-40],
    "PNG of no size": claimed(0, 0),
    "PNG without pixels": claimed(8, 8),
    "PNG with a wrong checksum": file(PLAIN).replace(b"IDAT", b"IDAS"),
    "animated": animated(),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_whole_picture_is_refused(case: str) -> None:
    with pytest.raises(BadPictureError) as caught:
        decode(REFUSED[case])
    assert (caught.value.status, caught.value.field) == (422, "image")
    assert caught.value.__context__ is None  # it would hold the pixels


@pytest.mark.parametrize(
    "data",
    [
        claimed(60_000, 60_000, zlib.compress(bytes(1000))),
        claimed(2**31 - 1, 2**31 - 1),
        file(Image.new("1", (20_000, 20_000)), "PNG"),  # a bomb: 50 KB, 400 million pixels
    ],
    ids=["claimed", "claimed most", "true"],
)
def test_pixels_are_counted_before_they_are_decoded(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError, match=f"at most {PIXEL_LIMIT}"):
            decode(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_text_in_a_picture_is_not_unpacked_without_end() -> None:
    text = b"Comment\0\0" + zlib.compress(bytes(8 << 20))
    with pytest.raises(BadPictureError):
        decode(claimed(6, 4, zlib.compress(bytes(28)), before=chunk(b"zTXt", text) * 50))


def test_the_pictures_of_a_request_share_a_budget() -> None:
    large = file(Image.new("1", (4096, 4096)))
    decoder = PictureDecoder(GREY)
    for _ in range(REQUEST_PIXEL_LIMIT // PIXEL_LIMIT):
        decoder.decode(large, "image")
    with pytest.raises(TooLargeError, match="several requests"):
        decoder.decode(large, "image")


WHOLE = [file(PLAIN), file(PLAIN, "JPEG"), file(PLAIN.convert("P")), animated()]


@given(
    st.sampled_from(WHOLE),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
    st.integers(0, 2000),
)
def test_a_damaged_picture_is_decoded_or_refused(data, damage, end) -> None:
    damaged = bytearray(data)
    for at, value in damage:
        damaged[at % len(damaged)] = value
    with contextlib.suppress(RequestError):
        decode(bytes(damaged[: end or None]))


def with_scans(data: bytes, count: int) -> bytes:
    """A JPEG with its last scan repeated until there are so many."""
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (count - data.count(b"\xff\xda")) + data[-2:]


def test_scans_of_a_jpeg_are_bounded_before_they_are_decoded(monkeypatch) -> None:
    progressive = file(PLAIN, "JPEG", progressive=True)
    decode(with_scans(progressive, SCAN_LIMIT))
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("it is decoded"))
    with pytest.raises(TooLargeError, match=f"has {SCAN_LIMIT + 1} scans of 24 pixels"):
        decode(with_scans(progressive, SCAN_LIMIT + 1))


def test_the_pictures_of_a_request_share_a_budget_of_scanned_pixels() -> None:
    side = 1024
    data = with_scans(file(Image.new("L", (side, side)), "JPEG", progressive=True), SCAN_LIMIT)
    decoder = PictureDecoder(GREY)
    fit = REQUEST_WORK_LIMIT // (side * side * SCAN_LIMIT)
    assert 1 < fit < REQUEST_PIXEL_LIMIT // (side * side)
    for index in range(fit):
        decoder.decode(data, f"image{index}")
    with pytest.raises(TooLargeError, match="pixels in all scans"):
        decoder.decode(data, "image")
