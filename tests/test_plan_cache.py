"""Plans on disk: whole or as good as absent, under their whole key, the newest few of them."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.plan_cache import ENTRIES_MAX, Entry, PlanCache

KEY = {"structure": "abc", "tensorrt": "10.3.0", "gpu": "Orin"}
ENTRY = Entry(b"a plan", {"units.0.bias": "fingerprint"})


def only_file(folder):
    (path,) = folder.iterdir()
    return path


def test_what_was_kept_is_found_by_another_process(tmp_path):
    PlanCache(tmp_path / "new").save(KEY, ENTRY)
    assert PlanCache(tmp_path / "new").load(KEY) == ENTRY
    assert PlanCache(tmp_path / "new").load(KEY | {"gpu": "Thor"}) is None


def test_without_a_folder_nothing_is_kept():
    cache = PlanCache(None)
    cache.save(KEY, ENTRY)
    assert cache.load(KEY) is None


def test_what_is_kept_again_replaces_what_was(tmp_path):
    cache = PlanCache(tmp_path)
    cache.save(KEY, ENTRY)
    cache.save(KEY, Entry(b"another", {}))
    assert cache.load(KEY) == Entry(b"another", {})
    only_file(tmp_path)


@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_wrong_bit_makes_it_absent(tmp_path_factory, position, bit):
    folder = tmp_path_factory.mktemp("cache")
    PlanCache(folder).save(KEY, ENTRY)
    path = only_file(folder)
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 1 << bit
    path.write_bytes(content)
    assert PlanCache(folder).load(KEY) is None


@pytest.mark.parametrize("length", [0, 7, 100])
def test_a_file_cut_short_is_absent_and_written_over(tmp_path, length):
    cache = PlanCache(tmp_path)
    cache.save(KEY, ENTRY)
    path = only_file(tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    assert cache.load(KEY) is None
    cache.save(KEY, ENTRY)
    assert cache.load(KEY) == ENTRY


def test_an_entry_under_another_ones_name_is_absent(tmp_path):
    cache = PlanCache(tmp_path)
    other = KEY | {"gpu": "Thor"}
    cache.save(KEY, ENTRY)
    path = only_file(tmp_path)
    cache.save(other, ENTRY)
    (copy,) = set(tmp_path.iterdir()) - {path}
    copy.write_bytes(path.read_bytes())
    assert cache.load(KEY) == ENTRY
    assert cache.load(other) is None


def test_the_oldest_of_many_go_and_use_makes_young(tmp_path):
    cache = PlanCache(tmp_path)
    keys = [KEY | {"structure": str(number)} for number in range(ENTRIES_MAX + 2)]
    seen = set()
    for number, key in enumerate(keys[:ENTRIES_MAX]):
        cache.save(key, ENTRY)
        (new,) = set(tmp_path.iterdir()) - seen
        os.utime(new, (number, number))  # whatever the clock's grain
        seen.add(new)
    assert cache.load(keys[0]) == ENTRY
    for key in keys[ENTRIES_MAX:]:
        cache.save(key, ENTRY)
    assert len(list(tmp_path.iterdir())) == ENTRIES_MAX
    assert cache.load(keys[0]) == ENTRY
    assert cache.load(keys[1]) is None
    assert cache.load(keys[2]) is None
    assert cache.load(keys[3]) == ENTRY
    assert cache.load(keys[-1]) == ENTRY


def test_leftovers_of_a_killed_writer_go(tmp_path):
    leftover = tmp_path / ".0123.cache.99999.tmp"
    leftover.write_bytes(b"half a pl")
    PlanCache(tmp_path).save(KEY, ENTRY)
    assert not leftover.exists()


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_entry(tmp_path, caplog):
    (tmp_path / "file").write_bytes(b"")
    cache = PlanCache(tmp_path / "file")
    cache.save(KEY, ENTRY)
    assert cache.load(KEY) is None
    assert "engine cache entry is not kept" in caplog.text
