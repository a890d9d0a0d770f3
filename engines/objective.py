"""What each unit learns: the goodness of every class, and the loss that raises the right one.

`class_goodness` is the one-pass, multi-class form of the Forward-Forward objective. The unit's
activity `y` is cut into C contiguous groups and the goodness of class c is its group's mean square

    g_c = mean(y_i^2, i in group c)
    L   = -alpha g_t + logsumexp_c(alpha g_c)                        mean over the batch; t = label
    dL/dg_c = alpha (softmax(alpha g)_c - [c = t]) / B
    dL/dy_i = dL/dg_c(i) * 2 y_i / n_c(i)

No negative data, no threshold, one pass per prediction. With two classes whose logits are `G` and
theta it is the paper's pair of losses, `log(1 + exp(theta - G))` and `log(1 + exp(G - theta))`
(FF-INT8, arXiv 2506.22771v1, eq. 1-2), with alpha as the beta of its Fig. 5.

The gradient is written out rather than left to autograd: it needs nothing but `y` and `g`, so a
unit keeps only its int8 output, and no float graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassGoodness:
    """Group-head goodness per class with softmax cross-entropy.

    Args:
        classes: C.
        alpha: Sharpness of the softmax; 5 is the value of the recorded MNIST runs.
    """

    classes: int
    alpha: float = 5.0

    def group_sizes(self, width: int) -> Tensor:
        """Activities per class, int64 `[C]`; sizes differ by at most one, larger ones first."""
        small, larger = divmod(width, self.classes)
        sizes = torch.full((self.classes,), small)
        sizes[:larger] += 1
        return sizes

    def goodness(self, activity: Tensor) -> Tensor:
        """Mean square of each class's group.

        Args:
            activity: `y`, float32 `[batch, width]`, width >= C.

        Returns:
            `g`, float32 `[batch, C]`.
        """
        small, larger = divmod(activity.shape[1], self.classes)
        split = larger * (small + 1)
        square = activity.square()
        groups = [
            part.reshape(-1, count, size).mean(dim=2)
            for part, count, size in (
                (square[:, :split], larger, small + 1),
                (square[:, split:], self.classes - larger, small),
            )
            if count
        ]
        return torch.cat(groups, dim=1)

    def loss(self, goodness: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy over the class goodnesses, and its gradient.

        Args:
            goodness: `g`, float32 `[batch, C]`.
            labels: int64 `[batch]` in [0, C).

        Returns:
            `L`, float32 `[]`, and `dL/dg`, float32 `[batch, C]`.
        """
        log_p = torch.log_softmax(goodness * self.alpha, dim=1)
        rows = torch.arange(len(labels))
        loss = -log_p[rows, labels].mean()
        grad = log_p.exp_()
        grad[rows, labels] -= 1.0
        return loss, grad.mul_(self.alpha / len(labels))

    def grad_activity(self, grad_goodness: Tensor, activity: Tensor) -> Tensor:
        """`dL/dy` from `dL/dg`.

        Args:
            grad_goodness: float32 `[batch, C]`.
            activity: `y`, float32 `[batch, width]`.

        Returns:
            float32 `[batch, width]`; zero where a ReLU is silent.
        """
        sizes = self.group_sizes(activity.shape[1])
        per_activity = torch.repeat_interleave(grad_goodness * (2.0 / sizes), sizes, dim=1)
        return per_activity.mul_(activity)
