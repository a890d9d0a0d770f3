"""A unit and what trains it: Forward-Forward gives each unit a goodness and a loss of its own.

g_l = goodness of the kept activity (engines/heads.py)
L_l, dL_l/dg_l (engines/objective.py)
d_l + w r_l: the own error dL_l/dy_l and what later losses add to it, made when look-ahead asks
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from engines.fusion import Fusion
from engines.heads import Head
from engines.objective import Objective
from engines.precision import Precision, Terms
from engines.unit import Gradients, Kept, TrainUnit


class LocalUnit:
    """A unit with its head.

    Args:
        index: Its place in the network.
        unit: What learns.
        head: Judges its activity.
        parameters: Of the network; the head's are named `heads.{index}.{name}` and moved by whoever
            gets the gradients.
        gradients: Where those go, under the same names.
        objective: The loss.
        precision: Arithmetic.
        fusion: Fuses the chains.
    """

    def __init__(
        self,
        index: int,
        unit: TrainUnit,
        head: Head,
        parameters: Mapping[str, Tensor],
        gradients: Gradients,
        objective: Objective,
        precision: Precision,
        fusion: Fusion,
    ) -> None:
        self.index = index
        self.unit = unit
        self.head_parameters = {
            name: parameters[f"heads.{index}.{name}"] for name in head.first_parameters()
        }
        self._head = head
        self._gradients = gradients
        self._objective = objective
        self._precision = precision
        self._judge = fusion.fuse(_judge)
        self._own_error = fusion.fuse(_own_error)
        self._error = fusion.fuse(_error)
        self._later_error = fusion.fuse(_later_error)
        self._grad_goodness: Tensor | None = None

    def judge(self, targets: Tensor, places: Tensor | None) -> float:
        """The own loss of what the unit has kept; the head's gradients are handed in.

        Args:
            targets: See `engines.rule.Batch`.
            places: Likewise.
        """
        loss, self._grad_goodness, learned = self._judge(
            self._precision,
            self._head,
            self._objective,
            self.unit.kept,
            self.head_parameters,
            targets,
            places,
        )
        self._gradients |= {f"heads.{self.index}.{name}": grad for name, grad in learned.items()}
        return loss.item()

    def own_error(self) -> Tensor:
        """See `engines.look_ahead.Chain.own_error`."""
        return self._own_error(
            self._precision, self._head, self._judged, self.unit.kept, self.head_parameters
        )

    def error(self, later: Terms, weight: float) -> Tensor:
        """See `engines.look_ahead.Chain.error`."""
        return self._error(
            self._precision,
            self._head,
            self._judged,
            self.unit.kept,
            self.head_parameters,
            later,
            self._judged.new_full((), weight),  # a number would have code of its own
        )

    @property
    def _judged(self) -> Tensor:
        if self._grad_goodness is None:
            raise RuntimeError("the unit has not been judged: judge comes first")
        return self._grad_goodness

    def later_error(self, later: Terms) -> Tensor:
        """See `engines.look_ahead.Chain.later_error`."""
        return self._later_error(self.unit.kept, later)


def _judge(
    precision: Precision,
    head: Head,
    objective: Objective,
    kept: Kept,
    parameters: Mapping[str, Tensor],
    targets: Tensor,
    places: Tensor | None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The unit's loss, its gradient at the goodness, and the head's gradients."""
    activity = kept.activity(precision)
    loss, grad = objective.loss(head.goodness(activity, parameters), targets, places)
    return loss, grad, head.grad_parameters(grad, activity)


def _own_error(
    precision: Precision,
    head: Head,
    grad_goodness: Tensor,
    kept: Kept,
    parameters: Mapping[str, Tensor],
) -> Tensor:
    return head.grad_activity(grad_goodness, kept.activity(precision), parameters)


def _error(
    precision: Precision,
    head: Head,
    grad_goodness: Tensor,
    kept: Kept,
    parameters: Mapping[str, Tensor],
    later: Terms,
    weight: Tensor,
) -> Tensor:
    own = _own_error(precision, head, grad_goodness, kept, parameters)
    return torch.addcmul(own, kept.error_at_activity(later), weight)


def _later_error(kept: Kept, later: Terms) -> Tensor:
    return kept.error_at_activity(later)
