"""Builds the real corpus that comes with the package, `corpus.source: wikifacts`.

`python tests/build_wikifacts.py FOLDER` reads `entityquestions_dev.jsonl` and `popqa_merged.jsonl` in FOLDER and writes
`ka2l_ray/corpus/wikifacts/questions.jsonl.gz`: the same bytes from the same files.

Rows are chosen by relation and popularity, never by what a model answered to a single question. Relations were chosen
by SmolLM2-135M's share right on 40 rows of each, six-shot, which left out P159 (headquarters: 0.03). Of PopQA's rows,
the most popular subjects (`s_pop`) come first; EntityQuestions, which has no popularity, is taken in the order of a
hash. No gold answer, aliases included, answers more than a tenth of its relation's rows, so that the most common answer
knows nothing.
"""

import gzip
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ka2l_ray.corpus.relations import subject
from ka2l_ray.corpus.rewordings import our_templates, repeated_wording
from ka2l_ray.hashing import uniform
from ka2l_ray.text.grading import normalize

OUTPUT = Path(__file__).parents[1] / "ka2l_ray/corpus/wikifacts/questions.jsonl.gz"
MOST_OF_A_RELATION = 0.1
"""Share of a relation's rows that one gold answer may hold."""
LONGEST_QUESTION = 120
"""Characters."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Relation:
    """A topic of the corpus: a relation of one data set, and how many of its rows are taken at most."""

    group: str
    source: str
    name: str
    most: int


RELATIONS = (
    Relation("country of a place", "entity_questions", "P17", 900),
    Relation("language of a work", "entity_questions", "P407", 600),
    Relation("country of origin", "entity_questions", "P495", 400),
    Relation("manufacturer", "entity_questions", "P176", 700),
    Relation("capital", "popqa", "capital", 100),
    Relation("country", "popqa", "country", 100),
)


def entity_questions(folder: Path, relation: str) -> Iterator[Row]:
    """Rows of one relation, in the order of a hash."""
    lines = (folder / "entityquestions_dev.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [r for line in lines if (r := json.loads(line))["relation"] == relation]
    for row in sorted(rows, key=lambda r: uniform("wikifacts", r["question"])):
        yield row | {"entity": subject(row["question"], relation)}


def popqa(folder: Path, relation: str) -> Iterator[Row]:
    """Rows of one relation, the most popular subjects first."""
    lines = (folder / "popqa_merged.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [r for line in lines if (r := json.loads(line))["prop"] == relation and r["subj"]]
    for row in sorted(rows, key=lambda r: (-r["s_pop"], r["question"])):
        yield row | {"entity": row["subj"]}


SOURCES = {"entity_questions": entity_questions, "popqa": popqa}


def questions(rows: Iterable[Row], relation: Relation) -> Iterator[Row]:
    """The usable rows, each question once, in the columns of `corpus.format: generic`."""
    templates, seen = our_templates()[relation.source][relation.name], set[str]()
    for row in rows:
        entity, asked, answers = row["entity"], row["question"], list(dict.fromkeys(a for a in row["answers"] if a))
        if entity is None or len(asked) > LONGEST_QUESTION or not answers or normalize(asked) in seen:
            continue
        if any(f" {normalize(a)} " in f" {normalize(asked)} " for a in answers):
            continue  # it contains its answer, so a right one shows no knowledge
        wordings = [t.replace("{entity}", entity) for t in templates]
        if repeated_wording(asked, wordings) is None:
            seen.add(normalize(asked))
            yield {
                "question": asked,
                "answers": answers,
                "group": relation.group,
                "entity": entity,
                "rewordings": wordings,
            }


def capped(rows: Iterable[Row], most: int) -> list[Row]:
    """At most `most` of the rows, from the first on, so that no answer is one of more than its share of them."""
    rows, wanted = list(rows), most
    while wanted:
        each = int(wanted * MOST_OF_A_RELATION)
        counts, taken = Counter[str](), list[Row]()
        for row in rows:
            answers = {normalize(a) for a in row["answers"]}
            if len(taken) < wanted and all(counts[a] < each for a in answers):
                counts.update(answers)
                taken.append(row)
        if len(taken) == wanted:
            return taken
        wanted = len(taken) if each else 0
    return []


def build(folder: Path, relations: Iterable[Relation] = RELATIONS) -> list[Row]:
    """All rows of the corpus."""
    found = []
    for relation in relations:
        found += capped(questions(SOURCES[relation.source](folder, relation.name), relation), relation.most)
    return found


def written(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """The compressed file; no time is stored in it."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return gzip.compress(text.encode(), compresslevel=9, mtime=0)


if __name__ == "__main__":
    made = build(Path(sys.argv[1]))
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_bytes(written(made))
    sys.stdout.write(f"{len(made):,} rows, {OUTPUT.stat().st_size:,} bytes\n")
    for group, count in Counter(r["group"] for r in made).items():
        sys.stdout.write(f"  {group}: {count}\n")
