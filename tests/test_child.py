"""A learner whose server is gone before it can ask the kernel to be told of that."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.daemon_fixtures import WAIT_SECONDS

SCRIPT = "from daemon.supervision.child import end_with_parent; end_with_parent(); print('on')"


@pytest.mark.parametrize(("gone", "said"), [(True, b""), (False, b"on\n")])
def test_it_ends_where_nobody_can_say_anything_to_it_any_more(gone, said):
    ours, theirs = os.pipe()
    os.write(theirs, b"what it was told before\n")
    if gone:
        os.close(theirs)
    try:
        child = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            stdin=ours,
            capture_output=True,
            timeout=WAIT_SECONDS,
            check=True,
        )
    finally:
        os.close(ours)
        if not gone:
            os.close(theirs)
    assert child.stdout == said
