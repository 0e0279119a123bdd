"""`make saving`: how many annotations each strategy saves against random choice, on worlds of known truth.

In: the shipped world model (and one rebuilt for one seed), in one process per core (`world_lab`). Out:
`results/saving/*.json`, one file per unknown share and seed, rewritten training by training, so that a stopped run
continues where it stopped; `results/saving.json`, the summary. A seed varies split, samples, probe and training.
Random's full budget n_r is half of the pool; `oracle` buys truly unknown facts. With independent facts and perfect
selection the saving is the known share of the pool: that is the ceiling, not 50 %. Where training makes the model
forget (share 0.8, where most of a pool is taught at once), random's target sinks too, and a saving can pass that
line a little.
"""

import json
import multiprocessing
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from matplotlib.axes import Axes
from world_lab import Lab, Setting

from ka2l_ray.active.saving import annotations_to_reach
from ka2l_ray.config import AcquireSection, FinetuneSection, ReplaySection, Strategy
from ka2l_ray.models.loading import WORLD_MODEL
from ka2l_ray.report.canvas import BLUE, GREY, ORANGE, Drawing, legend
from ka2l_ray.world.facts import WorldRecipe, build_world
from ka2l_ray.world_model.recipes import built_hash

FOLDER = Path(__file__).parent / "results" / "saving"
SUMMARY, FIGURE = FOLDER.parent / "saving.json", FOLDER.parent / "saving.svg"
BAR_MEAN, BAR_SEED = 0.95, 0.88
POOL = 600
RANDOM_BUDGET = POOL // 2
REPLAYED = 200
DRAW_STRIDE = 1000
RECIPE = FinetuneSection(replay=ReplaySection(kl_weight=1.0))
CORE: tuple[Strategy, ...] = ("random", "oracle", "ka2l")
OTHERS: tuple[Strategy, ...] = ("entropy", "likelihood", "coreset", "ka2l_diverse", "quadrant")
ACQUIRE = AcquireSection(quadrants=("misconception", "unknown"))
DRAWS_OF = {"random": 3, "oracle": 2, "ka2l": 2}
"""Training runs of each point: three independent draws of `random` (as the saving is defined), two of the others."""
FACTORS = {"plain": (0.9, 1.1, 1.3, 1.6), "misconceptions": (1.0, 1.2, 1.4, 1.7, 2.0), "others": (1.0, 1.2, 1.7)}
"""Where curves are measured, in multiples of the annotations that perfect selection would need; a curve ends once it
reaches random's accuracy."""


@dataclass(frozen=True)
class Case:
    """One seed at one unknown share, for the core strategies or the others; `rebuilt` names another seed's world."""

    share: float
    seed: int
    part: Literal["core", "others"] = "core"
    rebuilt: int | None = None

    @property
    def name(self) -> str:
        return f"share_{self.share:g}_seed_{self.seed}" + (f"_world_{self.rebuilt}" if self.rebuilt is not None else "")

    @property
    def file(self) -> Path:
        return FOLDER / f"{self.name}_{self.part}.json"


CASES = (
    *(Case(0.5, s) for s in (0, 1, 2)),
    *(Case(share, s) for share in (0.8, 0.2) for s in (0, 1, 2)),
    *(Case(0.5, s) for s in (3, 4)),
    *(Case(0.5, s, "others") for s in (0, 1, 2)),
    Case(0.5, 5, rebuilt=1),
)


def rebuilt_folder(seed: int) -> Path:
    """Where `ka2l world build --seed` put another world; it is not shipped."""
    return Path("runs") / f"world-{seed}" / "model"


def budgets(case: Case) -> list[int]:
    """Annotations at which a curve is measured, never more than random's."""
    factors = FACTORS["others" if case.part == "others" else "misconceptions" if case.share == 0.5 else "plain"]
    return list(dict.fromkeys(min(RANDOM_BUDGET, round(RANDOM_BUDGET * case.share * f)) for f in factors))


def run_case(case: Case) -> str:
    """Do what is missing of a case."""
    torch.set_num_threads(1)
    file = case.file
    record: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"trainings": {}}
    world = build_world(WorldRecipe(seed=case.rebuilt)) if case.rebuilt is not None else build_world()
    folder = rebuilt_folder(case.rebuilt) if case.rebuilt is not None else WORLD_MODEL
    setting = Setting(case.share, case.seed, POOL, misconceptions=case.share == 0.5)
    lab = Lab(replace(setting, model=str(folder)) if case.rebuilt is not None else setting, world)
    if "base" not in record:
        layer, fit, gamma, entropy_auroc = lab.probe
        record["base"] = {
            "accuracy": lab.base_accuracy(),
            "world_recipe": built_hash(folder),
            "layer": layer,
            "probe_auroc_vs_truth": fit.auroc_vs_truth,
            "entropy_auroc_vs_truth": entropy_auroc,
            "threshold_nats": gamma,
        }

    def accuracy(strategy: Strategy, budget: int) -> float:
        """Mean accuracy over the draws of one point, training what is missing."""
        keys = {d: f"{strategy}/{d}/{budget}" for d in range(DRAWS_OF.get(strategy, 1))}
        for draw, key in keys.items():
            if key not in record["trainings"]:
                record["trainings"][key] = figures = training(lab, strategy, budget, case.seed + DRAW_STRIDE * draw)
                store(case.file, record)
                print(
                    f"{case.name} {key}: accuracy {figures['accuracy']:.3f}, "
                    f"known {figures['known_never_replayed']:.3f}",
                    flush=True,
                )
        return fmean(record["trainings"][k]["accuracy"] for k in keys.values())

    if case.part == "core":
        record["target"] = accuracy("random", RANDOM_BUDGET)
    else:
        record["target"] = json.loads(replace(case, part="core").file.read_text())["target"]
    for strategy in CORE[1:] if case.part == "core" else OTHERS:
        for budget in budgets(case):
            if accuracy(strategy, budget) >= record["target"]:
                break
    record["done"] = True
    store(case.file, record)
    return f"{case.name} {case.part}"


def training(lab: Lab, strategy: Strategy, budget: int, seed: int) -> dict[str, Any]:
    """Buy, train, evaluate."""
    started = time.monotonic()
    bought = lab.bought(strategy, budget, seed, ACQUIRE)
    examples, replayed = lab.examples(bought, RECIPE, REPLAYED)
    figures = lab.figures(lab.train(examples, RECIPE, seed), bought, replayed)
    return figures | {"seconds": round(time.monotonic() - started, 1)}


def store(file: Path, record: dict[str, Any]) -> None:
    """Whole or not at all."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.replace(file)


def mean_curve(record: dict[str, Any], strategy: str) -> list[tuple[int, float]]:
    """Mean accuracy over draws at every budget measured, the base model at 0."""
    by_budget: dict[int, list[float]] = {0: [record["base"]["accuracy"]]}
    for key, figures in record["trainings"].items():
        name, _, budget = key.split("/")
        if name == strategy:
            by_budget.setdefault(int(budget), []).append(figures["accuracy"])
    return [(n, fmean(v)) for n, v in sorted(by_budget.items())]


def case_savings(record: dict[str, Any]) -> dict[str, float | None]:
    """Saving of every strategy by the design's definition: 1 - n_s / n_r."""
    target = dict(mean_curve(record, "random"))[RANDOM_BUDGET]
    strategies = dict.fromkeys(k.split("/")[0] for k in record["trainings"])
    found = {s: annotations_to_reach(mean_curve(record, s), target) for s in strategies if s != "random"}
    return {s: None if n is None else 1 - n / RANDOM_BUDGET for s, n in found.items()}


def summarize() -> dict[str, Any]:
    """Savings by share, seed and strategy, also as a part of the oracle's; a case counts when its core part is done."""
    shares: dict[str, Any] = {}
    for case in CASES:
        record = _whole(case)
        if record is None or case.part == "others":
            continue
        if case.share == 0.5 and case.rebuilt is None and (more := _whole(replace(case, part="others"))):
            record["trainings"] |= more["trainings"]
        saving = case_savings(record)
        oracle = saving["oracle"]
        entry = {
            s: {"saving": v, "of_oracle": None if v is None or not oracle else v / oracle} for s, v in saving.items()
        }
        curves = {s: mean_curve(record, s) for s in dict.fromkeys(k.split("/")[0] for k in record["trainings"])}
        shares.setdefault(f"{case.share:g}", {})[case.name] = {
            "strategies": entry,
            "curves": curves,
            "base": record["base"],
        }
    return {
        "command": "make saving",
        "pool": POOL,
        "random_budget": RANDOM_BUDGET,
        "ceiling": "known share",
        "shares": shares,
    }


def _whole(case: Case) -> dict[str, Any] | None:
    """A case's record once every training of it is there."""
    record = json.loads(case.file.read_text()) if case.file.exists() else {}
    return record if record.get("done") else None


def main() -> None:
    """Do what is missing; argument: number of processes. Ends with the summary and what is below the bar."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    processes = int(sys.argv[1]) if len(sys.argv) > 1 else os.cpu_count() or 1
    ready = [c for c in CASES if c.rebuilt is None or rebuilt_folder(c.rebuilt).exists()]
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=1) as pool:
        for name in pool.imap_unordered(
            run_case, ready
        ):  # in this order, so core parts are done before others ask for them
            SUMMARY.write_text(json.dumps(summarize(), indent=1) + "\n")
            print(f"{name} done", flush=True)
    summary = summarize()
    SUMMARY.write_text(json.dumps(summary, indent=1) + "\n")
    FIGURE.write_text(figure(summary).replace("<svg ", '<svg style="background:#fff;color:#000" ', 1))
    print_table(summary)
    missed = below_the_bar(summary)
    raise SystemExit("\n".join(missed) if missed else 0)


def below_the_bar(summary: dict[str, Any]) -> list[str]:
    """Promises not kept: at every share a mean of `BAR_MEAN` of the oracle's saving, no seed below `BAR_SEED`."""
    missed = []
    for share, cases in summary["shares"].items():
        ratios = {name: c["strategies"]["ka2l"]["of_oracle"] or 0.0 for name, c in cases.items()}
        if fmean(ratios.values()) < BAR_MEAN:
            missed.append(f"share {share}: ka2l saves {fmean(ratios.values()):.3f} of the oracle's, below {BAR_MEAN}")
        missed += [f"{name}: {r:.3f}, below {BAR_SEED}" for name, r in ratios.items() if r < BAR_SEED]
    return missed


def figure(summary: dict[str, Any]) -> str:
    """Saving against the known share of the pool: a dot per seed, and the diagonal of perfect selection."""

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
        axes.annotate("ceiling: the known share", (0.62, 0.66), rotation=33, color=GREY, fontsize=9)
        for strategy, color, marker, shift in (("oracle", ORANGE, "^", -0.012), ("ka2l", BLUE, "o", 0.012)):
            dots = [
                (1 - float(share) + shift, c["strategies"][strategy]["saving"])
                for share, cases in summary["shares"].items()
                for c in cases.values()
            ]
            axes.plot(
                *zip(*dots, strict=True),
                color=color,
                marker=marker,
                linestyle="none",
                markersize=6,
                alpha=0.8,
                label=strategy,
            )
        axes.set(xlabel="known share of the pool", ylabel="annotations saved against random", xlim=(0, 1), ylim=(0, 1))
        legend(axes, "lower", axes.get_legend_handles_labels()[0])

    return Drawing("saving", "Annotations saved against the known share of the pool", 4.2, paint).svg()


def print_table(summary: dict[str, Any]) -> None:
    for share, cases in summary["shares"].items():
        strategies = dict.fromkeys(s for c in cases.values() for s in c["strategies"])
        for s in strategies:
            entries = [c["strategies"][s] for c in cases.values() if s in c["strategies"]]
            savings = [e["saving"] for e in entries if e["saving"] is not None]
            ratios = [e["of_oracle"] for e in entries if e["of_oracle"] is not None]
            if not savings:
                print(f"share {share} {s}: never reached random's accuracy")
                continue
            print(
                f"share {share} {s}: saving {fmean(savings):.3f} ({min(savings):.3f} … {max(savings):.3f}), "
                f"of oracle {fmean(ratios):.3f} (lowest {min(ratios):.3f}), seeds {len(entries)}"
            )


if __name__ == "__main__":
    main()
