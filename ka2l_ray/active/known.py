"""Which facts the base model knows, and the noise floor of losses and gains: asked once per run.

In: a run whose base model is evaluated. Out: `base/known` and, where the prompt has solved examples,
`base/noise_floor`.
Refuses to know: rounds, how a class follows from answers (`forgetting`).
Samples are drawn only of what is right greedily in every wording: nothing else can be known. No strategy pays for any
of it.
"""

from collections.abc import Mapping, Set
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ka2l_ray import schema
from ka2l_ray.active.evaluation import evaluation_stage
from ka2l_ray.active.forgetting import class_of
from ka2l_ray.corpus.again import eval_scope
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.stage import run_stage
from ka2l_ray.models.prompts import finetune_prompt, other_shots_prompt

Row = dict[str, Any]
"""A row of an evaluation."""


def find_known(run: Run) -> None:
    """Write both tables, unless they are done."""
    if not run.base("known").is_done:
        _classify(run)
    if not run.base("noise_floor").is_done:
        _ask_after_other_shots(run)


def _classify(run: Run) -> None:
    scope = eval_scope(run.config)
    names = ["id", "scope", "fact_id", "answers", "correct"]
    evaluated = [r for batch in run.base("evaluation").batches(names) for r in batch.to_pylist() if r["answers"]]
    same = {r["fact_id"]: r["correct"] for r in evaluated if r["scope"] == "same"} if scope == "pool" else {}
    rows, name = [r for r in evaluated if r["scope"] == scope], "fact_id" if scope == "pool" else "id"
    right = {r["id"]: [r["correct"], *([same.get(r["fact_id"])] if same else [])] for r in rows}
    asked = _ask_again(run, name, {r[name] for r in rows if all(right[r["id"]])})
    found = [
        {"id": r["id"], "fact_id": r["fact_id"], "class": kind, "samples_right": again.get("samples_right")}
        for r, again in ((r, asked.get(r[name], {})) for r in rows)
        if (kind := class_of([*right[r["id"]], again.get("correct")], again.get("samples_right")))
    ]
    spent = {"questions": len(asked), "samples": sum(len(r["samples"]) for r in asked.values())}
    run.base("known").write((None, pa.Table.from_pylist(found, schema=schema.KNOWN)), **spent)


def _ask_again(run: Run, name: str, wanted: Set[str]) -> Mapping[str, Row]:
    """Greedy answers and samples by `name`: of pool questions where that is `fact_id`, of eval questions where it is
    `id`; without failed rows."""
    target, part = run.base("known/asked_again"), "pool" if name == "fact_id" else "eval"
    source = _questions(run, Table(target.folder / "questions"), part, name, wanted)
    run_stage(evaluation_stage(run, None, finetune_prompt(run), "asked_again"), source, target)
    columns = [*dict.fromkeys(("id", name)), "correct", "samples", "samples_right", "error"]
    rows = (r for batch in target.batches(columns) for r in batch.to_pylist())
    return {r[name]: r for r in rows if r["error"] is None}


def _ask_after_other_shots(run: Run) -> None:
    """Ask the base model once more what it knows and what it answers wrong; nothing where no other examples can be
    shown."""
    if (prompt := other_shots_prompt(run)) is None:
        return
    rows = run.base("known").read(["id", "class"]).to_pylist()
    target, asked = run.base("noise_floor"), {r["id"] for r in rows if r["class"] != "shaky"}
    source = _questions(run, Table(target.folder / "questions"), "eval", "id", asked)
    run_stage(evaluation_stage(run, None, prompt, "noise_floor"), source, target)


def _questions(run: Run, table: Table, part: str, name: str, wanted: Set[str]) -> Table:
    """The table, written unless it is there: rows of a part of `questions` whose column `name` is one of `wanted`."""
    if not table.is_done:
        values = pa.array(sorted(wanted), pa.string())
        batches = run.table("questions").batches(part=part)
        rows = [r for b in batches for r in b.filter(pc.is_in(b[name], values)).to_pylist()]  # pyright: ignore
        table.write((None, pa.Table.from_pylist(rows, schema=schema.QUESTIONS)))
    return table
