"""`make bench-grading DATA=FOLDER`: grading against people's judgements of answers of real systems.

In: a folder with `evouna_nq.json` (EVOUNA: answers of five systems to Natural Questions, Wang et al., 2023; rows marked
improper are left out) and `efficientqa_judged_pairs.jsonl` (short answers that are in no gold list, Min et al., 2021;
possibly correct counts as right), each from its authors' repository. Out: `results/grading.json` and a table:
precision, recall and accuracy by system. The rules were developed on the questions of half 0; half 1 is what to report.
The halves are those of a hash of the question. `plain` is the usual way: a gold answer's words in an answer's after
removal of case, accents, punctuation and articles.
"""

import argparse
import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from ka2l_ray.text.grading import Grading, grade

RESULTS = Path(__file__).parent / "results" / "grading.json"
SYSTEMS = ("fid", "gpt35", "chatgpt", "gpt4", "newbing")


class Judged(NamedTuple):
    """An answer that people judged."""

    system: str
    question: str
    gold: tuple[str, ...]
    answer: str
    right: bool


def evouna(folder: Path) -> Iterator[Judged]:
    """Answers with a judgement to proper questions."""
    for row in json.loads((folder / "evouna_nq.json").read_text()):
        for system in SYSTEMS:
            answer, right = row[f"answer_{system}"], row[f"judge_{system}"]
            if not row["improper"] and answer is not None and right is not None:
                yield Judged(system, row["question"], tuple(row["golden_answer"].split("/")), answer, right)


def efficientqa(folder: Path) -> Iterator[Judged]:
    """Pairs of the EfficientQA competition, as one system."""
    for line in (folder / "efficientqa_judged_pairs.jsonl").read_text().splitlines():
        row = json.loads(line)
        right = row["judgement"] != "definitely_incorrect"
        yield Judged("efficientqa", row["question"], tuple(row["gold"]), row["prediction"], right)


def half_of(question: str) -> int:
    """0 or 1, by the question's hash."""
    return int(hashlib.sha256(question.encode()).hexdigest(), 16) % 2


def plain(answer: str, gold: Sequence[str]) -> bool:
    """Whether an answer's bare words contain those of a gold answer."""
    said = f" {_bare(answer)} "
    return any(f" {words} " in said for words in map(_bare, gold) if words)


def _bare(text: str) -> str:
    letters = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).casefold()
    return " ".join(re.sub(r"\b(?:a|an|the)\b", " ", re.sub(r"[^\w\s]", " ", letters)).split())


def figures(rows: Sequence[Judged], is_right: Callable[[str, Sequence[str]], bool | None]) -> dict[str, float]:
    """Precision, recall and accuracy over all rows, with their number."""
    graded = [(bool(is_right(r.answer, r.gold)), r.right) for r in rows]
    both = sum(said and true for said, true in graded)
    return {
        "rows": len(rows),
        "precision": round(both / max(sum(said for said, _ in graded), 1), 3),
        "recall": round(both / max(sum(true for _, true in graded), 1), 3),
        "accuracy": round(fmean(said == true for said, true in graded), 3),
    }


def graders() -> Mapping[str, Callable[[str, Sequence[str]], bool | None]]:
    """What is compared."""
    kinds = [Grading("exact"), Grading("contains"), Grading("f1")]
    return {"plain": plain, **{g.kind: partial(grade, grading=g) for g in kinds}}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path)
    folder = arguments.parse_args().folder
    judged = [*evouna(folder), *efficientqa(folder)]
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for half in (0, 1):
        rows = [r for r in judged if half_of(r.question) == half]
        parts = {s: [r for r in rows if r.system == s] for s in (*SYSTEMS, "efficientqa")}
        parts["evouna"] = [r for r in rows if r.system != "efficientqa"]
        for name, is_right in graders().items():
            table = {part: figures(of_part, is_right) for part, of_part in parts.items()}
            table["evouna"]["mean_accuracy"] = round(fmean(table[s]["accuracy"] for s in SYSTEMS), 3)
            found.setdefault(f"half {half}", {})[name] = table
            print(f"\nhalf {half}, {name}: mean accuracy on EVOUNA {table['evouna']['mean_accuracy']:.3f}")
            for part, values in table.items():
                print(f"  {part:12}", *(f"{key} {value:<7}" for key, value in values.items()))
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
