"""What candidates are compared with: what serves, the best so far, the newest good."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.learning.references import References
from daemon.messages import Begin, Named, Passed, Serves
from daemon.serving.gate import Scores
from daemon.serving.versions import VersionStore
from engines import WeightsError, weights_digest, weights_to_bytes
from tests.test_holdout import version

BETTER, WORSE = Scores(10, 5, 6, 7), Scores(10, 5, 6, 5)


class Kept:
    """Version files 1 to 4, as the server names them."""

    def __init__(self, folder: Path) -> None:
        self.store = VersionStore(folder, keep=5)
        self.weights = {number: version(number, "a") for number in (1, 2, 3, 4)}
        for number, weights in self.weights.items():
            self.store.path(number).parent.mkdir(exist_ok=True)
            self.store.path(number).write_bytes(weights_to_bytes(weights))

    def __getitem__(self, number: int) -> Named:
        return number, weights_digest(self.weights[number])


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "versions")


def numbers(references: References) -> tuple[int, list[int]]:
    return references.incumbent.version, [weights.version for weights in references.others]


def begun(kept: Kept) -> References:
    references = References(kept.store)
    references.follow(Begin(kept[3], kept[2], 4, newest_good=kept[1]))
    return references


def test_they_are_what_the_server_says(kept: Kept) -> None:
    references = begun(kept)
    assert numbers(references) == (3, [2, 1])
    references.follow(Serves(kept[1], True, kept[1], 1, newest_good=None))
    assert numbers(references) == (1, [1])


def test_a_version_that_passes_is_the_newest_good(kept: Kept) -> None:
    references = begun(kept)
    references.passed(Passed(kept[3]))
    assert numbers(references) == (3, [2, 3])


def test_an_older_version_that_passes_later_is_not_the_newest_good(kept: Kept) -> None:
    """One passes by the time that it has served, then one that it replaced by samples."""
    references = begun(kept)
    references.passed(Passed(kept[3]))
    references.passed(Passed(kept[2]))
    assert numbers(references) == (3, [2, 3])


@pytest.mark.parametrize(("scores", "best"), [(BETTER, 4), (WORSE, 2)])
def test_a_candidate_that_is_accepted_serves_and_may_be_the_best(
    kept: Kept, scores: Scores, best: int
) -> None:
    references = begun(kept)
    references.accepted(kept.weights[4], scores)
    assert numbers(references) == (4, [best, 1])


def test_one_that_cannot_be_read_is_left_out(kept: Kept) -> None:
    kept.store.path(2).unlink()
    assert numbers(begun(kept)) == (3, [1])
    kept.store.path(1).write_bytes(b"damaged")
    references = begun(kept)
    assert numbers(references) == (3, [3])
    references.passed(Passed(kept[2]))
    assert numbers(references) == (3, [3])


def test_without_what_serves_there_is_nothing_to_compare_with(kept: Kept) -> None:
    kept.store.path(3).write_bytes(b"damaged")
    with pytest.raises(WeightsError):
        begun(kept)
