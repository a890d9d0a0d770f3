"""What each unit learns: the loss on its goodness, and which units' goodness answers.

How an activity becomes goodness is the head's business (engines/heads.py). Two objectives:

`ClassGoodness`, one pass: a goodness per class, and the loss that raises the right one,

    L       = -alpha g_t + logsumexp_c(alpha g_c)                    mean over the batch; t = label
    dL/dg_c = alpha (softmax(alpha g)_c - [c = t]) / B

Where a row has places (engines/targets.py), its softmax ranges over those alone: the logits of the
others are -inf, and their gradient exactly 0.

No negative data, no threshold, one pass per prediction.

`ForwardForward`, two passes: one goodness per sample, and the paper's losses (FF-INT8, arXiv
2506.22771v1), which raise it above theta for samples with the right label and lower it for others,

    L_pos = log(1 + exp(-(G_pos - theta)))                                                   (Eq. 1)
    L_neg = log(1 + exp(G_neg - theta))                                                      (Eq. 2)
    dL_pos/dG = -sigmoid(theta - G) / B      dL_neg/dG = sigmoid(G - theta) / B

with B samples in each of the two passes. The paper states the losses of one sample; the mean over
the positive ones plus the mean over the negative ones is taken here.

The first holds the second: two classes whose logits are `G` and theta, with alpha = 1, have the
losses of Eq. 1-2. C classes put the other classes' goodness in theta's place, and alpha is the beta
of the paper's Fig. 5.

Gradients are written out rather than left to autograd: a unit keeps `dL/dg` and no float graph.
They are bounded, by alpha / B and 1 / B, whatever the goodness, which suits INT8.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


class Objective(ABC):
    """The loss of one unit, as a function of its goodness."""

    @abstractmethod
    def loss(
        self, goodness: Tensor, targets: Tensor, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss `L`, float32 `[]`, and `dL/dg`, of the shape of `goodness`.

        Args:
            goodness: That of one unit.
            targets: What each row is to be.
            places: What each row is told apart from; None: all.
        """

    @abstractmethod
    def score(self, goodness: Sequence[Tensor]) -> Tensor:
        """What the judging units say together, float32 `[batch, C]`: the argmax is the answer.

        Args:
            goodness: That of each judging unit, see `engines.judging`; not empty.
        """


@dataclass(frozen=True)
class ClassGoodness(Objective):
    """Softmax cross-entropy over the goodness of every class.

    Args:
        classes: C.
        alpha: Sharpness of the softmax. 5 is the value of the recorded MNIST runs, whose goodness
            is a mean square near 1; a linear head finds its own, with alpha = 1.
    """

    classes: int
    alpha: float = 5.0

    def loss(
        self, goodness: Tensor, targets: Tensor, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy over the class goodnesses, and its gradient.

        Args:
            goodness: `g`, float32 `[batch, C]`.
            targets: Class places, int64 `[batch]` in [0, C).
            places: Those that a row's softmax ranges over, bool `[batch, C]`, its target among
                them; None: all. A row that has no other teaches nothing: its loss is 0.

        Returns:
            `L`, float32 `[]`, and `dL/dg`, float32 `[batch, C]`: 0 at places left out.
        """
        logits = goodness * self.alpha
        if places is not None:
            logits = logits.masked_fill(~places, -torch.inf)
        log_p = torch.log_softmax(logits, dim=1)
        loss = -log_p.gather(1, targets[:, None]).mean()
        places = torch.arange(self.classes, device=targets.device)
        right = (places == targets[:, None]).to(log_p.dtype)
        return loss, log_p.exp_().sub_(right).mul_(self.alpha / len(targets))

    def score(self, goodness: Sequence[Tensor]) -> Tensor:
        """Sum over units of `log softmax(alpha g)`.

        Args:
            goodness: float32 `[batch, C]` each; of the classes in use only, for the others would
                take their share of the softmax.

        Returns:
            float32 `[batch, C]`.
        """
        logits = torch.stack([*goodness]) * self.alpha
        return torch.log_softmax(logits, dim=2).sum(dim=0)


@dataclass(frozen=True)
class ForwardForward(Objective):
    """The paper's objective: Eq. 1 for positive rows, Eq. 2 for negative ones.

    Args:
        threshold: theta; 2.0 in the paper (section III).
    """

    threshold: float = 2.0

    def loss(
        self, goodness: Tensor, targets: Tensor, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean of Eq. 1 over the positive rows plus mean of Eq. 2 over the negative rows.

        Written as softplus of `-t (G - theta)`, which cannot overflow.

        Args:
            goodness: `G`, float32 `[2 batch]`.
            targets: `t`, float32 `[2 batch]`: +1 for a positive row, -1 for a negative one, as many
                of either; 0 for a row that teaches nothing, of loss log 2 and gradient 0.
            places: None: a goodness is of one label, which was drawn from the row's places.

        Returns:
            `L`, float32 `[]`, and `dL/dG`, float32 `[2 batch]`.
        """
        margin = targets * (goodness - self.threshold)
        per_row = 2.0 / len(targets)  # 1 / B: each pass is averaged by itself
        # log(1 + exp(-m)) = -log_sigmoid(m); torch's softplus would drop exp(-|m|) beyond 20.
        loss = -logsigmoid(margin).sum() * per_row
        return loss, torch.sigmoid(-margin) * targets * -per_row

    def score(self, goodness: Sequence[Tensor]) -> Tensor:
        """Sum over units of the goodness under each label.

        Args:
            goodness: float32 `[batch, C]` each: of every sample under every label.

        Returns:
            float32 `[batch, C]`.
        """
        return torch.stack([*goodness]).sum(dim=0)
