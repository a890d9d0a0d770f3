"""Look-ahead: a unit's update also counts what it does to the losses of the units after it.

    L_new = L_l + lambda * (L_{l+1} + ... + L_K)                                             (Eq. 3)
    dL_new/dW_l = dL_l/dW_l + lambda * d(L_{l+1} + ... + L_K)/dW_l                           (Eq. 4)

(FF-INT8, arXiv 2506.22771v1.) The paper can be read in more than one way: its text says that no
chain through later layers is built, but with the later losses held constant Eq. 4 has no effect at
all. Reading taken here: Eq. 3-4 as they stand, with true gradients through the later units.

All of it costs one reverse sweep. Let `d_l = dL_l/dy_l` be the own error of unit l and `r_l` the
gradient of the sum of all later losses at its activity, `r_K = 0`. Then

    e_l     = d_l + lambda * r_l            the error that W_l is updated from
    r_{l-1} = J_l^T (d_l + r_l)             J_l = dy_l / dy_{l-1}

The update uses lambda and the sweep does not, so each unit needs two errors. lambda = 0 is plain
layer-local learning and skips the sweep; lambda = 1 is back-propagation of the sum of the losses.

This module knows neither INT8 nor goodness: it is given functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def exact_look_ahead(
    units: int,
    weight: float,
    own_error: Callable[[int], Tensor],
    propagate: Callable[[int, Tensor], Tensor],
    update: Callable[[int, Tensor], None],
) -> None:
    """One reverse sweep over all units.

    A unit is updated only after the sweep has passed through its old weights, so the result is that
    of updating all units at once, with one unit's gradient alive at a time.

    Args:
        units: K.
        weight: lambda >= 0.
        own_error: `l -> d_l`, float32 `[batch, width_l]`.
        propagate: `(l, s) -> J_l^T s`, float32 `[batch, width_{l-1}]`; called for l >= 1 only.
        update: `(l, e_l) -> None`, changes unit l's weights.
    """
    later: Tensor | None = None
    for unit in reversed(range(units)):
        own = own_error(unit)
        sweep = own if later is None else own + later
        error = own if later is None else own.add_(later, alpha=weight)
        later = propagate(unit, sweep) if weight > 0 and unit > 0 else None
        update(unit, error)


def linear_schedule(first: float, last: float) -> Callable[[float], float]:
    """A lambda that moves from `first` to `last` as training progress goes from 0 to 1."""
    return lambda progress: first + (last - first) * progress
