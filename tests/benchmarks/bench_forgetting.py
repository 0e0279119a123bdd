"""`make forgetting`: what fine-tuning on bought questions does to what the model knew, by recipe.

In: the shipped world model, in one process per core (`world_lab`). Out: `results/forgetting.json`, written recipe by
recipe, so that a stopped run continues where it stopped. Half of the unknown is bought by `ka2l` at unknown share 0.5,
misconceptions and rare facts present.
"""

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from world_lab import Lab, Setting

from ka2l_ray.config import FinetuneSection, LoraSection, ReplaySection
from ka2l_ray.world.facts import build_world

RESULTS = Path(__file__).parent / "results" / "forgetting.json"
SEEDS = (0, 1, 2)
BUDGET = 200
PLAIN = ReplaySection(ratio=1.5)


def setting(seed: int) -> Setting:
    """Many facts that no pool question asks: some known ones stay untouched even where all of the pool is replayed."""
    return Setting(0.5, seed, pool_questions=800, probe_questions=1100, domain_questions=200, misconceptions=True)


def _tune(**changes: Any) -> FinetuneSection:
    replay = PLAIN.model_copy(update=changes.pop("replay", {}))
    return FinetuneSection(replay=replay).model_copy(update=changes)


def _lora(
    learning_rate: float, epochs: int, kl_weight: float, ratio: float = 2.0, rank: int = 64, rows: int = 32
) -> FinetuneSection:
    lora, replay = LoraSection(rank=rank, alpha=2 * rank), {"kl_weight": kl_weight, "ratio": ratio}
    return _tune(mode="lora", learning_rate=learning_rate, epochs=epochs, lora=lora, replay=replay, batch_rows=rows)


RECIPES = {
    "no replay": _tune(replay={"ratio": 0.0}),
    "replay of predicted known only, greedy answers": _tune(replay={"unknown_share": 0.0, "source": "greedy"}),
    "replay of both classes, T = 1 samples": _tune(),
    "the same, ratio 0.5": _tune(replay={"ratio": 0.5}),
    "the same, lr 2e-4, 40 epochs": _tune(learning_rate=2e-4, epochs=40),
    "KL 1": _tune(replay={"kl_weight": 1.0}),
    "KL 4": _tune(replay={"kl_weight": 4.0}),
    "KL 1, lr 2e-4, 40 epochs": _tune(replay={"kl_weight": 1.0}, learning_rate=2e-4, epochs=40),
    "KL 1, ratio 3": _tune(replay={"kl_weight": 1.0, "ratio": 3.0}),
    "LoRA rank 16, lr 2e-3": _lora(2e-3, 25, 0.0, ratio=1.5, rank=16),
    "KL 1, ratio 2": _tune(replay={"kl_weight": 1.0, "ratio": 2.0}),
    "LoRA rank 16, lr 2e-3, KL 1": _lora(2e-3, 25, 1.0, ratio=1.5, rank=16),
    "LoRA rank 16, lr 1e-3, 60 epochs, KL 4, ratio 2": _lora(1e-3, 60, 4.0, rank=16),
    "LoRA rank 64, lr 5e-3, KL 4": _lora(5e-3, 25, 4.0, ratio=1.5),
    "LoRA rank 64, lr 3e-4, 60 epochs, KL 4, ratio 2": _lora(3e-4, 60, 4.0),
    "LoRA rank 64, lr 5e-4, 60 epochs, KL 16, ratio 2": _lora(5e-4, 60, 16.0),
    "LoRA rank 64, lr 4e-4, 60 epochs, KL 16, ratio 2": _lora(4e-4, 60, 16.0),
    "LoRA rank 64, lr 1e-3, 40 epochs, KL 8, ratio 2": _lora(1e-3, 40, 8.0),
    "LoRA rank 32, lr 2e-3, 20 epochs, batch 16, KL 8, ratio 2": _lora(2e-3, 20, 8.0, rank=32, rows=16),
    "LoRA rank 32, lr 1.5e-3, 20 epochs, batch 16, KL 8, ratio 2 (world.yaml)": _lora(
        1.5e-3, 20, 8.0, rank=32, rows=16
    ),
}
"""From `_tune()`: full weights, lr 5e-4, 25 epochs, batch 32, 1.5 replayed per annotation, half of each class."""


def measure(piece: tuple[str, int]) -> tuple[str, dict[str, Any]]:
    """One training: a recipe on one seed."""
    torch.set_num_threads(1)
    name, seed = piece
    started = time.monotonic()
    lab, recipe = Lab(setting(seed), build_world()), RECIPES[name]
    bought = lab.bought("ka2l", BUDGET, seed)
    examples, replayed = lab.examples(bought, recipe, round(recipe.replay.ratio * BUDGET))
    model = lab.train(examples, recipe, seed)
    figures = lab.figures(model, bought, replayed) | {
        "replayed": len(replayed),
        "entropy_auroc": lab.entropy_auroc_untouched(model),
    }
    return f"{name} / seed {seed}", figures | {"seconds": round(time.monotonic() - started, 1)}


def summarize(parts: dict[str, Any]) -> dict[str, Any]:
    """Mean and range over seeds of what the table shows."""
    shown = (
        "known_never_replayed",
        "taught_same_phrasing",
        "taught_other_phrasing",
        "accuracy",
        "entropy_auroc",
        "known_replayed",
    )
    found: dict[str, Any] = {}
    for name in RECIPES:
        runs = [p for s in SEEDS if (p := parts.get(f"{name} / seed {s}"))]
        columns = {k: [r[k] for r in runs if r[k] is not None] for k in shown}
        found[name] = {"seeds": len(runs)} | {k: [float(np.mean(v)), min(v), max(v)] for k, v in columns.items() if v}
    return found


def main() -> None:
    """Measure what is missing. Arguments: number of processes, then names of recipes (all when left out)."""
    processes = int(sys.argv[1]) if len(sys.argv) > 1 else os.cpu_count() or 1
    wanted = sys.argv[2:] or list(RECIPES)
    results = (
        json.loads(RESULTS.read_text())
        if RESULTS.exists()
        else {"command": "make forgetting", "budget": BUDGET, "parts": {}}
    )
    pieces = [(n, s) for s in SEEDS for n in wanted if f"{n} / seed {s}" not in results["parts"]]
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=4) as pool:
        for done, (key, figures) in enumerate(pool.imap_unordered(measure, pieces), 1):
            results["parts"][key] = figures
            results["summary"] = summarize(results["parts"])
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            print(
                f"{done}/{len(pieces)} {key}: known {figures['known_never_replayed']:.3f}, "
                f"taught {figures['taught_other_phrasing']:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
