"""What a linear head sees of an activity, in numbers alone."""

from __future__ import annotations

POOLED_SIZE = 4
POOLED_FEATURES_MAX = 2048


def pooled_shape(activity_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape after the average pooling in front of a linear head.

    A map is pooled to 4x4, or to its own size where that is less; height and width are then halved
    in turn, height first, until there are at most 2048 features or one pixel is left (256 channels
    give 2x4, 512 give 2x2). A dense activity is not pooled.

    Differs from Nokland & Eidnes 2019 (arXiv 1901.06656): they halve the map itself until the
    features are few enough, and have no upper bound of 4x4.

    Args:
        activity_shape: Of one sample, `(H, W, C)` or `(N,)`.

    Returns:
        `(h, w, C)` or `(N,)`.
    """
    if len(activity_shape) == 1:
        return activity_shape
    height, width, channels = activity_shape
    h, w = min(POOLED_SIZE, height), min(POOLED_SIZE, width)
    while h * w * channels > POOLED_FEATURES_MAX and h * w > 1:
        h, w = (-(-h // 2), w) if h >= w else (h, -(-w // 2))
    return h, w, channels


def pool_windows(size: int, places: int) -> list[tuple[int, int]]:
    """`(start, length)` of each average: floor(i size / places) to ceil((i + 1) size / places).

    Windows overlap by one where `places` does not divide `size`, as torch's adaptive pooling has
    them.
    """
    bounds = [(i * size // places, -(-(i + 1) * size // places)) for i in range(places)]
    return [(start, stop - start) for start, stop in bounds]
