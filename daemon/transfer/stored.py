"""Which rows of an export the daemon has already, under an id that it made up itself.

Such an id (`s-17`) cannot be sent: in another store it is another sample. So the daemon is asked,
page by page in the order of the export, and a row counts as there when id and features are the
same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.datasets import Row
from daemon.errors import TransferError
from daemon.transfer.client import Client

_PAGE_SAMPLES = 500


class StoredSamples:
    """The samples of a daemon, asked for where they are needed; used from one thread at a time.

    Args:
        client: To it, used by nobody else.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._after = self._last = 0
        self._page: dict[str, NDArray[np.float32]] = {}

    def has(self, row: Row) -> bool:
        """Whether this is one of them; `row.x` has the model's shape.

        Raises:
            TransferError: The daemon does not say.
        """
        if row.stored is None:
            return False
        own_id, seq = row.stored
        if not self._after < seq <= self._last:
            self._turn_to(seq)
        x = self._page.get(own_id)
        return x is not None and np.array_equal(x, row.x.ravel())

    def _turn_to(self, seq: int) -> None:
        answer = self._client.get(
            "/samples", after_seq=seq - 1, limit=_PAGE_SAMPLES, features="true"
        )
        if answer.status != 200:
            why = answer.body.get("error", answer.status)
            raise TransferError(f"the daemon refuses to list its samples: {why}")
        found: list[dict[str, Any]] = answer.body["samples"]
        self._page = {entry["id"]: np.array(entry["x"], dtype=np.float32) for entry in found}
        # Behind the last sample there is nothing, however far.
        self._after, self._last = seq - 1, max(seq, answer.body["next_after_seq"])
