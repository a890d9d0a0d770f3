"""What a step's samples are to be learned as, looked at before anything is computed of it.

A row's *places* are the class places that its loss tells apart: those its softmax ranges over
(engines/objective.py), or those its wrong label is drawn from (engines/labels.py). Leaving some out
is how a burst of a few classes is kept from pushing down the others: Asymmetric Cross-Entropy
(ER-ACE: Caccia, Aljundi, Asadi, Tuytelaars, Pineau & Belilovsky 2022, arXiv 2104.05025, Eq. 3-4),
in which new samples are told apart from the classes of the new ones alone, and replayed samples
from all that were seen. Which places those are is the caller's business.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def check_targets(
    labels: NDArray[np.int64], places: NDArray[np.bool_] | None, *, samples: int, classes: int
) -> None:
    """Refuse labels and places that are no such.

    Args:
        labels: Wanted: int64 `[samples]` in [0, classes).
        places: Wanted: bool `[samples, classes]`, in each row the label's own among them; or None.
        samples: In the batch, of which it needs at least 1.
        classes: Class places of the model.

    Raises:
        ValueError: They are otherwise.
    """
    if samples == 0 or labels.shape != (samples,) or labels.dtype != np.int64:
        raise ValueError(
            f"labels are {labels.dtype} {[*labels.shape]}, wanted int64 [{samples}], at least 1"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels lie in {labels.min()}..{labels.max()}, wanted 0..{classes - 1}")
    if places is None:
        return
    if places.shape != (samples, classes) or places.dtype != np.bool_:
        raise ValueError(
            f"places are {places.dtype} {[*places.shape]}, wanted bool [{samples}, {classes}]"
        )
    own = places[np.arange(samples), labels]
    if not own.all():
        raise ValueError(
            f"the label's own place is left out in {samples - int(own.sum())} of {samples} rows; "
            "a row's own place is always among its places"
        )
