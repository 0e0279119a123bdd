"""Files of every kind give the same rows, under the numbers a person finds them by."""

import bz2
import gzip
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ka2l_ray.config import ConfigError, HubSection
from ka2l_ray.corpus.files import files_of, undecoded
from ka2l_ray.dataflow.rows import MOST_LINES, NOT_UTF8, BadRow

ROWS = [{"question": f"Why {n}, «{n * n}»?", "answers": [f"because {n}", "é"]} for n in range(5)]
FLAT = [{"question": r["question"], "answers": r["answers"][0]} for r in ROWS]
LINES = "\n".join(json.dumps(r, ensure_ascii=False) for r in ROWS).encode()


def table(delimiter: str) -> bytes:
    lines = [["question", "answers"], *([r["question"], r["answers"]] for r in FLAT)]
    return "\r\n".join(delimiter.join(f'"{v}"' for v in line) for line in lines).encode()


def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue().to_pybytes()


KINDS = {
    "q.jsonl": (LINES, ROWS, 1),
    "q.ndjson": (LINES + b"\n\n", ROWS, 1),
    "q.JSONL.GZ": (gzip.compress(LINES), ROWS, 1),
    "q.jsonl.bz2": (bz2.compress(LINES), ROWS, 1),
    "q.json": (json.dumps(ROWS).encode(), ROWS, 1),
    "q.csv": (table(","), FLAT, 2),
    "q.tsv": (table("\t"), FLAT, 2),
    "semicolons.csv": (table(";"), FLAT, 2),
    "q.csv.gz": (gzip.compress(b"\xef\xbb\xbf" + table(",")), FLAT, 2),
    "q.parquet": (parquet(), ROWS, 1),
    "q.txt": ("\n".join(r["question"] for r in FLAT).encode(), [{"question": r["question"]} for r in FLAT], 1),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_gives_its_rows_with_their_numbers(tmp_path: Path, name: str) -> None:
    data, rows, first = KINDS[name]
    (tmp_path / name).write_bytes(data)
    (file,) = files_of(str(tmp_path / name), HubSection())
    found = list(file.rows())
    assert [r.values for r in found] == rows
    assert [r.number for r in found] == list(range(first, first + len(rows)))


def test_squads_own_tree_becomes_flat_rows(tmp_path: Path) -> None:
    tree = {
        "data": [
            {
                "title": "Rivers",
                "paragraphs": [{"context": "…", "qas": [{"id": "a", "question": "Why?", "answers": [{"text": "so"}]}]}],
            }
        ]
    }
    (tmp_path / "dev.json").write_text(json.dumps(tree))
    (row,) = files_of(str(tmp_path / "dev.json"), HubSection())[0].rows()
    assert row.values == {"title": "Rivers", "id": "a", "question": "Why?", "answers": [{"text": "so"}]}


PLAIN = [{"question": "Why?", "answers": "so"}, {"question": "Who?", "answers": None}]
DOCUMENTS = {
    "a list under any name": {"version": 1, "questions": PLAIN, "notes": []},
    "a list called data": {"data": PLAIN},
    "objects by id": {"a": PLAIN[0], "b": PLAIN[1]},
    "columns as pandas writes them": {
        "question": {"0": "Why?", "1": "Who?"},
        "answers": {"0": "so", "1": None},
    },
}


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)
def test_rows_are_found_in_a_json_object(tmp_path: Path, document: object) -> None:
    (tmp_path / "q.json").write_text(json.dumps(document, indent=1))
    rows = files_of(str(tmp_path / "q.json"), HubSection())[0].rows(("question", "answers"))
    assert [(r.number, r.values) for r in rows] == [(1, PLAIN[0]), (2, PLAIN[1])]


def test_one_object_is_one_row_whatever_lists_it_has(tmp_path: Path) -> None:
    row = {"question": "Why?", "answers": [{"answers": "so"}], "meta": {"a": 1}}
    (tmp_path / "q.json").write_text(json.dumps(row))
    assert [r.values for r in files_of(str(tmp_path / "q.json"), HubSection())[0].rows(("question", "answers"))] == [
        row
    ]


@pytest.mark.parametrize("text", [json.dumps(PLAIN), json.dumps(PLAIN, indent=2), "\ufeff" + json.dumps(PLAIN)])
def test_an_array_called_jsonl_is_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "q.jsonl").write_text(text)
    assert [r.values for r in files_of(str(tmp_path / "q.jsonl"), HubSection())[0].rows()] == PLAIN


CUT_PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"


def with_media() -> datasets.Dataset:
    """300 rows with images and sounds that nothing here can decode, also inside a column with the question."""
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "audio": datasets.Audio(),
            "doc": {"question": datasets.Value("string"), "image": datasets.Image()},
            "answers": datasets.List(datasets.Value("string")),
            "label": datasets.ClassLabel(names=["no", "yes"]),
        }
    )
    media = {"bytes": CUT_PNG, "path": None}
    rows = [
        {
            "image": media,
            "audio": media,
            "doc": {"question": f"Why {n}?", "image": media},
            "answers": ["so", None],
            "label": n % 2,
        }
        for n in range(300)
    ]
    table = pa.Table.from_pylist(rows, schema=features.arrow_schema)
    return datasets.Dataset(table, info=datasets.DatasetInfo(features=features))


def test_media_columns_are_never_decoded(tmp_path: Path) -> None:
    made = with_media()
    with pytest.raises((ImportError, OSError)):
        made[0]
    made.save_to_disk(str(tmp_path / "set"))
    (file,) = files_of(str(tmp_path / "set"), HubSection())
    rows = list(file.rows(("doc", "answers", "label", "gone")))
    assert [r.number for r in rows] == list(range(1, 301))
    doc = {"image": {"bytes": CUT_PNG, "path": None}}
    assert [r.values for r in rows] == [
        {"doc": {"question": f"Why {n}?"} | doc, "answers": ["so", None], "label": n % 2} for n in range(300)
    ]
    assert file.columns() == ["image", "audio", "doc", "answers", "label"]
    assert len(list(file.rows(("gone",)))) == len(list(file.rows(()))) == 300


def test_streamed_media_columns_are_never_decoded(tmp_path: Path) -> None:
    """As a data set on the hub is read, here from a file."""
    with_media().to_parquet(str(tmp_path / "m.parquet"))
    streamed = datasets.load_dataset("parquet", data_files=str(tmp_path / "m.parquet"), split="train", streaming=True)
    rows = list(undecoded(streamed, ("label", "answers")))
    assert rows == [{"answers": ["so", None], "label": n % 2} for n in range(300)]
    assert len(list(undecoded(streamed, ("doc",)))) == 300
    lines = datasets.IterableDataset.from_generator(lambda: iter(ROWS))
    assert lines.features is None
    assert list(undecoded(lines, ("question",))) == ROWS


def test_a_folder_saved_by_datasets_is_read_by_its_split(tmp_path: Path) -> None:
    made = datasets.DatasetDict(
        {"validation": datasets.Dataset.from_list(ROWS), "train": datasets.Dataset.from_list(ROWS[:2])}
    )
    made.save_to_disk(str(tmp_path / "set"))
    (file,) = files_of(str(tmp_path / "set"), HubSection(split="train"))
    assert [r.values for r in file.rows()] == ROWS[:2]
    (file,) = files_of(str(tmp_path / "set"), HubSection(split="test"))
    with pytest.raises(ConfigError, match=r"contains the splits validation, train; set corpus\.hub\.split"):
        list(file.rows())


def test_sources_are_patterns_folders_and_lists_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.csv", "notes.md"):
        (tmp_path / name).write_bytes(LINES if name.endswith("l") else table(","))
    assert [Path(f.name).name for f in files_of(f"{tmp_path}/*.jsonl", HubSection())] == ["a.jsonl", "b.jsonl"]
    assert [Path(f.name).name for f in files_of(str(tmp_path), HubSection())] == ["a.jsonl", "b.jsonl", "c.csv"]
    both = (f"{tmp_path}/c.csv", f"{tmp_path}/a.jsonl")
    assert [Path(f.name).name for f in files_of(both, HubSection())] == ["c.csv", "a.jsonl"]


def test_a_hub_id_needs_no_network_to_be_known_as_one() -> None:
    (file,) = files_of("mandarjoshi/trivia_qa", HubSection(subset="rc.nocontext"))
    assert (file.kind, file.hub.subset) == ("hub", "rc.nocontext")


def test_a_row_that_cannot_be_read_keeps_its_place(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_bytes(b"\n".join([LINES.splitlines()[0], b"", b"\xff", LINES.splitlines()[1]]))
    rows = list(files_of(str(tmp_path / "q.jsonl"), HubSection())[0].rows())
    assert [r.number for r in rows] == [1, 3, 4]
    assert rows[1].values == BadRow("line", NOT_UTF8, r"'\\udcff' (0xff at byte 1)")


def test_lines_may_cross_the_borders_of_blocks(tmp_path: Path) -> None:
    rows = [{"question": "why " * 700 + str(n)} for n in range(1000)]
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    assert [r.values for r in files_of(str(tmp_path / "q.jsonl"), HubSection())[0].rows()] == rows


def numbers_and_values(path: Path) -> list[tuple[int, object]]:
    return [(r.number, r.values) for r in files_of(str(path), HubSection())[0].rows()]


def test_a_row_of_csv_is_named_by_the_line_it_starts_on(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text('question,answers\n"Why,\nreally?",so\n\nWho?,me\n')
    assert numbers_and_values(tmp_path / "q.csv") == [
        (2, {"question": "Why,\nreally?", "answers": "so"}),
        (5, {"question": "Who?", "answers": "me"}),
    ]


def test_a_quote_that_is_not_doubled_fails_only_its_own_row(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text('question,answers\nOne?,1\n"He said "no"?",2\nThree?,3\n')
    (one, bad, three) = numbers_and_values(tmp_path / "q.csv")
    assert (one[0], three) == (2, (4, {"question": "Three?", "answers": "3"}))
    assert (bad[0], isinstance(bad[1], BadRow)) == (3, True)


@pytest.mark.parametrize(
    ("last", "says"),
    [
        ("Four?,4", "opens a quote that is never closed"),
        ('Four?,"4"', "opens a quote that is closed wrongly on line 6"),
    ],
)
def test_a_quote_that_swallows_rows_fails_only_the_row_where_it_opens(tmp_path: Path, last: str, says: str) -> None:
    (tmp_path / "q.csv").write_text(f'question,answers\n"One,\nthen?",1\n"Two?,2\n\n{last}\nFive?,5')
    one, (number, bad), *others = numbers_and_values(tmp_path / "q.csv")
    assert (number, isinstance(bad, BadRow) and bad.problem.startswith(says)) == (4, True)
    assert one == (2, {"question": "One,\nthen?", "answers": "1"})
    assert others == [(6, {"question": "Four?", "answers": "4"}), (7, {"question": "Five?", "answers": "5"})]


def test_the_end_of_a_text_that_is_quoted_wrongly_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text('question,answers\n"He said "no"\nthen, left",2\nThree?,3\n')
    first, second, three = numbers_and_values(tmp_path / "q.csv")
    assert [(n, isinstance(v, BadRow)) for n, v in (first, second)] == [(2, True), (3, True)]
    assert three == (4, {"question": "Three?", "answers": "3"})


def test_a_header_whose_quote_is_never_closed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text('"question,answers\nOne?,1\n')
    with pytest.raises(ConfigError, match=r"q\.csv: row 1: line opens a quote that is never closed"):
        numbers_and_values(tmp_path / "q.csv")


@pytest.mark.parametrize("name", ["q.csv", "q.jsonl", "q.json", "q.txt", "q.csv.gz"])
@pytest.mark.parametrize(("written", "encoding"), [("utf-16", "auto"), ("cp1252", "cp1252")])
def test_text_files_of_other_encodings_are_read(tmp_path: Path, name: str, written: str, encoding: str) -> None:
    question = "Où est l’œuvre?"
    rows = [{"question": question}] * 3
    text = {
        "q.csv": f"question\n{question}\n{question}\n{question}\n",
        "q.jsonl": "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows),
        "q.json": json.dumps(rows, ensure_ascii=False),
        "q.txt": f"{question}\n" * 3,
    }[name.removesuffix(".gz")]
    data = text.encode(written)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    (file,) = files_of(str(tmp_path / name), HubSection(), encoding)
    assert [r.values for r in file.rows(("question",))] == rows


@pytest.mark.parametrize("name", ["q.csv", "q.parquet"])
def test_columns_of_one_name_are_refused_only_where_they_are_wanted(tmp_path: Path, name: str) -> None:
    if name == "q.csv":
        (tmp_path / name).write_text("note,question,note\na,Why?,b\n")
    else:
        columns = [pa.array([v]) for v in ("a", "Why?", "b")]
        pq.write_table(pa.Table.from_arrays(columns, ["note", "question", "note"]), tmp_path / name)
    (file,) = files_of(str(tmp_path / name), HubSection())
    (row,) = file.rows(("question", "answers"))
    assert not isinstance(row.values, BadRow)
    assert row.values["question"] == "Why?"
    with pytest.raises(ConfigError, match="'note' twice"):
        list(file.rows(("question", "note")))


def test_quotes_in_a_table_with_tabs_are_csvs_or_the_texts_own(tmp_path: Path) -> None:
    text = (
        "question\tanswers\n"
        '"Heroes" was sung by whom?\tDavid "Ziggy" Bowie\n'
        '"Why,\treally?"\t"so\nand ""so"""\n'
        'Who said ""hi""?\t"me\n'
        "\n"
        '"And who?\tyou\n'
        '"One\t"Two"\n'
        '"Last?"\t"end"'
    )
    (tmp_path / "q.tsv").write_text(text)
    assert numbers_and_values(tmp_path / "q.tsv") == [
        (2, {"question": '"Heroes" was sung by whom?', "answers": 'David "Ziggy" Bowie'}),
        (3, {"question": "Why,\treally?", "answers": 'so\nand "so"'}),
        (5, {"question": 'Who said ""hi""?', "answers": '"me'}),
        (7, {"question": '"And who?', "answers": "you"}),
        (8, {"question": '"One', "answers": '"Two"'}),
        (9, {"question": "Last?", "answers": "end"}),
    ]


def test_a_table_of_one_column_has_no_delimiter(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text('question\nWhy, and when?\n"Who, then?"\n"Heroes"; by whom?\n')
    assert [v for _, v in numbers_and_values(tmp_path / "q.csv")] == [
        {"question": q} for q in ("Why, and when?", "Who, then?", '"Heroes"; by whom?')
    ]


def test_a_quote_that_opens_many_rows_of_a_table_with_tabs_costs_none(tmp_path: Path) -> None:
    rows = [{"question": f'"Why {n}', "answers": f"so\u2028{n}"} for n in range(MOST_LINES * 3)]
    (tmp_path / "q.tsv").write_text(
        "question\tanswers\r\n" + "".join(f"{r['question']}\t{r['answers']}\r\n" for r in rows)
    )
    assert numbers_and_values(tmp_path / "q.tsv") == list(enumerate(rows, 2))


def test_of_parquet_only_the_wanted_columns_are_read(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([r | {"context": "x" * 1000} for r in ROWS]), tmp_path / "q.parquet")
    (file,) = files_of(str(tmp_path / "q.parquet"), HubSection())
    assert file.columns() == ["question", "answers", "context"]
    assert [r.values for r in file.rows(("question", "gone"))] == [{"question": r["question"]} for r in ROWS]


def test_brackets_in_names_that_exist_are_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "a[1]").mkdir()
    for name in ("a[1]/q[2].jsonl", "a[1]/q2.jsonl"):
        (tmp_path / name).write_bytes(LINES)
    assert [Path(f.name).name for f in files_of(f"{tmp_path}/a[1]/q[2].jsonl", HubSection())] == ["q[2].jsonl"]
    assert [Path(f.name).name for f in files_of(f"{tmp_path}/a[1]/*.jsonl", HubSection())] == ["q2.jsonl", "q[2].jsonl"]


def test_a_uri_may_contain_spaces_quoted_or_not(tmp_path: Path) -> None:
    (tmp_path / "my questions").mkdir()
    (tmp_path / "my questions/q 1.jsonl").write_bytes(LINES)
    for address in ("my questions/q 1.jsonl", "my%20questions/q%201.jsonl", "my questions/*.jsonl", "my questions"):
        (file,) = files_of(f"file://{tmp_path}/{address}", HubSection())
        assert [r.values for r in file.rows()] == ROWS
