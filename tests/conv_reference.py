"""Plain NumPy oracles of convolutions: int64, window by window, and without torch.

With `P` the zero-padded input and window (y, x) starting at `P[:, y s, x s]`:

    out[n, y, x, o] = sum_ijc P[n, y s + i, x s + j, c] W[o, i, j, c]

Depthwise: the same without the sum over c, and with `W[c, i, j]`. Gradients are of `sum(out * e)`.
"""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from models.layers import ConvLayer


@st.composite
def conv_layers(draw, depthwise: bool = False):
    """Kernel 1, 3, 5; stride up to 3; sizes odd and even, also below kernel and stride."""
    in_channels = draw(st.integers(1, 18))
    return ConvLayer(
        in_channels=in_channels,
        out_channels=in_channels if depthwise else draw(st.integers(1, 18)),
        kernel=draw(st.sampled_from([1, 3, 5])),
        stride=draw(st.sampled_from([1, 1, 2, 2, 3])),
        depthwise=depthwise,
        activation="none",
        in_size=(draw(st.integers(1, 9)), draw(st.integers(1, 9))),
    )


def random_codes(rng, *shape: int):
    """int8 in [-127, 127]; one draw in four has codes of the largest magnitude alone."""
    if rng.integers(4) == 0:
        return rng.choice(np.array([-127, 127], dtype=np.int8), shape)
    return rng.integers(-127, 128, shape).astype(np.int8)


def padded(a, g: ConvLayer):
    """int64 `[B, H + 2 padding, W + 2 padding, C]`."""
    p = g.padding
    return np.pad(a.astype(np.int64), ((0, 0), (p, p), (p, p), (0, 0)))


def windows(a, g: ConvLayer):
    """int64 `[B, Ho, Wo, k, k, C]`, cut out one by one."""
    around, (down, across) = padded(a, g), g.out_size
    out = np.empty((len(a), down, across, g.kernel, g.kernel, a.shape[3]), dtype=np.int64)
    for y in range(down):
        for x in range(across):
            out[:, y, x] = around[:, y * g.stride :, x * g.stride :][:, : g.kernel, : g.kernel]
    return out


def spread(contribution, shape, g: ConvLayer):
    """Sum what every window gives to its pixels, `[B, Ho, Wo, k, k, C]`, without the padding."""
    total, (height, width), p = padded(np.zeros(shape, np.int64), g), g.in_size, g.padding
    for y in range(g.out_size[0]):
        for x in range(g.out_size[1]):
            at = total[:, y * g.stride :, x * g.stride :][:, : g.kernel, : g.kernel]
            at += contribution[:, y, x]
    return total[:, p : p + height, p : p + width]


def taps(w, g: ConvLayer):
    """int64 `[O, k, k, C]` of `[O, k*k*C]`."""
    return w.astype(np.int64).reshape(g.out_channels, g.kernel, g.kernel, g.in_channels)


def forward(a, w, g: ConvLayer):
    """`[B, Ho, Wo, O]`."""
    return np.einsum("nyxijc,oijc->nyxo", windows(a, g), taps(w, g))


def grad_weight(e, a, g: ConvLayer):
    """`[O, k*k*C]`."""
    gradient = np.einsum("nyxo,nyxijc->oijc", e.astype(np.int64), windows(a, g))
    return gradient.reshape(g.out_channels, -1)


def grad_input(e, w, g: ConvLayer):
    """`[B, H, W, C]`."""
    contribution = np.einsum("nyxo,oijc->nyxijc", e.astype(np.int64), taps(w, g))
    return spread(contribution, (len(e), *g.in_size, g.in_channels), g)


def depthwise_taps(w, g: ConvLayer):
    """int64 `[k, k, C]` of `[C, k*k]`."""
    return w.astype(np.int64).T.reshape(g.kernel, g.kernel, g.in_channels)


def depthwise_forward(a, w, g: ConvLayer):
    """`[B, Ho, Wo, C]`."""
    return (windows(a, g) * depthwise_taps(w, g)).sum(axis=(3, 4))


def depthwise_grad_weight(e, a, g: ConvLayer):
    """`[C, k*k]`."""
    gradient = (e.astype(np.int64)[:, :, :, None, None] * windows(a, g)).sum(axis=(0, 1, 2))
    return gradient.reshape(-1, g.in_channels).T


def depthwise_grad_input(e, w, g: ConvLayer):
    """`[B, H, W, C]`."""
    contribution = e.astype(np.int64)[:, :, :, None, None] * depthwise_taps(w, g)
    return spread(contribution, (len(e), *g.in_size, g.in_channels), g)
