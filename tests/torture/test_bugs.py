"""R23: every seeded bug is caught by the harness that is meant for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.torture import filesystems, shim
from tests.torture.bad_bodies import SHAPE
from tests.torture.bugs import BUGS
from tests.torture.clock import SETTINGS, jump
from tests.torture.crash_states import draw_states
from tests.torture.damage import damage_log, flip_rows
from tests.torture.filesystems import mounted
from tests.torture.io_errors import FailurePoints
from tests.torture.killing import kill_under_load
from tests.torture.learner_kills import KILL, STOP, harm_learner
from tests.torture.overload import overload
from tests.torture.posting_bad import post_bad_bodies
from tests.torture.power_cut import cut_daemon, cut_replacement, cut_store
from tests.torture.processes import ForkedDaemon, Zygote
from tests.torture.shim import Shim
from tests.torture.swaps import swap_under_load
from tests.torture.version_life import kill_at_each_step


@dataclass
class Rig:
    """What a harness may need."""

    zygote: Zygote
    shim: Shim | None
    folder: Path
    bug: str

    @property
    def bugs(self) -> list[str]:
        return [self.bug]


def killed(rig: Rig) -> list[str]:
    daemon = ForkedDaemon(rig.zygote, rig.folder / "home", *rig.bugs)
    return kill_under_load(daemon, rig.folder / "ledger", 8, 1, longest=0.4).broken


def cut(rig: Rig) -> list[str]:
    with mounted("ext4", rig.folder) as disk:
        return cut_store(rig.zygote, disk, rig.folder, 10, 1, rig.bugs).broken


def cut_with_clients(rig: Rig) -> list[str]:
    with mounted("ext4", rig.folder) as disk:
        return cut_daemon(rig.zygote, disk, rig.folder, 4, 1, rig.bugs).broken


def replaced(rig: Rig) -> list[str]:
    with mounted("ext4", rig.folder) as disk:
        return cut_replacement(rig.zygote, disk, rig.folder, 10, 1, rig.bugs).broken


def failing(rig: Rig) -> list[str]:
    """Every sync of a life, the last one first: these are what can be retried wrongly."""
    assert rig.shim is not None
    with mounted("ext4", rig.folder) as disk:
        lives = FailurePoints(rig.zygote, rig.shim, rig.folder, disk, rig.bugs)
        return lives.move(lives.syncs[::-1], ["fail once"], until_broken=True).broken


def crashed(rig: Rig) -> list[str]:
    assert rig.shim is not None
    return draw_states(rig.zygote, rig.shim, rig.folder, 40, 1, rig.bugs).broken


def damaged(rig: Rig) -> list[str]:
    return damage_log(rig.zygote, rig.folder, 2, 1, rig.bugs).broken


def flipped(rig: Rig) -> list[str]:
    return flip_rows(rig.zygote, rig.folder, 20, 1, rig.bugs).broken


def jumping(rig: Rig) -> list[str]:
    assert rig.shim is not None
    return jump(rig.zygote, rig.shim, rig.folder, 6, rig.bugs, **SETTINGS).broken


def overloaded(rig: Rig) -> list[str]:
    assert rig.shim is not None
    return overload(rig.zygote, rig.shim, rig.folder, 1.0, rig.bugs).broken


def wrong(rig: Rig) -> list[str]:
    shape = [*SHAPE]
    with ForkedDaemon(rig.zygote, rig.folder, *rig.bugs, model__input_shape=shape) as daemon:
        return post_bad_bodies(daemon, 1, 100).broken


def swapped(rig: Rig) -> list[str]:
    return swap_under_load(rig.zygote, rig.folder, 100, 1, rig.bugs, pause_seconds=0.0).broken


def living(rig: Rig) -> list[str]:
    assert rig.shim is not None
    return kill_at_each_step(rig.zygote, rig.shim, rig.folder, 2, rig.bugs).broken


def harmed(rig: Rig) -> list[str]:
    fault = STOP if rig.bug == "no_watch" else KILL
    return harm_learner(rig.folder, [fault], 1, bugs=rig.bugs, patience=6.0).broken


CAUGHT_BY: list[tuple[str, Callable[[Rig], list[str]], str]] = [
    ("ack_before_commit", killed, "lost"),
    ("ack_before_commit", cut, "lost"),
    ("synchronous_normal", cut, "lost"),
    ("synchronous_normal", crashed, "lost"),
    ("synchronous_normal", cut_with_clients, "lost"),
    ("ack_after_failed_commit", failing, "lost"),
    ("go_on_after_error", failing, "lost"),
    ("no_truncate_on_opening", failing, "lost"),
    ("no_idempotency", killed, "twice"),
    ("no_row_check", flipped, "as if it were whole"),
    ("no_mark", damaged, "ffedge_samples_lost says"),
    ("wall_clock_age", jumping, "kept"),
    ("unbounded_queue", overloaded, "waited"),
    ("echo_of_input", wrong, "repeats"),
    ("write_in_place", living, "nothing serves"),
    ("two_references", swapped, "torn"),
    ("swap_in_place", swapped, "torn"),
    ("no_file_sync", replaced, "not there whole"),
    ("no_folder_sync", replaced, "not there whole"),
    ("write_in_place", replaced, "not there whole"),
    ("no_restart", harmed, "another learner"),
    ("no_watch", harmed, "an end by SIGSTOP"),
]


@pytest.mark.parametrize(("bug", "harness", "says"), CAUGHT_BY)
def test_a_seeded_bug_is_caught(zygote, preloaded, tmp_path, bug, harness, says):
    if harness in (cut, cut_with_clients, replaced, failing):
        _skip(filesystems.missing("ext4"))
    if harness in (crashed, failing, jumping, overloaded, living):
        _skip(shim.missing())
    broken = harness(Rig(zygote, preloaded, tmp_path, bug))
    assert any(says in text for text in broken), f"{bug} passed unseen: {broken}"


def test_every_bug_has_a_harness():
    assert {bug for bug, *_ in CAUGHT_BY} == BUGS.keys()


def _skip(reason: str | None) -> None:
    if reason is not None:
        pytest.skip(reason)
