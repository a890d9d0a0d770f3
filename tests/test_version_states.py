"""States of versions: what a start falls back on, what is pruned, what an old manifest means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from daemon.serving import versions as versions_module
from daemon.serving.manifest import MOST_ATTEMPTS, Manifest, VersionEntry
from daemon.serving.versions import VersionStore
from tests.daemon_fixtures import network, put


def opened(folder: Path, keep: int = 5) -> tuple[VersionStore, int]:
    store = VersionStore(folder, keep=keep)
    return store, store.start(network).version


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "versions"


@pytest.fixture
def store(folder) -> VersionStore:
    return opened(folder)[0]


def accept(store: VersionStore, number: int, *, good: bool = False, best: bool = True) -> None:
    store.accept(put(store, network(number)), best=best)
    if good:
        store.change(store.manifest.passed(number))


def states(store: VersionStore) -> dict[int, str]:
    return {entry.version: entry.state for entry in store.manifest.versions}


def roles(store: VersionStore) -> tuple[int, int | None, int]:
    return store.manifest.active, store.manifest.previous, store.manifest.best


def test_a_candidate_is_pending_and_falls_back_on_the_newest_good_one(store):
    accept(store, 2, good=True)
    accept(store, 3)
    accept(store, 4)
    assert states(store) == {1: "good", 2: "good", 3: "replaced", 4: "pending"}
    assert roles(store) == (4, 2, 4)
    store.accept(put(store, network(5)), trials=[4])
    assert states(store) == {1: "good", 2: "good", 3: "replaced", 4: "pending", 5: "pending"}
    store.change(store.manifest.passed(4))  # it had been replaced before it had passed
    assert roles(store) == (5, 4, 5)


def test_three_crashed_starts_with_a_pending_version_and_the_one_before_it_serves(folder, store):
    accept(store, 2, good=True)
    accept(store, 3)
    for attempt in range(1, MOST_ATTEMPTS + 1):
        again, serving = opened(folder)
        assert serving == 3
        kept = json.loads((folder / "manifest.json").read_bytes())["versions"][-1]
        assert (kept["version"], kept["attempts"]) == (3, attempt)
    again, serving = opened(folder)
    assert (serving, again.crashed, states(again)[3]) == (2, 3, "bad")
    assert roles(again) == (2, 1, 2)
    assert again.manifest.retreat == again.manifest.changes == 1
    again, serving = opened(folder)  # that is told once
    assert (serving, again.crashed) == (2, None)


def test_a_start_is_counted_before_the_version_is_loaded(folder, store, monkeypatch):
    accept(store, 2)

    def dies(self, entry):
        raise KeyboardInterrupt

    monkeypatch.setattr(VersionStore, "load", dies)
    with pytest.raises(KeyboardInterrupt):
        opened(folder)
    (entry,) = json.loads((folder / "manifest.json").read_bytes())["versions"][1:]
    assert (entry["state"], entry["attempts"]) == ("pending", 1)


def test_a_good_version_is_not_counted(folder, store):
    accept(store, 2, good=True)
    before = (folder / "manifest.json").read_bytes()
    for _ in range(MOST_ATTEMPTS + 1):
        assert opened(folder)[1] == 2
    assert (folder / "manifest.json").read_bytes() == before


def test_a_crashing_version_with_nothing_good_behind_it_gives_way_to_untrained_weights(
    folder, store
):
    accept(store, 2)
    store.path(1).unlink()
    for _ in range(MOST_ATTEMPTS):
        assert opened(folder)[1] == 2
    again, serving = opened(folder)
    assert (serving, states(again)) == (3, {3: "good"})


def test_a_full_disk_at_the_start_does_not_keep_a_pending_version_from_serving(
    folder, store, monkeypatch, caplog
):
    accept(store, 2)

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(versions_module, "replace_file", disk_full)
    again, serving = opened(folder)
    assert (serving, again.manifest.entry(2).attempts) == (2, 1)
    assert "manifest cannot be written" in caplog.text
    monkeypatch.undo()
    again.write_again()
    assert opened(folder)[0].manifest.entry(2).attempts == 2


def test_a_damaged_pending_version_falls_back_on_good_ones_first(folder, store):
    accept(store, 2, good=True)
    accept(store, 3)
    accept(store, 4)
    store.path(4).write_bytes(b"")
    again, serving = opened(folder)
    assert (serving, again.crashed, again.manifest.retreat) == (2, None, 0)
    store.path(2).unlink()
    store.path(1).unlink()
    again, serving = opened(folder)
    assert serving == 3  # never proved, yet whole
    assert again.manifest.entry(3).attempts == 1


def test_a_bad_version_never_serves_by_itself(folder, store):
    accept(store, 2)
    store.change(store.manifest.rolled_back(1))
    store.path(1).unlink()
    again, serving = opened(folder)
    assert (serving, states(again)) == (3, {3: "good"})


def test_bad_versions_go_first_and_what_is_needed_never(store):
    accept(store, 2, good=True)
    accept(store, 3)
    store.change(store.manifest.rolled_back(2))
    accept(store, 4, good=True)
    accept(store, 5, best=False)
    accept(store, 6, best=False)  # best and newest good 4, active 6
    assert states(store) == {1: "good", 2: "good", 4: "good", 5: "replaced", 6: "pending"}
    accept(store, 7, best=False)
    assert states(store).keys() == {1, 2, 4, 6, 7}  # what never passed goes before good ones
    store.accept(put(store, network(8)), best=False, trials=[6])
    assert states(store).keys() == {1, 2, 4, 6, 8}
    store.accept(put(store, network(9)), best=False, trials=[6, 8])
    assert states(store).keys() == {2, 4, 6, 8, 9}
    assert roles(store) == (9, 4, 4)


def test_rolling_back_again_goes_further_back(store):
    for number in (2, 3, 4):
        accept(store, number, good=True)
    store.change(store.manifest.rolled_back(2))
    assert roles(store) == (2, 1, 2)
    store.change(store.manifest.rolled_back(1))
    assert roles(store) == (1, None, 1)
    assert states(store) == {1: "good", 2: "bad", 3: "bad", 4: "bad"}
    assert store.manifest.changes == store.manifest.retreat == 2


def test_what_is_activated_is_on_probation_unless_it_was_good(store):
    accept(store, 2, good=True)
    accept(store, 3)
    store.change(store.manifest.rolled_back(2))
    store.change(store.manifest.activated(3))
    assert (states(store)[3], roles(store)) == ("pending", (3, 2, 2))
    store.change(store.manifest.activated(1))
    assert (states(store)[1], roles(store)) == ("good", (1, 2, 2))
    store.change(store.manifest.activated(2))
    assert roles(store) == (2, 1, 2)


def test_one_that_failed_after_it_was_replaced_is_bad_and_not_the_best(store):
    accept(store, 2)
    accept(store, 3, best=False)
    store.change(store.manifest.failed(2))
    assert (states(store)[2], roles(store)) == ("bad", (3, 1, 3))


def test_a_manifest_of_the_release_before_loads_and_all_in_it_is_good(folder, store):
    accept(store, 2)
    new = json.loads((folder / "manifest.json").read_bytes())
    entries = [
        {name: value for name, value in entry.items() if name not in ("state", "attempts")}
        for entry in new["versions"]
    ]
    old = {name: new[name] for name in ("active", "previous", "best", "last")}
    (folder / "manifest.json").write_text(json.dumps(old | {"versions": entries}))
    again, serving = opened(folder)
    assert (serving, states(again)) == (2, {1: "good", 2: "good"})
    assert (again.manifest.changes, again.manifest.retreat) == (0, 0)


def test_a_rollback_goes_to_good_versions_and_only_without_any_to_what_was_not_found_bad():
    states = {1: "good", 2: "bad", 3: "replaced", 4: "pending", 5: "good"}
    entries = [VersionEntry(n, "", "", None, 0, state) for n, state in states.items()]
    manifest = Manifest(4, 1, 4, 5, entries)
    assert [entry.version for entry in manifest.rollback_targets()] == [1]
    without = Manifest(4, None, 4, 5, entries[1:])
    assert [entry.version for entry in without.rollback_targets()] == [3]
    back = without.rolled_back(3)
    assert (back.previous, back.entry(3).state) == (None, "pending")


def test_after_a_start_without_the_active_version_a_good_one_is_still_the_previous(folder, store):
    accept(store, 2, good=True)
    accept(store, 3, good=True)
    store.path(3).write_bytes(b"")
    store.path(2).rename(folder / "aside")
    store.path(2).mkdir()  # cannot be read now, and may be whole
    again, serving = opened(folder)
    assert (serving, again.manifest.previous) == (1, 2)


def test_a_start_goes_on_with_what_was_on_probation(folder, store):
    accept(store, 2)
    store.accept(put(store, network(3)), trials=[2])
    assert states(store) == {1: "good", 2: "pending", 3: "pending"}
    again, serving = opened(folder)
    assert (serving, states(again)) == (3, {1: "good", 2: "pending", 3: "pending"})
    again.path(3).unlink()
    again.path(1).unlink()
    again, serving = opened(folder)  # it may serve where nothing else does, and is tried again
    assert (serving, states(again)) == (2, {1: "good", 2: "pending", 3: "replaced"})
    assert again.manifest.entry(2).attempts == 1


def test_fallbacks_begin_with_the_previous_one():
    entries = [VersionEntry(n, "", "", None, 0) for n in (1, 2, 3, 4)]
    manifest = Manifest(4, 2, 4, 4, entries)
    assert [entry.version for entry in manifest.fallbacks()] == [2, 3, 1]
