"""CSV: which column is the label and which line the header, and no line lost without a word."""

import pytest

from daemon.datasets import BadRow, Row, open_dataset
from daemon.errors import DataError


def csv_rows(tmp_path, text, column=None):
    path = tmp_path / "a.csv"
    path.write_text(text, encoding="utf-8-sig")
    return list(open_dataset(path, label_column=column).rows())


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("1,2,dog\n3,4,cat\n", None),
        ("a,b,kind\n1,2,dog\n3,4,cat\n", None),
        ("a;kind;b\n1;dog;2\n3;cat;4\n", "kind"),
        ("kind\ta\tb\ndog\t1\t2\n\ncat\t3\t4", "1"),
        ('dog,"1",2\r\ncat, 3, 4\r\n', "1"),
    ],
)
def test_csv_header_separator_and_label_column(tmp_path, text, column):
    rows = csv_rows(tmp_path, text, column)
    assert [(row.label, row.x.tolist()) for row in rows] == [("dog", [1, 2]), ("cat", [3, 4])]


def test_csv_lines_that_are_no_samples_are_named_and_passed_over(tmp_path):
    rows = csv_rows(tmp_path, "1,2,a\n1,b,a\n1,2\n1,2,\n3,4,b\n")
    assert [type(row) for row in rows] == [Row, BadRow, BadRow, Row, Row]
    assert (rows[1].name, rows[1].why) == ("line 2", "holds a cell that is not a number")
    assert rows[2].why == "has 2 columns, the first line 3"
    assert rows[3].label is None
    assert csv_rows(tmp_path, "1,,a\n1,2,a\n")[0] == BadRow(
        "line 1", "holds a cell that is not a number"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "first line has 0 columns"),
        (b"just words\n", "first line has 1 columns"),
        (b"1,2,3\n\xff\xfe,1,2\n", "no text in UTF-8"),
        (b"a,b,label\n", "found no row but the header"),
        (b'1,"2,3\n', "line 1 is no CSV: unclosed quote"),
    ],
)
def test_csv_files_that_cannot_be_read(tmp_path, content, message):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(open_dataset(path).rows())


def test_csv_label_column_that_is_not_there(tmp_path):
    for column in ("kind", "0", "4", "-1"):
        with pytest.raises(DataError, match="a number from 1 to 3"):
            csv_rows(tmp_path, "1,2,3\n", column)


@pytest.mark.parametrize(
    ("text", "column", "note"),
    [
        ("a,LABEL,b\n1,7,2\n", None, "the label is column 2 of 3, 'LABEL'; line 1 read as header"),
        ("y,a,b\n7,1,2\n", None, "the label is column 1 of 3, 'y'; line 1 read as header"),
        ("class,a,y\n1,2,7\n", None, "the label is column 3 of 3, 'y'; line 1 read as header"),
        ("a,y,b\n1,2,7\n", "b", "the label is column 3 of 3, 'b'; line 1 read as header"),
        ("1,2,7\n", None, "the label is column 3 of 3; no header"),
        ("7,1,2\n", "1", "the label is column 1 of 3; no header"),
    ],
)
def test_csv_says_where_the_label_is(tmp_path, text, column, note):
    (tmp_path / "a.csv").write_text(text)
    dataset = open_dataset(tmp_path / "a.csv", label_column=column)
    assert dataset.notes == [note]
    assert [(row.label, row.x.tolist()) for row in dataset.rows()] == [(7, [1, 2])]


@pytest.mark.parametrize("text", ['1,"2,a\n3,4,b\n5,6,c\n', '1,2,"a\n3,4,b\n5,6,c\n'])
def test_a_quote_that_is_not_closed_costs_its_own_line(tmp_path, text):
    rows = csv_rows(tmp_path, "0,0,a\n" + text)
    assert rows[1] == BadRow("line 2", "is no CSV: unclosed quote?")
    assert [row.label for row in (rows[0], *rows[2:])] == ["a", "b", "c"]


def test_a_line_too_long_for_csv_is_one_bad_row(tmp_path):
    good, bad, last = csv_rows(tmp_path, "1,2,3\n" + "9" * 200_000 + ",2,3\n1,2,4\n")
    assert (good.label, last.label) == (3, 4)
    assert bad.why.startswith("is no CSV: field larger")


def test_whole_labels_may_have_a_point(tmp_path):
    rows = csv_rows(tmp_path, "1,2,3.0\n1,2,\n1,2,-4.\n1,2,5\n")
    assert [row.label for row in rows] == [3, None, -4, 5]
    rows = csv_rows(tmp_path, "1,2,3.0\n1,2,3.5\n1,2,dog\n")
    assert [row.label for row in rows] == ["3.0", "3.5", "dog"]


def test_digits_parted_by_an_underscore_are_no_number(tmp_path):
    assert [type(row) for row in csv_rows(tmp_path, "1,2,3\n1_0,2,3\n")] == [Row, BadRow]
