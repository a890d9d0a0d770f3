"""The tree at the top of daemon/errors.py is the whole truth about what a client can be told."""

from __future__ import annotations

import re

import pytest

from daemon import errors
from daemon.errors import (
    AllRefusedError,
    FfedgeError,
    KeyInUseError,
    RequestError,
    StoreUnavailableError,
)

CLASSES = [value for value in vars(errors).values() if isinstance(value, type)]
LEAVES = [kind for kind in RequestError.__subclasses__() if kind.__module__ == errors.__name__]


def test_the_drawn_tree_is_the_tree():
    drawn: dict[str, tuple[str | None, int | None]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^ {4}([│├└─ ]*)(\w+Error)\b *(\d{3})?", line)
        if not found:
            continue
        branch, name, status = found.groups()
        path[len(branch) // 4 :] = [name]
        drawn[name] = (path[-2] if len(path) > 1 else None, int(status) if status else None)
    exist = {
        kind.__name__: (
            None if kind is FfedgeError else kind.__base__.__name__,
            getattr(kind, "status", None),
        )
        for kind in CLASSES
        if issubclass(kind, FfedgeError)
    }
    assert drawn == exist


def test_nothing_but_the_tree_is_in_the_file():
    assert all(
        issubclass(kind, FfedgeError) for kind in CLASSES if kind.__module__ == "daemon.errors"
    )
    assert not [kind for leaf in LEAVES for kind in leaf.__subclasses__()]


@pytest.mark.parametrize("kind", LEAVES)
def test_every_leaf_has_a_status_a_code_and_a_retry_where_one_helps(kind):
    assert 400 <= kind.status < 500 or kind.status == 503
    assert re.fullmatch("[a-z]+(_[a-z]+)*", kind.code)
    worth_a_retry = kind.status in (429, 503) or kind is KeyInUseError
    assert (kind.retry_after_seconds is not None) == worth_a_retry


def test_codes_are_unique():
    assert len({kind.code for kind in LEAVES}) == len(LEAVES)


@pytest.mark.parametrize(
    "kind", [kind for kind in LEAVES if kind not in (AllRefusedError, StoreUnavailableError)]
)
def test_the_body_has_the_field_only_where_there_is_one(kind):
    assert kind("what, wanted, do").body() == {"error": "what, wanted, do", "code": kind.code}
    assert kind("what", field="x").body() == {"error": "what", "code": kind.code, "field": "x"}


def test_a_batch_of_which_nothing_was_accepted_says_why_one_by_one():
    rejected = [{"index": 0, "error": "a", "code": "bad_field"}]
    error = AllRefusedError(rejected)
    assert error.body() == {
        "error": "all 1 samples were refused; see 'rejected'",
        "code": "all_refused",
        "rejected": rejected,
    }


def test_a_store_that_takes_nothing_names_the_cause():
    assert StoreUnavailableError("full", "the disk is full").body() == {
        "error": "the store takes nothing now (the disk is full); predictions go on",
        "code": "store_unavailable",
        "cause": "full",
    }
