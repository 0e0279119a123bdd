"""Files that people fill in: whatever a spreadsheet makes of them is read, and errors name row and field."""

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.annotate.annotators import Annotated, Asked
from ka2l_ray.annotate.file import (
    QUESTIONS_CSV,
    QUESTIONS_JSONL,
    AnswerRow,
    answers_in,
    import_file,
    is_waiting,
    read_answers,
    write_questions,
)
from ka2l_ray.config import ConfigError, EndpointSection
from ka2l_ray.dataflow.storage import Folder

QUESTIONS = {"a": "Who?", "b": "Where, when?", "c": 'What is "it"?'}


def asked(folder: Path, ids: str = "abc") -> Folder:
    made = Folder.of(str(folder))
    write_questions([Asked(i, QUESTIONS.get(i, f"{i}?"), [], None) for i in ids], made)
    return made


def file(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "answers.csv"
    path.write_bytes(text.encode(encoding))
    return path


def answers(path: Path) -> dict[str, str]:
    return {r.id: r.answer for r in read_answers(path)}


TEXTS = st.text(st.one_of(st.characters(exclude_categories=["Cc", "Cs"]), st.sampled_from(",;\t|\"'\n")), max_size=12)


@given(
    texts=st.lists(TEXTS, min_size=1, max_size=5),
    columns=st.permutations(["id", "question", "group", "answer", "note"]),
    delimiter=st.sampled_from(",;\t|"),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    separator_line=st.booleans(),
)
def test_whatever_a_csv_writer_writes_is_read(
    tmp_path_factory, texts, columns, delimiter, end, quoting, encoding, separator_line
):
    text = io.StringIO(newline="")
    text.write(f"sep={delimiter}{end}" if separator_line else "")
    writer = csv.DictWriter(text, columns, delimiter=delimiter, lineterminator=end, quoting=quoting, restval="x")
    writer.writeheader()
    writer.writerows({"id": f" q{n} ", "answer": t, "note": t[::-1]} for n, t in enumerate(texts))
    path = file(tmp_path_factory.mktemp("round"), text.getvalue(), encoding)
    assert answers(path) == {f"q{n}": t.strip() for n, t in enumerate(texts)}


@given(texts=st.lists(TEXTS, min_size=1, max_size=5), escaped=st.booleans(), end=st.sampled_from(["\n", "\r\n"]))
def test_whatever_a_json_writer_writes_is_read(tmp_path_factory, texts, escaped, end):
    lines = [json.dumps({"answer": t, "id": f"q{n}"}, ensure_ascii=escaped) for n, t in enumerate(texts)]
    path = file(tmp_path_factory.mktemp("round"), end.join(lines) + end, "utf-8-sig")
    assert answers(path) == {f"q{n}": t.strip() for n, t in enumerate(texts)}


def test_what_was_written_for_people_is_read_back(tmp_path):
    asked(tmp_path)
    blank = [AnswerRow(n, i, "", q) for n, (i, q) in enumerate(QUESTIONS.items(), 2)]
    assert read_answers(tmp_path / QUESTIONS_CSV) == blank
    assert [(r.id, r.answer) for r in read_answers(tmp_path / QUESTIONS_JSONL)] == [("a", ""), ("b", ""), ("c", "")]


FORMULAS = (
    '=HYPERLINK("http://x")',
    "+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1",
    "＝1",
    "'=1",
    "''-1",
    "-",
)


@pytest.mark.parametrize("text", FORMULAS)
def test_a_cell_that_a_spreadsheet_would_compute_is_text_and_is_read_back_as_it_was(text, tmp_path):
    folder, own_id = Folder.of(str(tmp_path)), text.strip()
    write_questions([Asked(own_id, text, [], text)], folder)
    with (tmp_path / QUESTIONS_CSV).open(encoding="utf-8-sig", newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert row == {"id": f"'{own_id}", "question": f"'{text}", "group": f"'{text}", "answer": ""}
    (found,) = read_answers(tmp_path / QUESTIONS_CSV)
    assert (found.id, found.question) == (own_id, own_id)
    assert json.loads((tmp_path / QUESTIONS_JSONL).read_text())["question"] == text
    doubled = text.replace('"', '""')
    import_file(file(tmp_path, f'id,answer\n"\'{doubled.strip()}","{doubled}"\n'), [folder])
    said = Annotated(None, "no_such_thing") if own_id == "-" else Annotated(own_id, "answered")
    assert answers_in(folder)[own_id].annotated == said


@given(texts=st.lists(st.text(st.sampled_from("'=+-@＝ \ta"), min_size=1, max_size=5), min_size=1, max_size=5))
def test_no_two_cells_become_one(tmp_path_factory, texts):
    ids = list(dict.fromkeys(t.strip() for t in texts if t.strip()))
    folder = Folder.of(str(tmp_path_factory.mktemp("round")))
    write_questions([Asked(i, i, [], None) for i in ids], folder)
    assert [r.id for r in read_answers(f"{folder.path}/{QUESTIONS_CSV}")] == ids


CONVERTED = (
    *("73928e05", "1E5", "12d3", "1234567890123456789", "007", "1,5", "1.234,5", "5%", "$5", "1-2", "3/4", "12:30"),
    *("2024-01-02", "MARCH1", "sept2", "1. März", "7 pm", "TRUE", "FALSCH", "ИСТИНА", "1e5'", "'73928e05", "''1"),
)
KEPT = ("a", "q01", "tc_1234", "a3f9c2e1b0d47586", "aaron-burke-birthplace-p1", "tc_1e5", "d'1x")


def test_ids_that_a_spreadsheet_would_convert_are_shielded_and_others_stay(tmp_path: Path) -> None:
    folder = Folder.of(str(tmp_path))
    write_questions([Asked(i, f"{n}?", [], None) for n, i in enumerate((*CONVERTED, *KEPT))], folder)
    with (tmp_path / QUESTIONS_CSV).open(encoding="utf-8-sig", newline="") as stream:
        written = [row["id"] for row in csv.DictReader(stream)]
    assert written == [*(f"'{i}" for i in CONVERTED), *KEPT]
    assert [r.id for r in read_answers(tmp_path / QUESTIONS_CSV)] == [*CONVERTED, *KEPT]


def test_an_id_that_was_converted_is_known_by_its_question(tmp_path: Path) -> None:
    """As files that were made from the JSONL, or by hand, come back."""
    folder, twice = Folder.of(str(tmp_path)), "Asked twice?"
    write_questions(
        [Asked(i, q, [], None) for i, q in zip("73928e05 x 1e5 2e5".split(), ["A?", "B?", twice, twice], strict=True)],
        folder,
    )
    rows = "id,question,answer\n7.3928E+09,a,one\nx,B?,two\n"
    with pytest.raises(ConfigError, match=r"row 4: id = '100000' was not asked"):
        import_file(file(tmp_path, f"{rows}100000,{twice},three\n2e5,{twice},four\n"), [folder])
    import_file(file(tmp_path, f"{rows}1e5,{twice},three\n2e5,{twice},four\n"), [folder])
    assert [a.annotated.answer for a in answers_in(folder).values()] == ["one", "two", "three", "four"]


@pytest.mark.parametrize(
    "cell", ["1.23457E+16", "1,23457E+16", "1.23456789012346E+019", "#NAME?", "#WERT!", "#DIV/0!", "#N/A", "Err:508"]
)
def test_what_a_spreadsheet_made_of_an_answer_is_refused(tmp_path: Path, cell: str) -> None:
    with pytest.raises(ConfigError, match=r"row 3: answer = '.*' is what a spreadsheet made of a long number or of a"):
        read_answers(file(tmp_path, f'id;answer\na;ok\nb;"{cell}"\n'))


@pytest.mark.parametrize(
    ("cell", "is_said"),
    [
        *((cell, True) for cell in ("2-Jan", "01. Feb", "Jan-39", "02/01/26")),
        *((cell, False) for cell in ("1776-07-04", "4 July 1776", "MiG-29", "May", "1-2")),
    ],
)
def test_what_may_be_a_date_that_a_spreadsheet_made_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cell: str, is_said: bool
) -> None:
    assert answers(file(tmp_path, f"id,answer\na,{cell}\n")) == {"a": cell}
    assert (f"row 2: '{cell}'" in caplog.text) is is_said


@pytest.mark.parametrize("cell", ["6.02E+23", "1.6E-19", "#1", "#MeToo", "C#", "-40", "1776-07-04", "12345678901"])
def test_answers_that_look_odd_are_kept(tmp_path: Path, cell: str) -> None:
    assert answers(file(tmp_path, f'id,answer\na,"{cell}"\n')) == {"a": cell}


@pytest.mark.parametrize(
    ("question", "answer", "encoding"),
    [
        ("Gdzie leży Kraków?", "Łódź", "cp1250"),
        ("Кто написал «Идиот»?", "Достоевский", "cp1251"),
        ("Ποιος έγραψε την Οδύσσεια", "Όμηρος", "cp1253"),
        ("Türkiye'nin başkenti neresidir, ğ?", "Ankara değil mi? Şişli", "cp1254"),
        ("日本の首都は？", "東京", "cp932"),
        ("中国的首都是？", "北京", "gb18030"),
        ("한국의 수도는?", "서울", "cp949"),
        ("Wie heißt das Öl?", "Grünkohl", "mac_roman"),
        ("Wie heißt das Öl?", "Grünkohl", "cp850"),
        ("Wie heißt das Öl?", "Grünkohl – „fein“", "cp1252"),
    ],
)
def test_the_questions_show_in_which_encoding_a_country_saves(
    tmp_path: Path, question: str, answer: str, encoding: str
) -> None:
    folder = Folder.of(str(tmp_path / "round"))
    write_questions([Asked("a", question, [], None), Asked("b", "Why?", [], None)], folder)
    saved = file(tmp_path, f"id;question;answer\na;{question};{answer}\nb;Why?;\n", encoding)
    import_file(saved, [folder])
    assert answers_in(folder)["a"].annotated.answer == answer


def test_an_encoding_that_nothing_shows_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_answers(file(tmp_path, "id,answer\na,Łódź\n", "cp1250"), ["Where?"])
    assert "is not UTF-8 and is read as Windows-1252" in caplog.text


def test_questions_that_people_have_begun_to_answer_are_not_written_again(tmp_path):
    asked(tmp_path)
    (tmp_path / QUESTIONS_CSV).write_text("id,answer\na,half done")
    asked(tmp_path)
    assert (tmp_path / QUESTIONS_CSV).read_text() == "id,answer\na,half done"
    asked(tmp_path, "ab")
    assert "half done" not in (tmp_path / QUESTIONS_CSV).read_text()


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("ID;Answer\r\na;Zürich\r\nb;\r\n", "cp1252"),
        ("ID;Answer\r\na;Zürich\r\nb;\r\n", "latin-1"),
        ('"my\nnotes";id;answer\nx;a;Zürich\n;b;\n', "utf-8"),
        ("||||\nid|answer\na|Zürich\nb|\n", "utf-8"),
        ("id,answer\n\u00a0\na,Zürich\nb,\n", "utf-8"),
        ('{"id": "a", "answer": "Zürich"}\n\u00a0\n{"id": "b", "answer": ""}\n', "utf-8"),
        ('"answer","id"\n"Zürich","a"\n"","b"\n', "utf-8"),
        ("\r\nid,answer,,\r\na,Zürich,,\r\n,,,\r\nb\r\n\r\n", "utf-8-sig"),
        ('{"id": "a", "answer": "Zürich"}\r\n\r\n{"id": "b", "answer": null, "note": 1}', "utf-8-sig"),
    ],
)
def test_encodings_delimiters_blank_lines_and_short_rows(tmp_path, text, encoding):
    assert answers(file(tmp_path, text, encoding)) == {"a": "Zürich", "b": ""}


def test_a_number_in_json_is_an_answer(tmp_path):
    assert answers(file(tmp_path, '{"id": 7, "answer": 42}')) == {"7": "42"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"answers\.csv: must have exactly one column `id` and has 0"),
        (
            "question,answer\nWho?,me\n",
            r"exactly one column `id` and has 0; its first row, .*, contains: question, answer",
        ),
        ("id,question\na,Who?\n", r"must have exactly one column `answer` and has 0"),
        ("id,answer,answer\na,x,y\n", r"must have exactly one column `answer` and has 2"),
        (
            "id,answer\na,Paris, France\n",
            r"row 2: line = 3 fields must have 2 fields; put a field that contains the delimiter in quotes",
        ),
        ("id,answer,\na,Paris, France\n", r"row 2: line = 3 fields must have 2 fields"),
        ('id,answer\na,"Paris\n', r"row 2: .*quote"),
        ('id,answer\na,"Paris" France\n', r"row 2: .*quote"),
        ("id,answer\n,Paris\n", r"row 2: answer = 'Paris' is in a row without an id"),
        (
            '{"id": "a", "answer": "x"}\n{"id": "b", "answer": \n',
            r"row 2: line = .* \(Expecting value at character 23\) is not JSON",
        ),
        ('{"id": "a"}', r"row 1: must be an object with `id` and `answer`"),
        ('{"id": "a", "answer": ["x"]}', r"row 1: answer = \['x'\] must be text or a number"),
        ("PK\x03\x04…", r"is a workbook, not a text file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_row_and_field(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read_answers(file(tmp_path, text))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "answers.csv").write_bytes(b"id,answer\na,\x81\x8d")
    with pytest.raises(ConfigError, match=r"neither UTF-8 nor Windows-1252"):
        read_answers(tmp_path / "answers.csv")
    with pytest.raises(ConfigError, match=r"nowhere\.csv: cannot be read"):
        read_answers(tmp_path / "nowhere.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,answer\na,x\nb,y\nc,z\nd,w\n", r"row 5: id = 'd' was not asked"),
        ("id,answer\na,x\nb,y\n", r"1 of the 3 questions of .* have no row: c\. Put the rows back"),
        ("id,answer\na,x\n", r"2 of the 3 questions of .* have no row: b, c"),
        ("id,answer\na,\nb,\nc,\n", r"contains no answer at all"),
        ("id,answer\n", r"contains no answer at all"),
        ("id,answer\na,x\nb,y\na,z\nc,\n", r"row 4: answer = 'z' differs from 'x' in row 2 for the same id 'a'"),
        ("id,answer\na,5 km\nb,\na,5 miles\nc,\n", r"row 4: answer = '5 miles' differs from '5 km' in row 2"),
        ("id,answer\na,-\nb,\na,x\nc,\n", r"row 4: answer = 'x' differs from '-' in row 2"),
        (
            "id,question,answer\na,Who?,x\nb,What is it?,y\nc,Where when?,z\n",
            r"row 3: question = 'What is it\?', but id 'b' asks",
        ),
    ],
)
def test_answers_that_do_not_fit_what_was_asked_change_nothing(tmp_path, text, message):
    folder = asked(tmp_path / "round")
    with pytest.raises(ConfigError, match=message):
        import_file(file(tmp_path, text), [folder])
    assert is_waiting(folder)


@pytest.mark.parametrize(
    ("first", "second", "meant"),
    [
        ("1000", '"1,000"', Annotated("1000", "answered")),
        ("the Rome", "rome.", Annotated("the Rome", "answered")),
        ("-", "No such thing", Annotated(None, "no_such_thing")),
    ],
)
def test_answers_to_one_question_may_be_spelled_in_two_ways(tmp_path, first, second, meant):
    folder = asked(tmp_path / "round", "a")
    import_file(file(tmp_path, f"id,answer\na,{first}\na,{second}\n"), [folder])
    assert answers_in(folder)["a"].annotated == meant


@pytest.mark.parametrize(
    ("cell", "meant"),
    [
        ("I don't know", Annotated(None, "refused")),
        ("There is no such person.", Annotated(None, "no_such_thing")),
        ("No Such Thing", Annotated(None, "no_such_thing")),
        ("“Rome”", Annotated("Rome", "answered")),
        ("<think>Italy, so…</think>Rome", Annotated("Rome", "answered")),
        ("<think>Italy, so…", Annotated(None, "truncated")),
        ("I Don't Know How She Does It", Annotated("I Don't Know How She Does It", "answered")),
    ],
)
def test_a_cell_is_read_as_an_endpoints_reply_is(tmp_path: Path, cell: str, meant: Annotated) -> None:
    folder = asked(tmp_path / "round", "ab")
    counts = import_file(file(tmp_path, f'id,answer\na,"{cell}"\nb,Bonn\n'), [folder])
    assert answers_in(folder)["a"].annotated == meant
    assert counts[meant.status] == 1 + (meant.status == "answered")


def test_a_run_may_have_its_own_words_for_no_answer(tmp_path: Path) -> None:
    folder, own = asked(tmp_path / "round", "ab"), EndpointSection(refusals=("weiß nicht",))
    import_file(file(tmp_path, "id,answer\na,Weiß nicht!\nb,Bonn\n"), [folder], own)
    assert answers_in(folder)["a"].annotated == Annotated(None, "refused")


def test_an_import_keeps_the_order_asked_and_what_each_cell_means(tmp_path):
    folder = asked(tmp_path / "round")
    path = file(tmp_path, "id,question,answer\nc,what is 'it'?, NO such thing \nb,,\na,Who?,me\na,Who?,\n")
    assert import_file(path, [folder]) == {"rounds": 1, "waiting": 0, "answered": 1, "no_such_thing": 1, "blank": 1}
    given = answers_in(folder)
    assert list(given) == ["a", "b", "c"]
    assert [g.annotated for g in given.values()] == [
        Annotated("me", "answered"),
        Annotated(None, "blank"),
        Annotated(None, "no_such_thing"),
    ]
    with pytest.raises(ConfigError, match="no round waits"):
        import_file(path, [folder])


def test_one_answer_serves_every_waiting_round_and_is_paid_once(tmp_path):
    folders = [asked(tmp_path / "one", "ab"), asked(tmp_path / "two", "bc"), asked(tmp_path / "three", "cd")]
    path = file(tmp_path, "id,answer\na,1\nb,2\nc,3\n")
    assert import_file(path, folders) == {"rounds": 2, "waiting": 1, "answered": 3, "no_such_thing": 0, "blank": 0}
    assert [{i: g.cached for i, g in answers_in(f).items()} for f in folders] == [
        {"a": False, "b": False},
        {"b": True, "c": False},
        {},
    ]


def test_a_file_for_two_rounds_that_lost_rows_of_one_imports_none(tmp_path):
    folders = [asked(tmp_path / "one", "ab"), asked(tmp_path / "two", "bcd")]
    with pytest.raises(ConfigError, match=r"1 of the 3 questions of .*two have no row: d"):
        import_file(file(tmp_path, "id,answer\na,1\nb,2\nc,3\n"), folders)
    assert all(map(is_waiting, folders))


def test_an_import_killed_between_two_rounds_is_finished_by_the_same_file(tmp_path):
    folders = [asked(tmp_path / "one", "ab"), asked(tmp_path / "two", "bc")]
    path = file(tmp_path, "id,answer\na,1\nb,2\nc,3\n")
    import_file(path, folders)
    (folders[1] / "answers.jsonl").delete()
    assert import_file(path, folders)["rounds"] == 1
    assert answers_in(folders[1])["c"].annotated == Annotated("3", "answered")
