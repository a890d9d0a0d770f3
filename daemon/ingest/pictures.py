"""One picture to a sample's features: PNG or JPEG, decoded by Pillow, fitted to the model's shape.

What a picture says of its size is checked before a pixel is decoded. Decided for those that are
not plain 8-bit grey or RGB:

- the EXIF orientation is applied, then the picture is stretched to `[channels, height, width]`;
- palettes and CMYK become RGB, or grey; transparency is dropped; of 16 bits the upper 8 are taken;
- an animated PNG is refused; of a JPEG with several pictures the first counts.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin

from daemon.errors import BadPictureError, BadShapeError, RequestError, TooLargeError
from models import ModelSpec

PIXEL_LIMIT = 1 << 24
REQUEST_PIXEL_LIMIT = 1 << 26
# A progressive JPEG goes over its pixels once a scan, and thousands of scans take a few bytes each.
SCAN_LIMIT = 64
REQUEST_WORK_LIMIT = 1 << 30  # pixels times scans

# Ours is smaller and is checked before decoding; Pillow's own would warn on standard error.
Image.MAX_IMAGE_PIXELS = None
# Compressed text beside the pixels is unpacked when a PNG is opened; nobody here reads it.
PngImagePlugin.MAX_TEXT_CHUNK = 1 << 16
PngImagePlugin.MAX_TEXT_MEMORY = 1 << 18


class PictureDecoder:
    """Decodes the pictures of one request, which share a budget of pixels.

    Args:
        spec: The model; its input shape must be `[1 or 3, height, width]`.

    Raises:
        BadShapeError: The model takes no pictures.
    """

    def __init__(self, spec: ModelSpec) -> None:
        shape = spec.input_shape
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise BadShapeError(
                "pictures need a model with input_shape [1 or 3, height, width], this one has "
                f"{[*shape]}: send numbers"
            )
        self._shape = shape[0], shape[1], shape[2]
        self._pixels_left = REQUEST_PIXEL_LIMIT
        self._work_left = REQUEST_WORK_LIMIT

    def decode(self, data: bytes, field: str) -> NDArray[np.uint8]:
        """The features of one picture.

        Args:
            data: The file's content.
            field: Where it stands, for an error.

        Returns:
            uint8 `[features]`, channels first.

        Raises:
            BadPictureError: It is damaged, animated, or neither PNG nor JPEG.
            TooLargeError: It, or all pictures of the request, have too many pixels or scans.
        """
        try:
            return self._decode(data, field)
        except RequestError:
            raise
        except Exception:  # noqa: BLE001, S110 - whatever a damaged file does to the library
            pass
        # Out here, since an error raised in a handler keeps what failed there, pixels and all.
        raise BadPictureError(
            f"field '{field}' cannot be decoded: a whole PNG or JPEG file is wanted", field=field
        )

    def _decode(self, data: bytes, field: str) -> NDArray[np.uint8]:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            pixels = image.width * image.height
            if pixels > PIXEL_LIMIT:
                raise TooLargeError(
                    f"field '{field}' has {pixels} pixels, at most {PIXEL_LIMIT} are decoded: "
                    "send it smaller",
                    field=field,
                )
            if pixels > self._pixels_left:
                raise TooLargeError(
                    f"the pictures of one request have more than {REQUEST_PIXEL_LIMIT} pixels: "
                    "send several requests",
                    field=field,
                )
            self._pixels_left -= pixels
            if image.format != "PNG":
                self._check_scans(data, pixels, field)
            if image.format == "PNG" and getattr(image, "is_animated", False):
                raise BadPictureError(
                    f"field '{field}' is animated: send one picture a sample", field=field
                )
            return fit_picture(image, self._shape).reshape(-1)

    def _check_scans(self, data: bytes, pixels: int, field: str) -> None:
        # Pixels cannot hold this marker; metadata may, and then counts for a scan or two too many.
        scans = data.count(b"\xff\xda")
        self._work_left -= pixels * scans
        if scans > SCAN_LIMIT or self._work_left < 0:
            raise TooLargeError(
                f"field '{field}' has {scans} scans of {pixels} pixels, at most {SCAN_LIMIT} are "
                f"decoded, and {REQUEST_WORK_LIMIT} pixels in all scans of a request: send a plain "
                "JPEG, one that is not progressive",
                field=field,
            )


def fit_picture(image: Image.Image, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The pixels of a picture in the model's shape.

    Args:
        image: Open; it is decoded here.
        shape: `[1 or 3, height, width]`.

    Returns:
        uint8, of this shape.
    """
    channels, height, width = shape
    image.load()
    upright = ImageOps.exif_transpose(image)
    plain = _eight_bits(upright).convert("L" if channels == 1 else "RGB")
    if plain.size != (width, height):
        plain = plain.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(plain, np.uint8).reshape(height, width, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _eight_bits(image: Image.Image) -> Image.Image:
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
