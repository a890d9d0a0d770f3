"""Labels as input, for the `ff` objective: data is positive with its right label, else negative.

The paper writes one-hot labels into the input, right ones for positive and wrong ones for negative
data, and does not say where (FF-INT8, arXiv 2506.22771v1, section III). Reading taken here, one
rule for vectors and images: C label places are appended to a sample's last axis,

    [batch, N] -> [batch, N + C]        [batch, H, W, C0] -> [batch, H, W, C0 + C]

of which the label's own holds `label_value` and the others 0; in an image each place is a constant
plane. Hinton 2022 (arXiv 2212.13345, section 3.3) writes over the first ten pixels of MNIST. Those
are black in all 70,000 images and carry nothing else, so the network is the same apart from where
in the matrix the label's weights sit.

Negatives: a wrong label for each sample, drawn uniformly; or `hard`, drawn from the network's own
goodness under each label, so that it learns from the mistakes it would make. (Differs from Hinton,
whose hard labels come from a softmax readout of one pass with a neutral label.) Draws depend on
their key alone, see engines/rounding.py. Where a row has places (engines/targets.py), its wrong
label is one of them; a row that has no other than its own teaches nothing, as under
`class_goodness`: shown with its right label alone, it would only raise goodness, for which all
labels look alike.

Prediction asks for the goodness under every label. A layer's integer accumulator is linear in its
input codes, so the first layer's is the sum of a part that the sample makes and a part that the
label makes, exactly; the one is computed once a sample and the other once a label, in place of the
whole for each sample under each label:

    acc(x, c) = acc(x, no label) + acc(0, c)            int32

N + C need be no multiple of 8, as CUDA has it: `int8_matmul` pads, and 784 + 10 cost what 800 do.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from engines.rounding import NoiseKey, uniform


def append_labels(x: Tensor, labels: Tensor, classes: int, label_value: float | Tensor) -> Tensor:
    """Samples with a label each.

    Args:
        x: Any dtype, `[batch, N]` or NHWC `[batch, H, W, C0]`, or whatever ends in channels.
        labels: Class places, int64 `[batch]` in [0, C).
        classes: C.
        label_value: What the label's own place holds, in the units of `x` and, where it is a
            tensor `[]`, of its dtype. The larger, the more the first layer hears of the label; its
            int8 scale is that of the whole input.

    Returns:
        Dtype of `x`, its shape with C more on the last axis.
    """
    rows = one_hot(labels, classes).to(x.dtype).mul_(label_value)
    places = rows.view(len(labels), *[1] * (x.ndim - 2), classes)
    return torch.cat([x, places.expand(*x.shape[:-1], classes)], dim=-1)


def without_label(x: Tensor, classes: int) -> Tensor:
    """Samples whose label places are all 0; arguments and result as `append_labels` has them."""
    return pad(x, (0, classes))


def labels_alone(sample: Tensor, classes: int, label_value: float | Tensor) -> Tensor:
    """Every label with no sample: zeros of the shape of `sample`, `[*shape]`, and label c in row c.

    Returns:
        Dtype of `sample`, `[C, *shape]` with C more on the last axis.
    """
    nothing = sample.new_zeros(classes, *sample.shape)
    places = torch.arange(classes, device=sample.device)
    return append_labels(nothing, places, classes, label_value)


def wrong_labels(
    labels: Tensor, classes: int, key: NoiseKey, places: Tensor | None = None
) -> Tensor:
    """A uniformly drawn wrong label for each sample.

    Args:
        labels: Class places, int64 `[batch]` in [0, classes).
        classes: How many places are in use: a label that no sample ever has teaches nothing.
        key: Same key, same draws.
        places: Those that a row may draw, bool `[batch, C]`, whatever is in use; None: all in use.

    Returns:
        int64 `[batch]`, everywhere another than `labels` but where a row has no other place.

    Raises:
        ValueError: There are fewer than two classes, hence no wrong label.
    """
    _check_classes(classes)
    # In float64, where u (C - 1) is exact and so stays below C - 1.
    draws = uniform(len(labels), 1, key, labels.device)[:, 0].double()
    if places is not None:
        return _nth_place_ahead(labels, draws, places)
    ahead = 1 + (draws * (classes - 1)).to(torch.int64)
    return (labels + ahead) % classes


def _nth_place_ahead(labels: Tensor, draws: Tensor, places: Tensor) -> Tensor:
    """Of a row's other places, counted on from its label, that which a draw in (0, 1) falls on."""
    count = places.shape[1]
    steps = torch.arange(1, count + 1, device=labels.device)
    ahead = (labels[:, None] + steps) % count  # the last is the label itself
    others = places.gather(1, ahead)
    others[:, -1] = False
    nth = (draws * others.sum(dim=1)).to(torch.int64)
    step = (others.cumsum(dim=1) <= nth[:, None]).sum(dim=1).clamp_max(count - 1)
    return ahead.gather(1, step[:, None])[:, 0]


def hard_wrong_labels(
    goodness: Tensor, labels: Tensor, key: NoiseKey, places: Tensor | None = None
) -> Tensor:
    """A wrong label for each sample, drawn from the softmax of its goodness under the wrong ones.

    Args:
        goodness: Of each sample under each label that may be drawn, float32 `[batch, classes]`;
            finite.
        labels: Class places, int64 `[batch]` in [0, classes).
        key: Same key, same draws.
        places: Those that a row may draw, bool `[batch, classes]`; None: all.

    Returns:
        int64 `[batch]`, everywhere another than `labels` but where a row has no other place.

    Raises:
        ValueError: There are fewer than two classes, hence no wrong label.
    """
    _check_classes(goodness.shape[1])
    logits = goodness.scatter(1, labels[:, None], -torch.inf)
    if places is not None:
        logits = logits.masked_fill(~places, -torch.inf)
    # The first place whose cumulated share exceeds the draw. The right label's share is 0, so that
    # the sum does not rise there and it is never the first; a draw is at most 1 - 2^-17, so that
    # there is always a first.
    cumulated = torch.softmax(logits, dim=1).cumsum(dim=1)
    draws = uniform(len(labels), 1, key, goodness.device).double()
    drawn = (cumulated <= draws * cumulated[:, -1:]).sum(dim=1)
    if places is None:
        return drawn
    return torch.where(logits.isneginf().all(dim=1), labels, drawn)


def _check_classes(classes: int) -> None:
    if classes < 2:
        raise ValueError(f"{classes} class in use: there is no wrong label to draw")


def two_passes(
    x: Tensor, labels: Tensor, wrong: Tensor, classes: int, label_value: float | Tensor
) -> tuple[Tensor, Tensor]:
    """The batch of one `ff` step: both passes in one, the positive rows first.

    Args:
        x: See `append_labels`.
        labels: Right class places, int64 `[batch]`.
        wrong: Wrong class places, int64 `[batch]`; that of `labels` where a row has none.
        classes: C.
        label_value: See `append_labels`.

    Returns:
        The samples twice, `[2 batch, ...]`, and their targets, float32 `[2 batch]`: +1 for the
        right label, -1 for the wrong one, 0 in both passes for a row that has none.
    """
    rows = append_labels(torch.cat([x, x]), torch.cat([labels, wrong]), classes, label_value)
    taught = (wrong != labels).to(torch.float32)
    return rows, torch.cat([taught, -taught])


def accumulator_under_each_label(of_samples: Tensor, of_labels: Tensor) -> Tensor:
    """The first layer's accumulator of each sample under each label, exactly.

    Both parts must have been quantized with one scale, which may not depend on the label.

    Args:
        of_samples: That of `without_label`, int32 `[batch, ...]`.
        of_labels: That of `labels_alone`, int32 `[C, ...]`.

    Returns:
        int32 `[batch * C, ...]`: sample by sample, label by label within, so that a goodness
        `[batch * C]` is `[batch, C]` in another view.
    """
    return (of_samples[:, None] + of_labels[None]).flatten(0, 1)
