"""Plain NumPy oracles: slow, obvious, and without torch.

FF-INT8 (arXiv 2506.22771v1) gives the losses and what an update minimises:

    L_pos = log(1 + exp(theta - G_pos))                                                      (Eq. 1)
    L_neg = log(1 + exp(G_neg - theta))                                                      (Eq. 2)
    L_new = L_l + lambda * (L_{l+1} + ... + L_K)                                             (Eq. 3)
    dL_new/dW_l = dL_l/dW_l + lambda * d(L_{l+1} + ... + L_K)/dW_l                           (Eq. 4)

Units here are dense layers with ReLU, `y_l = relu(x_l W_l^T + b_l)`, joined by length
normalisation (Hinton 2022, arXiv 2212.13345, section 2):

    x_{l+1} = y_l / n_l      n_l = sqrt(mean(y_l^2) + 1e-6)
    dx_{l+1}/dy_l = (I - x_{l+1} x_{l+1}^T / width) / n_l

Easily got wrong: the 1e-6 stays in `n` and so in the Jacobian; the mean is over the width, not over
the batch; a group's mean divides by that group's own size; the batch mean puts 1/B into every
gradient.

Hashes are uint32, integers int64, reals float64. The quantizer alone works in float32: a code is
decided by a float32 reciprocal, product and rounding, and only in float32 can it be foretold.
"""

from __future__ import annotations

import numpy as np

M1, M2 = 0x7FEB352D, 0x846CA68B
GOLDEN = 0x9E3779B9
LENGTH_EPSILON = 1e-6


# --- rounding noise ---------------------------------------------------------------------------


def lowbias32(words):
    """Wellons, "Prospecting for Hash Functions", 2018: 32 bits to 32 bits, one to one."""
    h = np.atleast_1d(np.asarray(words, dtype=np.uint32))
    h = (h ^ (h >> np.uint32(16))) * np.uint32(M1)
    h = (h ^ (h >> np.uint32(15))) * np.uint32(M2)
    return h ^ (h >> np.uint32(16))


def key_word(seed: int, step: int, tensor: int) -> int:
    """Seed and step as 64 bits, low half first, each part mixed into one word."""
    word = np.uint32(seed & 0xFFFFFFFF)
    for part in (seed >> 32, step, step >> 32, tensor):
        mixed = lowbias32((part + GOLDEN) & 0xFFFFFFFF)
        word = lowbias32(word ^ mixed)[0]
    return int(word)


def words(shape: tuple[int, int], word: int):
    """uint32 `shape`: row and column hashed, joined with the key's word, and mixed once more."""
    rows, columns = (np.arange(size, dtype=np.uint32) for size in shape)
    h = lowbias32(rows)[:, None] ^ lowbias32(columns + np.uint32(GOLDEN)) ^ np.uint32(word)
    h = h * np.uint32(M1)
    return (h ^ (h >> np.uint32(15))) * np.uint32(M2)


def word_for_first(wanted: int) -> int:
    """The key's word under which the element at row 0, column 0 has the hash `wanted`."""
    h = (wanted * pow(M2, -1, 1 << 32)) & 0xFFFFFFFF
    h = h ^ (h >> 15) ^ (h >> 30)
    h = (h * pow(M1, -1, 1 << 32)) & 0xFFFFFFFF
    return h ^ int(lowbias32(0)[0]) ^ int(lowbias32(GOLDEN)[0])


def draws(shape: tuple[int, int], seed: int, step: int, tensor: int):
    """The low and the high half of each word, int32 `shape` each."""
    h = words(shape, key_word(seed, step, tensor))
    return (h & np.uint32(0xFFFF)).astype(np.int32), (h >> np.uint32(16)).astype(np.int32)


# --- INT8 -------------------------------------------------------------------------------------


def absmax_scale(x, axis=None):
    """float32 `absmax * (1 / 127)`, and 1 where that is below 1e-37."""
    scale = np.abs(x).max(axis=axis, keepdims=axis is not None) * np.float32(1 / 127)
    return np.where(scale < np.float32(1e-37), np.float32(1), scale).astype(np.float32)


def quantize(x, scale, noise=None):
    """int64 codes in [-127, 127]: nearest even, or `floor((rint(2^16 x / s) + noise) / 2^16)`."""
    steps = np.multiply(x, np.float32(1) / np.asarray(scale, np.float32), dtype=np.float32)
    steps = np.clip(steps, -127, 127)
    if noise is None:
        return np.rint(steps).astype(np.int64)
    return (np.rint(steps * np.float32(2**16)).astype(np.int64) + noise) // 2**16


def int_matmul(a, b):
    """int64 product of integers."""
    return np.asarray(a, dtype=np.int64) @ np.asarray(b, dtype=np.int64)


# --- Forward-Forward --------------------------------------------------------------------------


def softplus(x):
    """`log(1 + exp(x))`; Eq. 1 is softplus(theta - G), Eq. 2 softplus(G - theta)."""
    return np.logaddexp(0.0, x)


def groups(width: int, classes: int) -> list[slice]:
    """Contiguous, as equal as can be, larger ones first."""
    parts = np.array_split(np.arange(width), classes)
    return [slice(part[0], part[-1] + 1) for part in parts]


def class_goodness(y, classes: int):
    """Mean square of each class's group, `[batch, C]`."""
    return np.stack([(y[:, g] ** 2).mean(axis=1) for g in groups(y.shape[1], classes)], axis=1)


def class_goodness_pullback(grad_goodness, y):
    """`dL/dy_i = dL/dg_c 2 y_i / n_c` for i in the group of c, `[batch, width]`."""
    grad = np.empty_like(y)
    for c, g in enumerate(groups(y.shape[1], grad_goodness.shape[1])):
        grad[:, g] = grad_goodness[:, c : c + 1] * 2 * y[:, g] / (g.stop - g.start)
    return grad


def cross_entropy(goodness, labels, alpha: float):
    """`mean(logsumexp(alpha g) - alpha g_t)` and its gradient with respect to g."""
    logits = alpha * goodness
    logits = logits - logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    one_hot = np.eye(goodness.shape[1])[labels]
    loss = -(one_hot * log_p).sum(axis=1).mean()
    return loss, alpha * (np.exp(log_p) - one_hot) / len(labels)


def length_normalize(y):
    """`z = y / n` `[batch, width]` and `n` `[batch, 1]`."""
    n = np.sqrt((y**2).mean(axis=1, keepdims=True) + LENGTH_EPSILON)
    return y / n, n


def length_jacobian(y):
    """`dz/dy` of one row `[width]`: `[width, width]`, symmetric."""
    z, n = length_normalize(y[None])
    return (np.eye(len(y)) - np.outer(z, z) / len(y)) / n[0]


def mlp_step(weights, biases, x, labels, *, classes: int, alpha: float, look_ahead_weight: float):
    """Losses of all units, and dL_new/dW_l, dL_new/db_l as Eq. 4 has them.

    Every later loss is carried back to every earlier unit by itself, K^2 chains in all: nothing of
    the one-sweep recursion that the engine uses is assumed.
    """
    inputs, activities = [x], []
    for W, b in zip(weights, biases, strict=True):
        activities.append(np.maximum(inputs[-1] @ W.T + b, 0))  # [B, in] @ [in, out]
        inputs.append(length_normalize(activities[-1])[0])

    losses, own_errors = [], []
    for y in activities:
        loss, grad_goodness = cross_entropy(class_goodness(y, classes), labels, alpha)
        losses.append(loss)
        own_errors.append(class_goodness_pullback(grad_goodness, y))

    def carried_back(later: int, unit: int):
        """dL_later/dy_unit."""
        error = own_errors[later]
        for k in range(later, unit, -1):
            at_input = (error * (activities[k] > 0)) @ weights[k]  # [B, out] @ [out, in]
            jacobians = np.stack([length_jacobian(row) for row in activities[k - 1]])
            error = np.einsum("bij,bi->bj", jacobians, at_input)
        return error

    gradients = []
    for unit, y in enumerate(activities):
        later_errors = [carried_back(later, unit) for later in range(unit + 1, len(weights))]
        error = (own_errors[unit] + look_ahead_weight * sum(later_errors)) * (y > 0)
        gradients.append({"weight": error.T @ inputs[unit], "bias": error.sum(axis=0)})
    return losses, gradients


# --- agreement --------------------------------------------------------------------------------


def relative_error(found, wanted) -> float:
    """`|found - wanted| / |wanted|`, Euclidean over all elements."""
    wanted = np.asarray(wanted, dtype=np.float64)
    return float(np.linalg.norm(np.asarray(found, np.float64) - wanted) / np.linalg.norm(wanted))


def snr_db(found, wanted) -> float:
    """Signal-to-noise ratio, `20 log10(|wanted| / |found - wanted|)`."""
    error = relative_error(found, wanted)
    return -20 * np.log10(error) if error else np.inf


def cosine(a, b) -> float:
    """Of the angle between two arrays taken as vectors."""
    a, b = (np.asarray(v, dtype=np.float64).ravel() for v in (a, b))
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
