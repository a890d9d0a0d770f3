"""How a paper's network is fitted to a device: fewer channels, fewer strides for small images."""

from __future__ import annotations

SMALL_IMAGE_PIXELS = 64


def scale_channels(channels: int, width: float) -> int:
    """`channels * width`, rounded to a multiple of 8.

    At least 8, and never more than a tenth below the product. Multiples of 8 are also what the INT8
    product takes without padding.

    Source: Sandler et al., arXiv 1801.04381v4, the authors' `_make_divisible`, which torchvision
    and EfficientNet took over.

    Args:
        channels: The paper's count.
        width: Factor.
    """
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8


def fit_strides(strides: tuple[int, ...], size: tuple[int, int]) -> tuple[int, ...]:
    """The strides of stem and stages that suit an image.

    The papers' strides reduce 224 x 224 pixels to 7 x 7; of 32 x 32, one pixel would be left. So
    where the shorter side has at most 64 pixels, the stem and the first stage of stride 2 run at
    stride 1, and 32 x 32 ends at 4 x 4.

    Differs from the papers, which do not say how they treat small images.

    Args:
        strides: The paper's, the stem first.
        size: Height and width of the image.
    """
    if min(size) > SMALL_IMAGE_PIXELS:
        return strides
    first = strides.index(2, 1)
    return tuple(1 if at in (0, first) else stride for at, stride in enumerate(strides))
