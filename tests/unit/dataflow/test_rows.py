"""CSV and JSON lines, read once for corpora and spreadsheets: where a row is found, and what is refused."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.config import ConfigError
from ka2l_ray.dataflow import rows
from ka2l_ray.dataflow.rows import NOT_UTF8, BadRow, Record, Utf8, csv_table, json_rows, listed


def table(text: str) -> tuple[list[str], list[Record]]:
    names, records = csv_table(io.BytesIO(text.encode()), "q.csv")
    return names, list(records)


def test_a_record_has_the_line_it_starts_on_and_the_number_that_a_spreadsheet_shows() -> None:
    names, records = table('sep=;\n\nid;answer\n"a\nb";1\n\nc;2\n')
    assert names == ["id", "answer"]
    assert records == [Record(4, 4, ["a\nb", "1"]), Record(7, 6, ["c", "2"])]


@pytest.mark.parametrize("text", ["", "\n \r\n", "sep=,\n", ",,\n\n"])
def test_a_file_without_a_header_has_no_columns_and_no_records(text: str) -> None:
    assert table(text) == ([], [])


CELLS = st.text(st.one_of(st.characters(exclude_categories=["Cc", "Cs"]), st.sampled_from(",;\t\"'\n\r")), max_size=12)


@given(st.lists(st.tuples(CELLS, CELLS), max_size=5), st.sampled_from(rows.DELIMITERS))
def test_what_a_csv_writer_writes_is_read_back(cells: list[tuple[str, str]], delimiter: str) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows([("first", "second"), *cells])
    _, records = table(text.getvalue())
    assert [r.fields for r in records] == [list(c) for c in cells if "".join(c).strip()]


def test_a_bad_line_of_json_says_where_and_fails_only_its_own_row() -> None:
    text = '{"a": 1}\n{"a": \n{"a": 1, "a": 2}\n[1]\n' + json.dumps({"a": "é"}, ensure_ascii=False)
    found = list(json_rows(io.BytesIO(text.encode()), "q.jsonl"))
    assert [(r.number, r.values) for r in found] == [
        (1, {"a": 1}),
        (2, BadRow("line", "is not JSON", "'{\"a\": ' (Expecting value at character 7)")),
        (3, BadRow("line", "names 'a' twice")),
        (4, BadRow("line", "must be a JSON object", "'[1]'")),
        (5, {"a": "é"}),
    ]


def test_bytes_that_are_not_utf8_are_named_by_their_place() -> None:
    (row,) = json_rows(io.BytesIO('{"é": "'.encode() + b'\xe9"}'), "q.jsonl")
    assert row.values == BadRow("line", NOT_UTF8, r"""'{"é": "\\udce9"}' (0xe9 at byte 9)""")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_is_read_by_its_mark(encoding: str) -> None:
    text = "\ufeff" + "".join(f"{n} Où, 東京, 🜁?\r\n" for n in range(20_000))
    assert Utf8(io.BytesIO(text.encode(encoding))).readall().decode() == text.removeprefix("\ufeff")


@pytest.mark.parametrize(("encoding", "text"), [("cp1252", "Où, œuvre?"), ("cp1251", "Где?"), ("gb18030", "東京？")])
def test_an_encoding_is_read_by_its_name(encoding: str, text: str) -> None:
    assert Utf8(io.BytesIO(text.encode(encoding) * 10_000), encoding).readall().decode() == text * 10_000


@pytest.mark.parametrize(
    ("encoding", "known", "text", "unknown"),
    [("cp1252", b"\xe9", "é", b"\x81"), ("cp932", b"\x93\x8c", "東", b"\x81")],
)
def test_what_an_encoding_does_not_know_fails_only_its_own_row(
    encoding: str, known: bytes, text: str, unknown: bytes
) -> None:
    stream = Utf8(io.BytesIO(b'{"a": "%s"}\n{"a": "%s"}\n{"a": 1}\n' % (known, unknown)), encoding)
    one, bad, three = json_rows(io.BufferedReader(stream), "q.jsonl")
    assert (one.values, three.values) == ({"a": text}, {"a": 1})
    assert isinstance(bad.values, BadRow)
    assert bad.values.problem == NOT_UTF8


def test_half_of_a_surrogate_pair_in_utf16_fails_only_its_own_row() -> None:
    text = '\ufeff{"a": "x"}\n{"a": "\ud800"}\n{"a": 1}\n'
    found = list(json_rows(io.BufferedReader(Utf8(io.BytesIO(text.encode("utf-16-le", "surrogatepass")))), "q.jsonl"))
    assert [isinstance(r.values, BadRow) for r in found] == [False, True, False]


def test_a_line_without_end_is_refused_before_it_is_held_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "LONGEST_LINE", 2**20)
    stream = io.BytesIO(b"{}\n" + b"x" * 2**24)
    with pytest.raises(ConfigError, match=r"q\.jsonl: line 2 exceeds 1 MiB"):
        list(json_rows(stream, "q.jsonl"))
    assert stream.closed or stream.tell() < 2**23


def test_names_are_listed_up_to_a_limit_and_odd_ones_quoted() -> None:
    assert listed(["a", "b\n", ""]) == r"a, 'b\n', ''"
    assert listed(str(n) for n in range(22)) == f"{', '.join(map(str, range(20)))} and 2 more"
