"""Only whole versions serve, whatever happened to the files, and no number is given twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from daemon.serving import versions as versions_module
from daemon.serving.manifest import VersionEntry
from daemon.serving.versions import VersionStore
from engines import Weights, WeightsError, weights_digest, weights_to_bytes
from tests.daemon_fixtures import network, put


def opened(folder: Path, keep: int = 3) -> tuple[VersionStore, Weights]:
    store = VersionStore(folder, keep=keep)
    return store, store.start(network)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "versions"


@pytest.fixture
def store(folder) -> VersionStore:
    return opened(folder)[0]


def prove(store: VersionStore, *weights: Weights) -> None:
    """Accepted, one after the other, and each found good."""
    for each in weights:
        store.accept(put(store, each))
        store.change(store.manifest.passed(each.version))


def numbers(store: VersionStore) -> list[int]:
    return [entry.version for entry in store.manifest.versions]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def disk_full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def same(a: Weights, b: Weights) -> bool:
    return weights_digest(a) == weights_digest(b)


def test_it_starts_untrained(folder):
    store, weights = opened(folder)
    assert same(weights, network(1))
    assert (store.manifest.active, store.manifest.previous, store.manifest.last) == (1, None, 1)
    (entry,) = store.manifest.versions
    assert (entry.version, entry.parent, entry.last_seq) == (1, None, 0)
    assert entry.sha256 == weights_digest(weights)
    assert entry.created.endswith("Z")
    assert files(folder) == ["1.safetensors", "manifest.json"]


def test_what_was_accepted_serves_after_a_restart(folder, store):
    prove(store, network(2))
    assert (store.manifest.active, store.manifest.previous) == (2, 1)
    again, weights = opened(folder)
    assert same(weights, network(2))
    assert again.manifest == store.manifest


def test_a_refused_candidate_is_gone_and_its_number_used_up(folder, store):
    put(store, network(2))
    store.refuse(2)
    assert files(folder) == ["1.safetensors", "manifest.json"]
    assert (store.manifest.active, store.manifest.last, numbers(store)) == (1, 2, [1])
    again, weights = opened(folder)
    assert (weights.version, again.manifest.last) == (1, 2)
    again.accept(put(again, network(3)))
    again.refuse(2)  # a late verdict on an old number takes none back
    assert again.manifest.last == 3


def test_a_candidate_that_left_no_file_can_be_refused(store):
    store.refuse(2)
    assert store.manifest.last == 2


def test_only_the_newest_are_kept(folder, store):
    prove(store, *map(network, range(2, 8)))
    assert numbers(store) == [5, 6, 7]
    assert files(folder) == [f"{n}.safetensors" for n in (5, 6, 7)] + ["manifest.json"]
    assert opened(folder)[1].version == 7


def test_active_and_previous_stay_even_when_they_are_the_oldest(folder, store):
    prove(store, network(2), network(3))
    for number in (2, 3):
        flip(store.path(number))
    again, weights = opened(folder)
    assert weights.version == 1
    again.accept(put(again, network(4)))
    assert (numbers(again), again.manifest.previous) == ([1, 4], 1)
    assert files(folder) == [f"{n}.safetensors" for n in (1, 4)] + ["manifest.json"]
    assert opened(folder, keep=2)[1].version == 4


def test_a_file_that_cannot_be_pruned_does_not_undo_what_was_accepted(folder, store, monkeypatch):
    prove(store, network(2), network(3))
    monkeypatch.setattr(Path, "unlink", disk_full)
    store.accept(put(store, network(4)))
    assert (store.manifest.active, numbers(store)) == (4, [2, 3, 4])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "flipped": flip,
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "another version's": lambda path: path.write_bytes(weights_to_bytes(network(1))),
    "other weights of its number": lambda path: path.write_bytes(
        weights_to_bytes(network(int(path.stem), seed=9))
    ),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_active_version_falls_back_to_the_newest_whole_one(folder, store, damage, caplog):
    prove(store, network(2), network(3))
    damage(store.path(3))
    again, weights = opened(folder)
    assert same(weights, network(2))
    assert (again.manifest.active, again.manifest.last) == (2, 3)
    assert [r.version for r in caplog.records if r.message == "version cannot serve"] == [3]
    # It stays so after another restart, and the number is not given again.
    assert opened(folder)[1].version == 2


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_with_no_whole_version_left_it_starts_untrained_under_a_new_number(folder, store, damage):
    prove(store, network(2), network(3))
    for number in (2, 3):
        damage(store.path(number))
    store.path(1).unlink()
    again, weights = opened(folder)
    assert same(weights, network(4))
    assert (again.manifest.active, again.manifest.last, numbers(again)) == (4, 4, [4])


def rewritten(folder: Path, **changes) -> bytes:
    return json.dumps(json.loads((folder / "manifest.json").read_bytes()) | changes).encode()


@pytest.mark.parametrize(
    "content",
    [
        lambda folder: b"",
        lambda folder: (folder / "manifest.json").read_bytes()[:-3],
        lambda folder: b"\xff" * 100,
        lambda folder: b"[]",
        lambda folder: rewritten(folder, active="1"),
        lambda folder: rewritten(folder, more=1),
        lambda folder: rewritten(folder, versions=[{}]),
    ],
    ids=["empty", "cut", "bytes", "list", "text for a number", "unknown field", "no entry"],
)
def test_a_damaged_manifest_is_one_clear_error_and_nothing_is_touched(folder, store, content):
    store.accept(put(store, network(2)))
    (folder / "manifest.json").write_bytes(content(folder))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(WeightsError, match=r"manifest\.json is damaged .* move the folder .* away"):
        opened(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_candidate_without_its_manifest_does_not_exist(folder, store):
    put(store, network(2, seed=5))
    again, weights = opened(folder)
    assert (weights.version, again.manifest.last) == (1, 1)
    again.accept(put(again, network(2)))
    assert same(opened(folder)[1], network(2))


@pytest.mark.parametrize("act", ["accept", "refuse"])
def test_a_manifest_that_cannot_be_written_changes_nothing(folder, store, act, monkeypatch):
    candidate = put(store, network(2))
    before = store.manifest
    monkeypatch.setattr(versions_module, "replace_file", disk_full)
    with pytest.raises(OSError, match="No space left"):
        store.accept(candidate) if act == "accept" else store.refuse(2)
    assert store.manifest == before
    monkeypatch.undo()
    assert opened(folder)[1].version == 1
    store.accept(candidate)
    assert opened(folder)[1].version == 2


def test_a_fall_back_serves_where_it_cannot_be_written_down(folder, store, monkeypatch, caplog):
    prove(store, network(2), network(3))
    store.path(3).write_bytes(b"")
    monkeypatch.setattr(versions_module, "replace_file", disk_full)
    for _ in range(2):
        again, weights = opened(folder)
        assert same(weights, network(2))
        assert again.manifest.active == 2
    assert "manifest cannot be written" in caplog.text


def test_a_first_start_that_stopped_half_way_starts_over(folder):
    folder.mkdir()
    (folder / "1.safetensors").write_bytes(b"half")
    assert same(opened(folder)[1], network(1))


def test_verify_wants_the_number_and_the_digest(store):
    candidate = put(store, network(2))
    digest = weights_digest(candidate)
    assert same(store.verify(2, digest), candidate)
    with pytest.raises(WeightsError, match="version 2 holds other weights"):
        store.verify(2, digest[:-1] + "x")
    store.path(3).write_bytes(store.path(2).read_bytes())
    with pytest.raises(WeightsError, match="version 3 holds other weights"):
        store.verify(3, digest)
    with pytest.raises(FileNotFoundError):
        store.load(VersionEntry(4, digest, "", None, 0))


def test_the_manifest_comes_after_start(tmp_path):
    with pytest.raises(RuntimeError, match="start has not run"):
        _ = VersionStore(tmp_path, keep=2).manifest
