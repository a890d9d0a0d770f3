"""A row that is not as it was written is found, told once, and never learned from."""

from __future__ import annotations

import random
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.errors import UnknownIdError
from daemon.store import SampleReader
from daemon.store.row_check import CHECKED, is_sound, row_crc
from daemon.store.schema import DATABASE_NAME
from tests.daemon_fixtures import SPEC, added, open_store, query, sample

WHOLE_ROWS = f"SELECT {CHECKED}, crc FROM samples"  # noqa: S608 - our own text
ROW = (5, "id", 2, 0, "uint8", "cam0", "12.5", 77, -9, bytes(range(6)))
TEXT = st.none() | st.text(max_size=5)
WHOLE = st.integers(-(2**63), 2**63 - 1)
ROWS = st.tuples(
    *(WHOLE, TEXT, st.none() | WHOLE, st.integers(0, 1), st.sampled_from(["uint8", "float32"])),
    *(st.text(max_size=5), TEXT, WHOLE, st.none() | WHOLE, st.binary(max_size=12)),
)


@given(row=ROWS, other=ROWS)
def test_the_check_tells_rows_apart(row, other):
    assert is_sound((*row, row_crc(*row)))
    assert is_sound((*row, row_crc(*other))) == (row == other)


@pytest.mark.parametrize("column", range(len(ROW)))
@pytest.mark.parametrize("value", [None, 3, "text", b"bytes", 2.5])
def test_a_column_of_any_other_type_or_value_is_damage(column, value):
    changed = [*ROW]
    changed[column] = value
    assert not is_sound((*changed, row_crc(*ROW)))
    assert not is_sound((*ROW, value))


def test_every_flipped_bit_of_the_features_is_found():
    crc = row_crc(*ROW)
    for bit in range(48):
        features = bytearray(ROW[-1])
        features[bit // 8] ^= 1 << bit % 8
        assert not is_sound((*ROW[:-1], bytes(features), crc))


def test_rows_that_lie_damaged_in_the_file_are_passed_over(tmp_path):
    with closing(open_store(tmp_path, holdout_ratio=0.0)) as store:
        marks = [random.Random(number).randbytes(6) for number in range(40)]
        added(store, *[sample(features=mark, source="marked") for mark in marks])
    path = tmp_path / DATABASE_NAME
    content = bytearray(path.read_bytes())
    hit = {3, 17, 40}
    for seq in hit:
        place = content.index(marks[seq - 1])
        content[place + seq % 6] ^= 1 << seq % 8
    path.write_bytes(content)
    assert query(tmp_path, "PRAGMA integrity_check") == [("ok",)]  # SQLite does not see it
    told: list[int] = []
    with closing(SampleReader(tmp_path, SPEC, told.append)) as reader:
        for _ in range(2):
            found, through = reader.training(0, 100)
            assert {sample.seq for sample in found} == set(range(1, 41)) - hit
            assert through == 40
        # Damaged ones do not shorten a block, and those at the end are passed for good.
        assert [sample.seq for sample in reader.training(1, 4)[0]] == [2, 4, 5, 6]
        assert reader.training(39, 4) == ([], 40)
        assert len(reader.samples([3, 4])) == 1
    assert sorted(told) == sorted(hit)


def test_text_that_is_no_longer_text_is_damage(tmp_path):
    with closing(open_store(tmp_path, holdout_ratio=0.0)) as store:
        added(store, sample(1), sample(2))
    query(tmp_path, "UPDATE samples SET source = CAST(x'ff74' AS TEXT) WHERE seq = 1")
    with closing(SampleReader(tmp_path, SPEC)) as reader:
        assert [found.seq for found in reader.training(0, 10)[0]] == [2]


def test_every_row_that_the_store_writes_has_its_check(tmp_path):
    with closing(open_store(tmp_path, drop_duplicates=True)) as store:
        added(store, *[sample(i, "a", ts="5") for i in range(300)], sample(9, None, id="x"))
        store.label("x", "a", replace=False).result(10)
        store.withdraw("s-3").result(10)
    rows = query(tmp_path, WHOLE_ROWS)
    assert len(rows) > 200
    assert all(is_sound(row) for row in rows)


@pytest.mark.parametrize("change", ["ts = CAST(x'ff' AS TEXT)", "features = x'010101010109'"])
def test_a_label_makes_no_good_row_of_a_damaged_one(tmp_path, change):
    with closing(open_store(tmp_path, holdout_ratio=0.0)) as store:
        added(store, sample(1, "a"), sample(2, "a"))
        query(tmp_path, f"UPDATE samples SET {change} WHERE seq = 1")  # noqa: S608
        refused = store.label("s-1", "b", replace=True)
        other = store.label("s-2", "b", replace=True)
        with pytest.raises(UnknownIdError, match="damaged"):
            refused.result(10)
        assert other.result(10).seq == 3
        store.withdraw("s-1").result(10)
    assert query(tmp_path, "SELECT seq FROM samples WHERE retired = 0") == [(3,)]
    assert all(is_sound(row) for row in query(tmp_path, f"{WHOLE_ROWS} WHERE seq > 1"))
