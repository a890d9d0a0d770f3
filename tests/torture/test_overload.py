"""R12 and R10, small: too much is refused early, and wrong input clearly."""

from __future__ import annotations

from tests.torture.bad_input import WRONG, post_wrong
from tests.torture.overload import overload


def test_overload_is_refused_and_bounded(zygote, fault_shim, tmp_path, record):
    result = overload(zygote, fault_shim, tmp_path, seconds=2.0)
    record(result)
    assert result.broken == []
    assert result.acknowledged > 20


def test_wrong_bodies_get_one_clear_error_that_repeats_nothing(zygote, tmp_path, record):
    refused = post_wrong(zygote, tmp_path)
    record(refused)
    assert refused.broken == []
    assert refused.bodies == len(WRONG)
