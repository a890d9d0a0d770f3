"""Heads: what turns a unit's activity into goodness, and an error at the goodness back into one.

`GroupHead`, for `ClassGoodness`: the activities (of a convolution: the channels) are cut into C
contiguous groups, and the goodness of class c is the mean square over its group and all pixels,

    g_c = mean(y_i^2, i in group c)         dL/dy_i = dL/dg_c(i) * 2 y_i / n_c(i)

No parameters, and a silent ReLU gets no gradient, as in Forward-Forward.

`LinearHead`, for `ClassGoodness` after a convolution: average-pool, flatten, one linear layer,

    u = pool(y)     g = u V^T + b
    dL/dy = pool^T(dL/dg V)     dL/dV = (dL/dg)^T u     dL/db = sum over the batch of dL/dg

(the prediction loss of Nokland & Eidnes 2019, arXiv 1901.06656). V and b start at zero, so the
first error that such a head sends to its unit is zero; quantizers give an all-zero tensor scale 1
and codes 0.

`SquareHead`, for `ForwardForward`: one goodness per sample over all its activities,

    G = sum(y_i^2) / m, or the mean         dL/dy_i = dL/dG * 2 y_i / m,  for the mean m = n

(FF-INT8, arXiv 2506.22771v1, Algorithm 1 line 6, has the sum. With theta = 2 that says nothing of
the 10^4 activities of a convolution, hence the mean; and m of a sum tells how long the unit's input
is beside the paper's, see engines/rule.py.)

A head is a set of pure functions of tensors: its parameters belong to whoever optimizes them, and
nothing here depends on a tensor's values, so a compiler can trace it into the unit's own chain.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from engines.fusion import stored
from engines.judging import group_runs
from models.pooling import pool_windows, pooled_shape


class Head(ABC):
    """Activity to goodness and back. Activities are `[batch, N]` or NHWC `[batch, H, W, C]`."""

    @abstractmethod
    def first_parameters(self) -> dict[str, Tensor]:
        """What the parameters start from, float32; empty where there are none."""

    @abstractmethod
    def goodness(self, activity: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """float32 `[batch, classes]`, or `[batch]` where a sample has one goodness."""

    @abstractmethod
    def grad_activity(
        self, grad_goodness: Tensor, activity: Tensor, parameters: Mapping[str, Tensor]
    ) -> Tensor:
        """`dL/dy`, float32 of the shape of `activity`; memory of its own."""

    @abstractmethod
    def grad_parameters(self, grad_goodness: Tensor, activity: Tensor) -> dict[str, Tensor]:
        """`dL/d(parameter)`, float32, for every name of `first_parameters`."""


@dataclass(frozen=True)
class GroupHead(Head):
    """Mean square of each class's group of activities or channels.

    Args:
        classes: C. Group sizes differ by at most one, larger ones first.
    """

    classes: int

    def first_parameters(self) -> dict[str, Tensor]:
        """None."""
        return {}

    def group_sizes(self, width: int) -> list[int]:
        """Activities (channels) of each class.

        Raises:
            ValueError: `width` is less than C, so that some class would own nothing.
        """
        return [size for count, size in group_runs(width, self.classes) for _ in range(count)]

    def goodness(self, activity: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """`g`, float32 `[batch, C]`; see `Head.goodness`."""
        square = activity.square()
        if square.ndim == 4:
            square = square.mean(dim=(1, 2))  # over pixels: [B, H, W, C] -> [B, C]
        runs = group_runs(square.shape[1], self.classes)
        parts = torch.split(square, [count * size for count, size in runs], dim=1)
        groups = [
            torch.unflatten(part, 1, run).mean(dim=2) for part, run in zip(parts, runs, strict=True)
        ]
        return torch.cat(groups, dim=1)

    def grad_activity(
        self, grad_goodness: Tensor, activity: Tensor, parameters: Mapping[str, Tensor]
    ) -> Tensor:
        """`dL/dy`; see `Head.grad_activity`. Zero where a ReLU is silent."""
        runs = group_runs(activity.shape[-1], self.classes)
        pixels = math.prod(activity.shape[1:-1])
        shares = torch.split(grad_goodness, [count for count, _ in runs], dim=1)
        # A factor for each activity, stored: to ask in the loop that uses it which group an
        # activity is in would be a division for each.
        spread = [
            stored((share * (2.0 / (size * pixels)))[:, :, None].expand(-1, -1, size)).flatten(1)
            for share, (_, size) in zip(shares, runs, strict=True)
        ]
        factors = torch.cat(spread, dim=1) if len(spread) > 1 else spread[0]
        return activity * factors.view(len(factors), *[1] * (activity.ndim - 2), -1)

    def grad_parameters(self, grad_goodness: Tensor, activity: Tensor) -> dict[str, Tensor]:
        """None."""
        return {}


@dataclass(frozen=True)
class SquareHead(Head):
    """Sum or mean of all squares of a sample.

    Args:
        reduction: `sum` as the paper has it, or `mean`.
        square_length: m, what the square length of the unit's input is in the paper's.
    """

    reduction: Literal["sum", "mean"] = "sum"
    square_length: int = 1

    def first_parameters(self) -> dict[str, Tensor]:
        """None."""
        return {}

    def _count(self, activity: Tensor) -> int:
        if self.reduction == "mean":
            return math.prod(activity.shape[1:])
        return self.square_length

    def goodness(self, activity: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """`G`, float32 `[batch]`; see `Head.goodness`."""
        return activity.square().flatten(1).sum(dim=1) / self._count(activity)

    def grad_activity(
        self, grad_goodness: Tensor, activity: Tensor, parameters: Mapping[str, Tensor]
    ) -> Tensor:
        """`dL/dy`; see `Head.grad_activity`. Zero where a ReLU is silent."""
        factor = grad_goodness * (2.0 / self._count(activity))
        return factor.view(-1, *[1] * (activity.ndim - 1)) * activity

    def grad_parameters(self, grad_goodness: Tensor, activity: Tensor) -> dict[str, Tensor]:
        """None."""
        return {}


@dataclass(frozen=True)
class LinearHead(Head):
    """A linear classifier on the average-pooled activity.

    Args:
        classes: C.
        activity_shape: Of one sample, `(H, W, C)` or `(N,)`.
    """

    classes: int
    activity_shape: tuple[int, ...]

    @property
    def pooled_shape(self) -> tuple[int, ...]:
        """What `V` sees of one sample: `(h, w, C)` or `(N,)`."""
        return pooled_shape(self.activity_shape)

    def first_parameters(self) -> dict[str, Tensor]:
        """`weight`, V `[C, features]`, and `bias`, b `[C]`: zeros."""
        features = math.prod(self.pooled_shape)
        return {"weight": torch.zeros(self.classes, features), "bias": torch.zeros(self.classes)}

    def goodness(self, activity: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """`g`, float32 `[batch, C]`; see `Head.goodness`."""
        # [B, features] @ [features, C] -> [B, C]. In float64: in float32 the order of the sums, and
        # with it the last bit of an answer, depends on how many rows share the product.
        pooled, weight = self._pooled(activity).double(), parameters["weight"].double()
        return torch.addmm(parameters["bias"].double(), pooled, weight.t()).to(activity.dtype)

    def _pooled(self, activity: Tensor) -> Tensor:
        """`u`, float32 `[batch, features]`."""
        for axis, places in enumerate(self.pooled_shape[:-1], start=1):
            activity = average_pool(activity, axis, places)
        return activity.flatten(1)

    def grad_activity(
        self, grad_goodness: Tensor, activity: Tensor, parameters: Mapping[str, Tensor]
    ) -> Tensor:
        """`dL/dy`; see `Head.grad_activity`."""
        # [B, C] @ [C, features] -> [B, features]
        grad = (grad_goodness @ parameters["weight"]).view(-1, *self.pooled_shape)
        # The innermost axis first: only the last pass handles anything as large as the map.
        for axis in reversed(range(1, activity.ndim - 1)):
            grad = average_pool_adjoint(grad, axis, activity.shape[axis])
        return grad

    def grad_parameters(self, grad_goodness: Tensor, activity: Tensor) -> dict[str, Tensor]:
        """`dL/dV` and `dL/db`; see `Head.grad_parameters`."""
        # [C, B] @ [B, features] -> [C, features]
        weight = grad_goodness.t() @ self._pooled(activity)
        return {"weight": weight, "bias": grad_goodness.sum(dim=0)}


def average_pool(x: Tensor, axis: int, places: int) -> Tensor:
    """Averages along one axis.

    Args:
        x: float32.
        axis: Which.
        places: What is left of it, at most its size.

    Returns:
        float32, `axis` of size `places`.
    """
    size = x.shape[axis]
    if size == places:
        return x
    if size % places == 0:  # one reduction, which fuses with what comes before
        return torch.unflatten(x, axis, (places, size // places)).mean(dim=axis + 1)
    windows = pool_windows(size, places)
    return torch.stack([x.narrow(axis, *window).mean(dim=axis) for window in windows], dim=axis)


def _spread(x: Tensor, axis: int, times: int) -> Tensor:
    """Each element `times` times along an axis; a view and a copy, where torch's own gathers."""
    shape = [*x.shape]
    shape.insert(axis + 1, times)
    # Of a single element the flattened axis is still a view, whose elements share their memory.
    return x.unsqueeze(axis + 1).expand(shape).flatten(axis, axis + 1).contiguous()


def average_pool_adjoint(grad: Tensor, axis: int, size: int) -> Tensor:
    """The transpose of `average_pool`: each average's gradient shared out over its window.

    Args:
        grad: float32, `axis` of the pooled size.
        axis: Which.
        size: What it was pooled from.

    Returns:
        float32, `axis` of size `size`.
    """
    places = grad.shape[axis]
    if size == places:
        return grad
    if size % places == 0:
        return _spread(grad * (places / size), axis, size // places)
    shape = [*grad.shape]
    shape[axis] = size
    spread = grad.new_zeros(shape)
    for place, (start, length) in enumerate(pool_windows(size, places)):
        spread.narrow(axis, start, length).add_(grad.narrow(axis, place, 1), alpha=1 / length)
    return spread
