"""From files to splits: nothing lost, nothing twice, nothing alike in two splits."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from alike_questions import real, templated, words
from hypothesis import given
from hypothesis import strategies as st
from question_tables import prepared, questions

from ka2l_ray import schema
from ka2l_ray.config import ConfigError, CorpusSection, load_config
from ka2l_ray.corpus.files import files_of
from ka2l_ray.corpus.prepare import CHUNK, parse_file
from ka2l_ray.corpus.preview import preview
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.text.duplicates import PERMUTATIONS, groups, ngrams, signatures

ROOT = Path(__file__).parents[3]


def test_every_row_is_in_one_split_or_accounted_for(tmp_path: Path) -> None:
    table = prepared(
        tmp_path, [*questions(200), "{broken"], [*questions(100, 200), questions(1)[0] | {"answers": ["b", "a0"]}]
    )
    manifest, rows = table.manifest(), table.read().to_pylist()
    assert (manifest["rows_in"], manifest["dropped"], manifest["merged"], manifest["rows"]) == (302, 1, 1, 300)
    assert {r["question"] for r in rows} == {words(n) for n in range(300)}
    assert Counter(len(r["answers"]) for r in rows) == {1: 299, 2: 1}
    assert next(r["answers"] for r in rows if r["question"] == words(0)) == ["a0", "b"]
    assert set(table.read(part="pool")["split"].to_pylist()) == {"pool"}
    assert [s["rows"] for s in manifest["sources"]] == [201, 101]
    (dropped,) = [r for f in (tmp_path / "dropped").iterdir() for r in pq.read_table(f).to_pylist()]
    assert (Path(dropped["file"]).name, dropped["row"], dropped["problem"]) == ("0.jsonl", 201, "is not JSON")


def test_more_rows_than_are_held_at_once_keep_their_order_and_answers(tmp_path: Path) -> None:
    count = CHUNK + 50
    rows = [{"question": f"q{n}", "answers": [str(n)]} for n in range(count)]
    table = prepared(tmp_path, [*rows, {"question": "q3", "answers": ["again"]}], near_duplicates=1)
    found = {r["question"]: r["answers"] for r in table.read(["question", "answers"]).to_pylist()}
    assert found == {f"q{n}": [str(n)] for n in range(count)} | {"q3": ["3", "again"]}


def test_alike_questions_share_a_split_and_which_it_is_follows_the_seed(tmp_path: Path) -> None:
    alike = [{"question": f"Who sang the national anthem at the super bowl of {y}?"} for y in range(2001, 2031)]
    (tmp_path / "a").mkdir()
    table = prepared(tmp_path / "a", questions(100) + alike)
    rows = table.read(["question", "entity", "split"]).to_pylist()
    together = {(r["entity"], r["split"]) for r in rows if "anthem" in r["question"]}
    assert len(together) == 1
    assert table.manifest()["near_duplicates"] == 29
    assert len({r["split"] for r in rows}) == 3
    splits = set()
    for seed in range(8):
        (tmp_path / str(seed)).mkdir()
        other = (
            prepared(tmp_path / str(seed), questions(100) + alike, seed=seed).read(["question", "split"]).to_pylist()
        )
        splits |= {r["split"] for r in other if "anthem" in r["question"]}
    assert len(splits) > 1


def test_the_corpus_own_ids_must_differ_over_all_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"0\.jsonl row 2 and .*1\.jsonl row 1 share the id 'x'; ids must differ"):
        prepared(
            tmp_path,
            [{"id": "y", "question": "One?"}, {"id": "x", "question": "Two?"}],
            [{"id": "x", "question": "Three?"}],
        )


def test_a_question_that_is_listed_twice_under_its_id_is_one_with_the_answers_of_both(tmp_path: Path) -> None:
    """TriviaQA's `rc.nocontext` has each question once for its web pages and once for Wikipedia's."""
    twice = [{"id": f"tc_{n}", "question": words(n), "answers": [f"a{n}", "z"][: n % 3]} for n in range(40)]
    table = prepared(
        tmp_path,
        [{"id": "x", "question": "Who is it?", "answers": ["Ann"]}, *twice],
        [
            {"id": "x", "question": " who is IT", "answers": ["Anna", "Ann"]},
            *twice,
        ],
    )
    manifest, rows = table.manifest(), {r["id"]: r["answers"] for r in table.read().to_pylist()}
    assert (manifest["rows_in"], manifest["merged"], manifest["rows"]) == (82, 41, 41)
    assert rows == {"x": ["Ann", "Anna"]} | {r["id"]: r["answers"] for r in twice}


def test_the_shipped_triviaqa_configuration_reads_its_own_data_set(tmp_path: Path) -> None:
    rows = [
        {"question": words(n), "question_id": f"tc_{n}", "answer": {"value": f"a{n}", "aliases": [f"A {n}", None]}}
        for n in range(300)
    ]
    pq.write_table(pa.Table.from_pylist(rows + rows[:200]), tmp_path / "train.parquet")
    config = load_config(ROOT / "jobs/configs/triviaqa-llama3.1-8b.yaml", [f"corpus.source={tmp_path}/*.parquet"])
    found = preview(config, with_tokens=False)
    assert (found.rows, found.merged, found.questions, found.set_aside, found.lost) == (500, 200, 300, 5, 0)
    assert found.with_gold == found.questions


def test_a_column_may_be_missing_in_some_rows_but_not_in_all(tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    table = prepared(tmp_path / "some", [{"id": "x"}, *questions(50)])
    assert (table.manifest()["dropped"], table.rows) == (1, 50)
    with pytest.raises(ConfigError, match=r"row 1: no column question; there are text, id"):
        prepared(tmp_path, [{"text": "Why?"}, {"id": 1, "text": "Who?"}])


def test_equal_questions_with_ids_of_their_own_are_both_kept_in_one_split(tmp_path: Path) -> None:
    table = prepared(
        tmp_path, [*questions(50), {"id": "x", "question": "The same?"}, {"id": "y", "question": "the same"}]
    )
    rows = {r["id"]: r for r in table.read().to_pylist()}
    assert rows["x"]["split"] == rows["y"]["split"]
    assert table.manifest()["merged"] == 0


def test_solved_examples_are_taken_from_the_probe_split_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    rows = [*questions(100), *({"question": words(n)} for n in range(100, 120))]
    without, table = prepared(tmp_path / "a", rows), prepared(tmp_path / "b", rows, shots=5)
    aside = table.read(part=schema.SHOTS).to_pylist()
    assert len(aside) == 5
    assert all(r["answers"] for r in aside)
    ids = {part: set(table.read(["id"], part=part)["id"].to_pylist()) for part in schema.SPLITS}
    before = {part: set(without.read(["id"], part=part)["id"].to_pylist()) for part in schema.SPLITS}
    assert (ids["pool"], ids["eval"]) == (before["pool"], before["eval"])
    assert ids["probe"] | {r["id"] for r in aside} == before["probe"]


TEXTS = st.lists(st.text("abcde ", min_size=8, max_size=40), min_size=1, max_size=12)


@given(TEXTS)
def test_groups_join_equal_texts_and_name_the_first(texts: list[str]) -> None:
    found = groups(signatures(texts), texts, 1.0)
    for i, text in enumerate(texts):
        assert found[i] <= i
        assert found[i] == found[texts.index(text)]


@pytest.fixture(scope="module")
def indexed() -> tuple[list[str], np.ndarray]:
    """N texts, and the Jaccard index of every pair (N, N)."""
    texts = [*templated(), *real(300)]
    pieces = [ngrams(t) for t in texts]
    index = np.eye(len(texts))
    for i, a in enumerate(pieces):
        for j in range(i):
            shared = len(a & pieces[j])
            index[i, j] = index[j, i] = shared / (len(a) + len(pieces[j]) - shared)
    return texts, index


@pytest.mark.parametrize("threshold", [0.7, 0.8, 0.9])
def test_groups_are_those_of_the_exact_index_over_all_pairs(
    indexed: tuple[list[str], np.ndarray], threshold: float
) -> None:
    """But for pairs within 0.02 above the threshold, which the signatures may miss, and never one below it."""
    texts, index = indexed
    found = groups(signatures(texts), texts, threshold)
    assert (index[np.triu_indices(len(texts), 1)] >= threshold).sum() > 40, "too few alike pairs to tell anything"
    for a, b in zip(*np.nonzero(index >= threshold + 0.02), strict=True):
        assert found[a] == found[b], (texts[a], texts[b])
    chains = exact_groups(index >= threshold)
    for n, group in enumerate(found):
        assert chains[n] == chains[group], (texts[n], texts[group])


def exact_groups(alike: np.ndarray) -> np.ndarray:
    """Connected components of (N, N), each named by its lowest row."""
    names = np.arange(len(alike))
    while (lower := np.where(alike, names[None, :], len(alike)).min(1)).tolist() != names.tolist():
        names = lower
    return names


def test_more_rows_than_are_compared_share_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"what is the name of the thing called {n % 40:05d} {n % 40:05d} x{n // 40}" for n in range(120)]
    monkeypatch.setattr("ka2l_ray.text.duplicates.COMPARED", 16)
    found = groups(signatures(texts), texts, 0.8)
    assert all(found[n] == found[n % 40] for n in range(120))


def test_signatures_estimate_the_jaccard_index() -> None:
    """Over many pairs the share of equal values is the index, within the error of 64 draws."""
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(60):
        text = "".join(rng.choice(list("abcdefgh "), 60))
        other = text[: (cut := int(rng.integers(5, 55)))] + "".join(rng.choice(list("abcdefgh "), 60 - cut))
        a, b = ngrams(text), ngrams(other)
        one, two = signatures([text, other])
        errors.append(float(np.mean(one == two)) - len(a & b) / len(a | b))
    assert one.shape == (PERMUTATIONS,)
    assert abs(np.mean(errors)) < 0.02
    assert np.std(errors) < 2 * 0.5 / PERMUTATIONS**0.5


def test_what_is_held_at_once_is_bounded_in_characters_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ka2l_ray.corpus.prepare.CHUNK_CHARACTERS", 2_000)
    table = prepared(tmp_path, questions(300))
    assert len(list((tmp_path / "scratch").iterdir())) > 5
    assert {r["question"] for r in table.read().to_pylist()} == {words(n) for n in range(300)}


def test_a_column_that_is_not_asked_for_is_not_read(tmp_path: Path) -> None:
    """Its bytes are broken, so that reading them would fail."""
    path = tmp_path / "0.parquet"
    pq.write_table(pa.Table.from_pylist([q | {"page": f"{n} " * 1000} for n, q in enumerate(questions(200))]), path)
    pages = pq.read_metadata(path).row_group(0).column(2)
    assert pages.path_in_schema == "page"
    data = bytearray(path.read_bytes())
    start = pages.dictionary_page_offset or pages.data_page_offset
    data[start : start + pages.total_compressed_size] = bytes(pages.total_compressed_size)
    path.write_bytes(data)
    with pytest.raises(OSError, match="page"):
        pq.read_table(path)
    corpus, folder = CorpusSection(source=str(path)), Folder.of(str(tmp_path))
    assert parse_file(files_of(corpus.source, corpus.hub)[0], corpus, folder, folder / "dropped", "0").rows == 200
