"""Whether rows come sorted by label, which a learner that hears of them one by one cannot mend."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise

from daemon.datasets import Dataset, Row
from daemon.datasets.image_folder import ImageFolder

_LOOKED_AT = 1000
_FEWEST = 50
# Of the changes that a shuffled file would have.
_SORTED_RATIO = 0.1


def order_note(dataset: Dataset) -> str | None:
    """A warning where the first rows look sorted by label; None: they do not.

    Raises:
        DataError: They cannot be read.
    """
    if isinstance(dataset, ImageFolder):  # comes shuffled
        return None
    seen = islice(dataset.rows(), _LOOKED_AT)
    labels = [row.label for row in seen if isinstance(row, Row) and row.label is not None]
    rows = len(labels)
    if rows < _FEWEST:
        return None
    # Two rows of a shuffled file differ with the chance that two drawn rows do.
    alike = sum(count**2 for count in Counter(labels).values()) / rows**2
    changes = sum(before != after for before, after in pairwise(labels))
    if alike == 1 and rows < _LOOKED_AT:  # a file of one class, read to its end
        return None
    if changes > _SORTED_RATIO * (1 - alike) * rows:
        return None
    return (
        f"the first {rows:,} rows come sorted by label: learnt in this order the first classes are "
        "forgotten; shuffle the file, then import it"
    )
