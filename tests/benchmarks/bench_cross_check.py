"""`make saving`'s trainings, a few of them on Ray Train and DeepSpeed: the study's one process stands for the product.

In: share 0.5, seed 0 of the saving study. Out: `results/saving_cross_check.json`: for random's whole budget and for
the two budgets of `ka2l` between which it reaches random's accuracy, what two ZeRO-2 workers of
`ka2l_ray.finetune.train` give on the same examples in the same order, next to what the study's own loop gives, and the
saving that follows from each. One draw each, so the saving is that of a draw.
"""

import json
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
from bench_saving import POOL, RANDOM_BUDGET, RECIPE, REPLAYED
from world_lab import Lab, Setting

from ka2l_ray.active.saving import annotations_to_reach
from ka2l_ray.config import Config, FinetuneSection, Strategy
from ka2l_ray.dataflow.cluster import connect
from ka2l_ray.dataflow.log import set_up_logging
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.finetune.examples import Example
from ka2l_ray.finetune.job import Job
from ka2l_ray.finetune.train import finetune
from ka2l_ray.models.loading import load_model
from ka2l_ray.world.facts import build_world
from ka2l_ray.world_model.pretrain import PROMPT

RESULT = Path(__file__).parent / "results" / "saving_cross_check.json"
SEED = 0
POINTS: tuple[tuple[Strategy, int], ...] = (("random", RANDOM_BUDGET), ("ka2l", 150), ("ka2l", 180))
LAST_STEPS = 25


def on_deepspeed(
    lab: Lab, examples: list[Example], section: FinetuneSection, folder: Path, name: str
) -> tuple[Any, list[float]]:
    """The tuned model and its losses; ids follow the order of `examples`, from which batches are drawn."""
    rows = [
        {
            "id": f"{n:05d}",
            "question": e.question,
            "answers": list(e.answers),
            "source": "replay" if e.replayed else "annotation",
        }
        for n, e in enumerate(examples)
    ]
    table = Table(Folder.of(str(folder / f"{name}-examples")))
    table.write((None, pa.Table.from_pylist(rows)))
    job = Job(lab.model_section, PROMPT, section, table, Folder.of(str(folder / name / "model")), SEED)
    losses = finetune(job, name)["losses"]
    return load_model(lab.model_section, adapter=job.output.path), losses


def main() -> None:
    set_up_logging()
    connect(Config())
    lab = Lab(Setting(0.5, SEED, POOL, misconceptions=True), build_world())
    points: list[dict[str, Any]] = []
    for strategy, budget in POINTS:
        bought = lab.bought(strategy, budget, SEED)
        examples, replayed = lab.examples(bought, RECIPE, REPLAYED)
        with tempfile.TemporaryDirectory() as folder:
            tuned, losses = on_deepspeed(lab, examples, RECIPE, Path(folder), f"{strategy}-{budget}")
        models = {"deepspeed": tuned, "one_process": lab.train(examples, RECIPE, SEED)}
        figures = {side: lab.figures(model, bought, replayed) for side, model in models.items()}
        kept = ("accuracy", "known_never_replayed", "taught_same_phrasing", "taught_other_phrasing")
        point = {side: {name: f[name] for name in kept} for side, f in figures.items()}
        points.append({"strategy": strategy, "annotations": budget, "last_loss": fmean(losses[-LAST_STEPS:])} | point)
        print(json.dumps(points[-1]), flush=True)
    savings = {}
    for side in ("deepspeed", "one_process"):
        target = points[0][side]["accuracy"]
        curve = [(0, lab.base_accuracy()), *((p["annotations"], p[side]["accuracy"]) for p in points[1:])]
        reached = annotations_to_reach(curve, target)
        savings[side] = None if reached is None else 1 - reached / RANDOM_BUDGET
    found = {
        "command": "python tests/benchmarks/bench_cross_check.py",
        "share": 0.5,
        "seed": SEED,
        "points": points,
        "saving": savings,
    }
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    print(savings)


if __name__ == "__main__":
    main()
