"""Labels as input: where they go, how wrong ones are drawn, and that sharing a layer is exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import conv2d

from engines.int8 import QTensor, int8_matmul, quantize
from engines.labels import (
    accumulator_under_each_label,
    append_labels,
    hard_wrong_labels,
    labels_alone,
    two_passes,
    without_label,
    wrong_labels,
)
from engines.rounding import NoiseKey
from tests import reference

KEY = NoiseKey(seed=7, step=3, tensor=1)
DRAWS = 60_000


def integers(*shape: int, limit: int = 127, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-limit, limit + 1, shape, generator=generator, dtype=torch.int8)


# --- where they go ----------------------------------------------------------------------------


def test_a_vector_gets_its_label_appended():
    x = torch.tensor([[0.5, -1.0], [2.0, 3.0]])
    rows = append_labels(x, torch.tensor([2, 0]), classes=3, label_value=4.0)
    assert rows.tolist() == [[0.5, -1.0, 0.0, 0.0, 4.0], [2.0, 3.0, 4.0, 0.0, 0.0]]


@given(classes=st.integers(2, 12), batch=st.integers(1, 4), seed=st.integers(0, 99))
def test_an_image_gets_one_constant_plane_a_label(classes, batch, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, 3, 5, 2)).astype(np.float32)
    labels = rng.integers(0, classes, batch)
    rows = append_labels(torch.from_numpy(x), torch.from_numpy(labels), classes, 1.5).numpy()
    assert rows.shape == (batch, 3, 5, 2 + classes)
    np.testing.assert_array_equal(rows[..., :2], x)
    for sample, label in enumerate(labels):
        for place in range(classes):
            assert (rows[sample, :, :, 2 + place] == (1.5 if place == label else 0)).all()


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4)])
def test_a_sample_and_its_label_are_the_sum_of_either_alone(shape):
    x, labels = torch.rand(5, *shape), torch.tensor([0, 1, 2, 2, 0])
    together = append_labels(x, labels, 3, 0.5)
    apart = without_label(x, 3) + labels_alone(x[0], 3, 0.5)[labels]
    assert torch.equal(together, apart)


def test_codes_stay_codes():
    assert append_labels(integers(2, 3), torch.tensor([0, 1]), 2, 127).dtype == torch.int8
    assert labels_alone(integers(3), 2, 127).tolist() == [[0, 0, 0, 127, 0], [0, 0, 0, 0, 127]]


@pytest.mark.parametrize("shape", [(6,), (2, 2, 3)])
def test_positive_rows_come_first_and_negative_ones_are_the_same_samples(shape):
    x, labels, wrong = torch.rand(3, *shape), torch.tensor([0, 1, 2]), torch.tensor([1, 3, 0])
    kept = x.clone()
    rows, targets = two_passes(x, labels, wrong, classes=4, label_value=1.0)
    assert torch.equal(rows[:3], append_labels(x, labels, 4, 1.0))
    assert torch.equal(rows[3:], append_labels(x, wrong, 4, 1.0))
    assert targets.tolist() == [1, 1, 1, -1, -1, -1]
    assert targets.dtype == torch.float32
    assert torch.equal(x, kept)


# --- wrong labels -----------------------------------------------------------------------------


@given(
    classes=st.integers(2, 40),
    batch=st.integers(1, 50),
    seed=st.integers(0, 2**64 - 1),
    hard=st.booleans(),
)
def test_a_wrong_label_is_a_class_in_use_and_never_the_right_one(classes, batch, seed, hard):
    rng = np.random.default_rng(seed)
    labels, key = torch.from_numpy(rng.integers(0, classes, batch)), NoiseKey(seed, 0, 0)
    kept = labels.clone()
    if hard:
        # Gaps so large that most shares vanish in float64.
        goodness = torch.from_numpy(rng.normal(scale=1e4, size=(batch, classes))).float()
        wrong = hard_wrong_labels(goodness, labels, key)
    else:
        wrong = wrong_labels(labels, classes, key)
    assert wrong.dtype == torch.int64
    assert wrong.shape == labels.shape
    assert ((wrong >= 0) & (wrong < classes)).all()
    assert (wrong != labels).all()
    assert torch.equal(labels, kept)


class Word:
    """A key that is already mixed, so that a test can choose the first element's draw."""

    def __init__(self, hashed: int) -> None:
        self._word = reference.word_for_first(hashed)

    def word(self) -> int:
        return self._word


@pytest.mark.parametrize("hashed", [0, 2**32 - 1])
@pytest.mark.parametrize("label", [0, 1, 2, 3])
def test_the_smallest_and_the_largest_draw(hashed, label):
    labels = torch.tensor([label])
    others = [c for c in range(4) if c != label]
    uniformly = wrong_labels(labels, 4, Word(hashed)).item()
    assert uniformly == (label + (1 if hashed == 0 else 3)) % 4
    hard = hard_wrong_labels(torch.zeros(1, 4), labels, Word(hashed)).item()
    assert hard == (others[0] if hashed == 0 else others[-1])


def test_uniform_negatives_are_uniform():
    labels = torch.full((DRAWS,), 2)
    counts = wrong_labels(labels, 5, KEY).bincount(minlength=5).numpy()
    share = counts[[0, 1, 3, 4]] / DRAWS
    # 4 sigma of a share of 1/4; the key is fixed, so the outcome is too.
    np.testing.assert_allclose(share, 1 / 4, atol=4 * np.sqrt(1 / 4 * 3 / 4 / DRAWS))


def test_hard_negatives_are_drawn_by_the_softmax_of_their_goodness():
    # Shares 1/6, 1/2, 1/3 of the wrong labels; the right one, far the best, has none.
    goodness = torch.tensor([1.0, 3.0, 1e9, 2.0]).log().expand(DRAWS, 4)
    drawn = hard_wrong_labels(goodness, torch.full((DRAWS,), 2), KEY)
    share = drawn.bincount(minlength=4).numpy() / DRAWS
    wanted = np.array([1, 3, 0, 2]) / 6
    assert (np.abs(share - wanted) <= 4 * np.sqrt(wanted * (1 - wanted) / DRAWS)).all()


@pytest.mark.parametrize("goodness", [[0.0, 1e9, 0.0], [-1e9, 1e9, -1e9], [0.0, -1e9, 0.0]])
def test_hard_negatives_of_extreme_goodness(goodness):
    drawn = hard_wrong_labels(torch.tensor(goodness).expand(50, 3), torch.zeros(50).long(), KEY)
    assert set(drawn.tolist()) == ({1} if goodness[1] > 0 else {2})


@pytest.mark.parametrize(
    "other",
    [NoiseKey(8, 3, 1), NoiseKey(7, 4, 1), NoiseKey(7, 3, 2)],
    ids=["seed", "step", "tensor"],
)
def test_negatives_depend_on_the_key_and_on_nothing_else(other):
    labels, goodness = torch.arange(200) % 10, torch.zeros(200, 10)
    assert torch.equal(wrong_labels(labels, 10, KEY), wrong_labels(labels, 10, KEY))
    hard = hard_wrong_labels(goodness, labels, KEY)
    assert torch.equal(hard, hard_wrong_labels(goodness, labels, KEY))
    assert not torch.equal(hard, hard_wrong_labels(goodness, labels, other))
    assert not torch.equal(wrong_labels(labels, 10, KEY), wrong_labels(labels, 10, other))


def test_one_class_has_no_wrong_label():
    labels = torch.zeros(3).long()
    with pytest.raises(ValueError, match="1 class in use: there is no wrong label"):
        wrong_labels(labels, 1, KEY)
    with pytest.raises(ValueError, match="1 class in use: there is no wrong label"):
        hard_wrong_labels(torch.zeros(3, 1), labels, KEY)


# --- all labels at once -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "inputs", "classes", "outputs"), [(3, 13, 10, 9), (20, 784, 10, 24)]
)
def test_a_dense_layer_under_each_label_is_exact_and_multiplies_the_samples_once(
    batch, inputs, classes, outputs
):
    scale = torch.tensor(0.031)
    x = torch.randn(batch, inputs, generator=torch.Generator().manual_seed(1))
    weight = integers(outputs, inputs + classes)

    def accumulator(rows):
        codes = quantize(rows, scale).codes
        return int8_matmul(codes, weight.t())  # [rows, in + C] @ [in + C, out], int32

    found = accumulator_under_each_label(
        accumulator(without_label(x, classes)), accumulator(labels_alone(x[0], classes, 3.0))
    )

    every = torch.arange(classes).repeat(batch)
    naive = append_labels(x.repeat_interleave(classes, dim=0), every, classes, 3.0)
    assert found.dtype == torch.int32
    assert torch.equal(found, accumulator(naive))
    oracle = reference.int_matmul(quantize(naive, scale).codes, weight.t())
    np.testing.assert_array_equal(found.numpy(), oracle)
    goodness = found.double().square().sum(dim=1).view(batch, classes)
    row = found[1 * classes + 4].double().square().sum()  # sample 1 under label 4
    assert goodness[1, 4] == row


def test_a_convolution_under_each_label_is_exact_borders_included():
    classes, x, kernel = 4, integers(3, 6, 5, 2), integers(7, 2 + 4, 3, 3, seed=1)

    def accumulator(codes):
        # Exact in float64: at most 54 products of codes. NHWC -> NCHW and back.
        found = conv2d(codes.permute(0, 3, 1, 2).double(), kernel.double(), padding=1)
        return found.permute(0, 2, 3, 1).to(torch.int32)

    found = accumulator_under_each_label(
        accumulator(without_label(x, classes)), accumulator(labels_alone(x[0], classes, 127))
    )
    every = torch.arange(classes).repeat(len(x))
    naive = append_labels(x.repeat_interleave(classes, dim=0), every, classes, 127)
    assert found.shape == (3 * classes, 6, 5, 7)
    assert torch.equal(found, accumulator(naive))


def test_appended_labels_are_the_overlay_of_black_pixels_with_its_weights_elsewhere():
    # Hinton 2022 (arXiv 2212.13345, section 3.3): the first C pixels, black, hold the label.
    classes, labels = 3, torch.tensor([1, 2])
    x = integers(2, 9)
    x[:, :classes] = 0
    appended = QTensor(append_labels(x, labels, classes, 100), torch.ones(()))
    weight = integers(8, 9 + classes, seed=2)
    overlay, overlay_weight = x.clone(), weight[:, :9].clone()
    overlay[torch.arange(2), labels] = 100
    overlay_weight[:, :classes] = weight[:, 9:]
    assert torch.equal(
        int8_matmul(appended.codes, weight.t()), int8_matmul(overlay, overlay_weight.t())
    )
