"""Random crops and mirror images: the augmentation that CIFAR-10 results are reported with.

Source: He et al. 2015, arXiv 1512.03385v1, section 4.2: pad by 4 pixels, crop at random, mirror
half of the images.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PADDING = 4


def crop_and_flip(images: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
    """Shift each image by -4..4 pixels along both axes, zeros moving in, and mirror half of them.

    Args:
        images: `[batch, channels, height, width]`, not changed.
        random: Draws shifts and mirrors, each image its own.

    Returns:
        New images, same shape and dtype.
    """
    batch, channels, height, width = images.shape
    p = PADDING
    padded = np.pad(images, ((0, 0), (0, 0), (p, p), (p, p)))
    down, right = random.integers(0, 2 * p + 1, (2, batch))
    rows = down[:, None] + np.arange(height)  # [batch, height]
    columns = right[:, None] + np.arange(width)
    mirrored = random.random(batch) < 0.5
    columns[mirrored] = columns[mirrored, ::-1]
    shifted: NDArray[Any] = padded[
        np.arange(batch)[:, None, None, None],
        np.arange(channels)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
    return shifted
