"""A learner killed and resumed at random points knows, bit for bit, what one left alone does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.torture.resume import Digest, killed, never_stopped, prepare

# Blocks a kill: so that few kills come when all is learned.
_BLOCKS = 8


@pytest.mark.timeout(3000)
def test_a_killed_learner_ends_up_with_the_same_bits(
    zygote, tmp_path, size, seed, progress, record
):
    kills = size("--resume-kills")
    blocks = _BLOCKS * kills
    prepare(tmp_path / "home", blocks, seed)
    shutil.copytree(tmp_path / "home", tmp_path / "other")
    wanted = never_stopped(tmp_path / "other", blocks)
    found, resumed = killed(zygote, tmp_path / "home", blocks, kills, seed, progress=progress)
    record(resumed)
    assert resumed.broken == []
    assert resumed.total == kills
    assert resumed.early >= kills // 2
    assert wanted["checkpoint steps"] == 4 * blocks
    assert differing(wanted, found) == set()


def differing(wanted: Digest, found: Digest) -> set[str]:
    """What is not the same bits; how versions were judged is drawn anew at each start."""
    names = {name for name in wanted | found if wanted.get(name) != found.get(name)}
    return names - {"checkpoint scores.best", "checkpoint scores.forgetting"}


@pytest.fixture(scope="module")
def learned(zygote, tmp_path_factory) -> tuple[Path, Digest]:
    """A home in which nothing is learned, and what a learner there would know."""
    homes = tmp_path_factory.mktemp("homes")
    prepare(homes / "home", 12, 1)
    shutil.copytree(homes / "home", homes / "other")
    return homes / "home", killed(zygote, homes / "other", 12, 0, 1)[0]


@pytest.mark.parametrize(
    ("bug", "place"),
    [("forgets_steps", "unit"), ("forgets_moments", "unit"), ("writes_in_place", "half written")],
)
def test_a_learner_that_resumes_wrongly_is_caught(zygote, tmp_path, learned, bug, place):
    home, wanted = learned
    shutil.copytree(home, tmp_path / "home")
    found, resumed = killed(zygote, tmp_path / "home", 12, 2, 1, bug, places=[place])
    assert resumed.broken or found != wanted
