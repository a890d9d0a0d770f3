"""Width factor and strides: the rules by property and by the papers' numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.scaling import fit_strides, scale_channels


@given(st.integers(1, 5000), st.floats(0.001, 4))
def test_scaled_channels_keep_to_the_rule(channels, width):
    scaled, wanted = scale_channels(channels, width), channels * width
    assert scaled % 8 == 0
    assert scaled >= max(8, 0.9 * wanted)
    # The nearest multiple of 8, or the one above where the nearest lies a tenth below.
    assert scaled > wanted - 4
    assert scaled <= max(8, wanted + 4) or scaled - 8 < 0.9 * wanted


@given(st.integers(1, 600).map(lambda n: 8 * n))
def test_width_1_changes_no_multiple_of_8(channels):
    assert scale_channels(channels, 1.0) == channels


@pytest.mark.parametrize(
    ("channels", "width", "scaled"),
    [
        (16, 0.25, 8),
        (24, 0.5, 16),  # 12 lies between 8 and 16: a half is rounded up
        (24, 0.75, 24),  # 18 rounds to 16, which is 11 % below
        (128, 0.74, 96),  # 94.72
        (1280, 0.75, 960),
        (32, 1.4, 48),  # 44.8
    ],
)
def test_known_scaled_channels(channels, width, scaled):
    assert scale_channels(channels, width) == scaled


PAPER = (2, 1, 2, 2, 2, 1, 2, 1)


@pytest.mark.parametrize("size", [(65, 65), (224, 224), (65, 1000)])
def test_large_images_have_the_papers_strides(size):
    assert fit_strides(PAPER, size) == PAPER


@pytest.mark.parametrize("size", [(64, 64), (32, 32), (1, 1), (64, 1000), (1000, 64)])
def test_small_images_keep_their_pixels_in_the_stem_and_the_first_stage_of_stride_2(size):
    assert fit_strides(PAPER, size) == (1, 1, 1, 2, 2, 1, 2, 1)
