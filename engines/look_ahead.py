"""Look-ahead: a unit's update also counts what it does to the losses of the units after it.

    L_new = L_l + lambda * (L_{l+1} + ... + L_K)                                             (Eq. 3)
    dL_new/dW_l = dL_l/dW_l + lambda * d(L_{l+1} + ... + L_K)/dW_l                           (Eq. 4)

(FF-INT8, arXiv 2506.22771v1.) The paper can be read in more than one way: its text says that no
chain through later layers is built, but with the later losses held constant Eq. 4 has no effect at
all. Reading taken here: Eq. 3-4 as they stand, with true gradients through the later units.

Let `d_l = dL_l/dy_l` be the own error of unit l, `J_l = dy_l/dy_{l-1}` its Jacobian with whatever
joins the two units, and `r_l` what the later losses send back to `y_l`, `r_K = 0`. Then

    e_l     = d_l + lambda * r_l            the error that W_l is updated from
    r_{l-1} = J_l^T (d_l + delta * r_l)     the error that is carried back

Two forms. `exact`, delta = 1: every later loss weighs lambda, Eq. 3-4 as they stand. The update
uses lambda and the sweep does not, so a unit between the first and the last needs two errors,
unless lambda = 1, which is back-propagation of the sum of the losses. `discounted`, delta = lambda:
the losses weigh lambda, lambda^2, ... with their distance. One error a unit, and the rounding noise
of far units is damped when lambda < 1.

Two reaches. All later units: one reverse sweep after the forward pass. `window` H, the next H units
only, in either form, during the forward pass. Each own error is carried back H units as soon as it
exists; a unit is updated, and lets its activations go, once H units have run after it. H = 0
is layer-local learning.

What a step costs, in P, the multiplications of one forward pass, and in units whose activations are
alive at once:

    reach              input gradients per unit     multiplications     units alive
    H = 0              0                            2 P                 1
    H                  H                            (2 + H) P           H + 1
    all                1                            3 P                 K

(K - 1 in place of K input gradients, since nothing is carried beyond the first unit.) A unit of
several layers needs its inner input gradients besides, once for every error that goes through it:
where the errors of update and sweep differ it pays them twice, and under a window H + 1 times.

lambda = 0 carries nothing back in either form, costs 2 P, and makes every window one of H = 0. This
module knows neither INT8 nor goodness: it is given functions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Schedule = Callable[[float], float]


# What a unit passes back. Only the unit before it, which joins the two, knows what it is.
Passed = TypeVar("Passed")
_Passed = TypeVar("_Passed", covariant=True)


class Backward(Protocol[_Passed]):
    """An error's way back through one unit."""

    def __call__(
        self, unit: int, error: Tensor, /, *, update: bool, propagate: bool
    ) -> _Passed | None:
        """Back-propagate through unit l.

        Args:
            unit: l, from 0.
            error: At the unit's activity, float32 of its shape; its memory is the unit's from then
                on.
            update: Change the unit's weights by `error`, after all that needs the old ones.
            propagate: Return what `error` is at the unit's input, good until the next pass of any
                unit, forward or backward; never asked of unit 0.
        """


@dataclass(frozen=True)
class Chain(Generic[Passed]):
    """The units of one training step, as functions of a unit's index l from 0.

    Args:
        units: K.
        own_error: `l -> d_l`, float32 of the shape of unit l's activity, in memory of its own.
        error: `l, passed, w -> d_l + w r_l`, likewise; `passed` is what unit l + 1 passed back, and
            `r_l` what that is at the activity of unit l.
        later_error: `l, passed -> r_l`, likewise.
        copied: What was passed back, in memory of its own: good for the whole step.
        backward: See `Backward`. Each unit is updated once, after every error that its old weights
            have to carry, and its activations are not needed any more.
    """

    units: int
    own_error: Callable[[int], Tensor]
    error: Callable[[int, Passed, float], Tensor]
    later_error: Callable[[int, Passed], Tensor]
    copied: Callable[[Passed], Passed]
    backward: Backward[Passed]

    def carry_back(self, unit: int, error: Tensor, *, update: bool = False) -> Passed:
        """What `error` is at unit l's input, with the unit's update where asked.

        Raises:
            TypeError: `backward` returned nothing.
        """
        carried = self.backward(unit, error, update=update, propagate=True)
        if carried is None:
            raise TypeError(f"unit {unit} was asked to propagate its error and returned none")
        return carried

    def update(self, unit: int, error: Tensor) -> None:
        """Change unit l's weights by `error`, carrying nothing further."""
        self.backward(unit, error, update=True, propagate=False)


class LookAheadStep(ABC):
    """One training step. The trainer calls `after_forward` of each unit in order, then `finish`."""

    @abstractmethod
    def after_forward(self, unit: int) -> None:
        """Unit l has run and knows its loss."""

    @abstractmethod
    def finish(self) -> None:
        """All units have run: those that were not updated yet are."""


@dataclass(frozen=True)
class LookAhead:
    """Which later losses count, and how much.

    Args:
        form: `exact`: lambda each, as Eq. 3 has it; `discounted`: lambda to the power of the
            distance.
        window: H, how many later units are looked ahead to; None: all.

    Raises:
        ValueError: The form is unknown or the window negative.
    """

    form: Literal["exact", "discounted"] = "exact"
    window: int | None = None

    def __post_init__(self) -> None:
        if self.form not in ("exact", "discounted"):
            raise ValueError(f"look-ahead form {self.form!r} is unknown: exact or discounted")
        if self.window is not None and self.window < 0:
            raise ValueError(f"look-ahead window is {self.window}; wanted 0 or more units")

    def step(self, chain: Chain[Passed], weight: float) -> LookAheadStep:
        """What drives one training step.

        A window over all units runs as the full sweep, which is the same and cheaper: carried back
        one by one, the K errors take K (K - 1) / 2 passes instead of K - 1.

        Args:
            chain: The units.
            weight: lambda >= 0.
        """
        discount = weight if self.form == "discounted" else 1.0
        if self.window is None or self.window >= chain.units - 1:
            return FullLookAhead(chain, weight, discount)
        return WindowedLookAhead(chain, weight, discount, self.window)


class FullLookAhead(LookAheadStep, Generic[Passed]):
    """All later losses, in one reverse sweep when the forward pass is over.

    A unit is updated only after the sweep has passed through its old weights, so the result is that
    of updating all units at once, with one unit's gradient alive at a time.

    Args:
        chain: The units.
        weight: lambda.
        discount: delta.
    """

    def __init__(self, chain: Chain[Passed], weight: float, discount: float) -> None:
        self._chain, self._weight, self._discount = chain, weight, discount

    def after_forward(self, unit: int) -> None:
        """Nothing: the sweep begins at the last unit."""

    def finish(self) -> None:
        """Sweep from the last unit to the first."""
        chain, weight = self._chain, self._weight
        passed: Passed | None = None
        for unit in reversed(range(chain.units)):
            if unit == 0 or weight == 0:
                chain.update(unit, self._error(unit, passed, weight))
                continue
            # One error serves update and sweep where they agree, and where there is no later one.
            one = passed is None or weight == self._discount
            error = None if one else self._error(unit, passed, weight)
            carried = self._error(unit, passed, self._discount)
            passed = None  # and its memory is free for the unit
            passed = chain.carry_back(unit, carried, update=one)
            del carried
            if error is not None:
                passed = chain.copied(passed)
                chain.update(unit, error)

    def _error(self, unit: int, passed: Passed | None, weight: float) -> Tensor:
        if passed is None:
            return self._chain.own_error(unit)
        return self._chain.error(unit, passed, weight)


class WindowedLookAhead(LookAheadStep, Generic[Passed]):
    """The losses of the next H units, during the forward pass.

    What adds up is errors, not weight gradients, so each unit has one weight gradient. Unit m is
    updated when unit m + H has run and its error has come back as far as m, through units m + 1 and
    later: no error meets changed weights, and the result is that of updating all units at once.

    Args:
        chain: The units.
        weight: lambda.
        discount: delta.
        window: H.
    """

    def __init__(self, chain: Chain[Passed], weight: float, discount: float, window: int) -> None:
        self._chain, self._weight, self._discount = chain, weight, discount
        self._window = window if weight > 0 else 0  # nothing to wait for
        self._errors: dict[int, Tensor] = {}  # e_l so far, of the units that wait

    def after_forward(self, unit: int) -> None:
        """Carry unit l's own error back through its window; update the unit that leaves it."""
        chain, weight = self._chain, self._weight
        carried = chain.own_error(unit)
        # A unit that is given an error to carry may write over it.
        self._errors[unit] = carried.clone() if self._window and unit else carried
        for above in range(unit, max(0, unit - self._window), -1):
            carried = chain.later_error(above - 1, chain.carry_back(above, carried))
            self._errors[above - 1].add_(carried, alpha=weight)
            weight *= self._discount
        if unit >= self._window:
            self._update(unit - self._window)

    def finish(self) -> None:
        """Update the last H units."""
        for unit in sorted(self._errors):
            self._update(unit)

    def _update(self, unit: int) -> None:
        self._chain.update(unit, self._errors.pop(unit))


# --- schedules: training progress, 0 at the start and 1 at the end, to lambda --------------------


def constant_schedule(weight: float) -> Schedule:
    """The same lambda throughout: on a stream, the value that training ended with."""
    return lambda progress: weight


def linear_schedule(first: float, last: float) -> Schedule:
    """From `first` to `last`."""
    return lambda progress: first + (last - first) * progress


def ramp_schedule(last: float, until: float = 0.3) -> Schedule:
    """From 0 to `last` at progress `until`, and constant from there."""
    return lambda progress: last * min(1.0, progress / until)


def paper_schedule(epochs: int, step: float = 0.001) -> Schedule:
    """`step` times the epochs done, of `epochs` in all: 0 at first.

    The paper raises lambda between epochs (FF-INT8, arXiv 2506.22771v1, Algorithm 1 lines 2 and
    11): ask once an epoch for the same.
    """
    return linear_schedule(0.0, step * epochs)
