"""What `ka2l` shows on the terminal when a command ends.

In: a configuration, results, a preview. Out: tables and lines on stdout.
Refuses to know: commands, and how what it shows was computed.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.table import Table as RichTable

from ka2l_ray.config import Config, ConfigError
from ka2l_ray.results_schema import ComparisonResults, Measure, Results
from ka2l_ray.schema import ACCURACY_OVER

if TYPE_CHECKING:
    from ka2l_ray.corpus.preview import Preview

MOST_SHOWN = 20
"""Files, topics and gold answers that a preview names at most."""
COLUMNS: dict[Measure, str] = {
    "annotations": "bought",
    "cost": "cost",
    "accuracy": "accuracy",
    "domain_accuracy": "domain",
    "known_accuracy": "known",
    "replayed_accuracy": "replayed",
}
"""Columns of the table of rounds."""
Mean = Literal["saving", "of_oracle", "compute_saving", "area", "known_accuracy"]
COMPARED: tuple[Mean, ...] = ("saving", "of_oracle", "compute_saving", "area", "known_accuracy")
"""The means of a comparison, in the order of its columns."""


def print_plan(config: Config, cluster: Mapping[str, float] | None = None) -> None:
    """The plan of a dry run. `cluster`: its CPUs and GPUs, where there is one to join.

    Raises `ConfigError` with all problems of the plan once it is shown.
    """
    from ka2l_ray.planning.cost import size, storage_bytes
    from ka2l_ray.planning.plan import make_plan

    plan, console = make_plan(config, cluster), Console()
    shape, extent, title = plan.shape, plan.extent, f"{config.run.name}: nothing was run"
    table = RichTable("stage", "rows", "tokens read", "written", "memory", "storage", title=title)
    for line in plan.lines:
        counts = (f"{n:,}" if n else "–" for n in (line.rows, line.read_tokens, line.written_tokens))
        table.add_row(line.stage, *counts, *(size(n) if n else "–" for n in (line.memory_bytes, line.storage_bytes)))
    console.print(table)
    for line in plan.lines:
        memory = f"; memory of one: {line.memory_is}" if line.memory_is else ""
        _line(console, f"{line.stage:<11} {line.actors}: {line.does}{memory}")
    quantized = "" if shape.quantization == "none" else f" in {shape.quantization}"
    weights = f"{shape.parameters:,} parameters{quantized}, {size(shape.weight_bytes)} of weights"
    splits = ", ".join(f"{split} {n:,}" for split, n in extent.splits.items())
    shared = f"a prompt has {extent.shared:,} shared tokens, read once per actor"
    for name, text in {
        "model": f"{weights}, {size(shape.cache_bytes)} of cache per token; from {shape.source}",
        "corpus": f"{splits}; {shared}, and {extent.own:,} of its own on average; {extent.source}",
        "storage": f"about {size(storage_bytes(plan.lines))}",
        "price": f"{sum(line.price for line in plan.lines):,.10g} at most, in the unit of annotate.cost",
    }.items():
        _line(console, f"{name:<8} {text}")
    for note in plan.notes:
        _line(console, f"note     {note}", "yellow")
    if plan.problems:
        raise ConfigError("; ".join(plan.problems))


def print_retried(rows: dict[str, int], searched: bool) -> None:
    """What `--retry-errors` repeats: {table: failed rows}; `searched`: whether a probe was fitted without them."""
    console = Console()
    for name, count in rows.items():
        console.print(f"{name}: {count:,} failed rows are done again", highlight=False, markup=False)
    if not rows:
        console.print("no row has failed: nothing to do again")
    elif searched:
        console.print("γ and the probe stay as fitted without these rows; --redo label fits them again")


def print_results(folder: str, results: Results) -> None:
    """A row per round, the savings, and where results and report are."""
    console = Console()
    if results["rounds"]:
        table = RichTable("strategy", "seed", "round", *COLUMNS.values(), title="Rounds")
        for r in results["rounds"]:
            table.add_row(r["strategy"], str(r["seed"]), str(r["round"]), *(_number(r[k]) for k in COLUMNS))
        console.print(table)
        console.print(_over(results["eval_scope"]))
    for s in results["saving"]:
        console.print(f"saving of {s['strategy']} (seed {s['seed']}) against random: {_number(s['saving'])}")
    console.print(f"results: {folder}/results.json\nreport:  {folder}/report/index.html", soft_wrap=True)


def print_preview(found: "Preview") -> None:
    """What `corpus.preview` found."""
    console = Console()
    if found.sources:
        table = RichTable("file", "rows", "dropped", title="Corpus")
        for source in found.sources[:MOST_SHOWN]:
            table.add_row(source["file"], f"{source['rows']:,}", f"{source['dropped']:,}")
        console.print(table)
        if (more := len(found.sources) - MOST_SHOWN) > 0:
            console.print(f"… and {more:,} more files")
    for problem, count in found.dropped.items():
        console.print(f"dropped {count:,}: {problem}", style="red", highlight=False, markup=False)
    for example in found.examples:
        console.print(f"  {example}", highlight=False, markup=False)
    splits = ", ".join(f"{split} {n:,}" for split, n in found.splits.items())
    merged = f"{found.questions:,} questions + {found.merged:,} merged with an equal one"
    together = "no two splits share one, except that eval asks the pool's facts again"
    if found.sources:
        groups = f"{found.split_groups:,} groups, the largest of {found.largest_group:,}"
        together = f"questions that are alike or about the same entity share a split: {groups}"
    lengths = (
        "{least:,} to {most:,} tokens, {median:,} in the median; {shared:,} are the same in all, read once per actor"
    )
    too_long = f"{found.too_long:,} of {found.measured:,} prompts leave no room for an answer"
    for name, text in {
        "rows": f"{found.rows:,} = {merged} + {found.lost:,} dropped",
        "splits": splits + (f", solved examples {found.set_aside:,}" if found.set_aside else ""),
        "gold": f"{found.with_gold:,} of {found.questions:,} questions have answers to grade by",
        "alike": f"{found.near_duplicates:,} questions repeat another almost word for word, and share its split",
        "entities": f"{found.entities:,}; {together}",
        "topics": ", ".join(f"{g} {n:,}" for g, n in found.groups[:MOST_SHOWN]) or "none",
        "tokens": f"a prompt has {lengths.format(**found.tokens)}",
        "context": f"{found.tokens['context']:,} tokens; {too_long}",
    }.items():
        _line(console, f"{name:<8} {text}")
    if found.uneven:
        _line(console, f"note     {found.uneven}", "yellow")
    console.print("prompt of the first question:", style="bold")
    _line(console, found.prompt)
    more = len(found.answers) - MOST_SHOWN
    gold = " | ".join(found.answers[:MOST_SHOWN]) + (f" | and {more:,} more" if more > 0 else "")
    console.print("its gold answers:" if gold else "it has no gold answer", style="bold")
    if gold:
        _line(console, gold)


def print_comparison(folder: str, summary: ComparisonResults) -> None:
    """A row per strategy, each mean with the number of seeds it is taken over, and where `compare.json` is."""
    console, seeds = Console(), len(summary["seeds"])
    heads = (
        "saving",
        "95 % interval",
        "of the oracle's",
        "compute saving",
        "area under curve",
        "known, never replayed",
    )
    title = f"Means over (N of {seeds}) seeds, against random's {summary['random_budget']} annotations"
    table = RichTable("strategy", *heads, title=title)
    for s in summary["strategies"]:
        interval = "–" if s["saving_ci"] is None else "{:.3f} … {:.3f}".format(*s["saving_ci"])
        saving, *others = (_mean(s[name], s["over"][name], seeds) for name in COMPARED)
        table.add_row(s["strategy"], saving, interval, *others)
    console.print(table)
    console.print(_over(summary["eval_scope"]))
    console.print(f"results: {folder}/compare.json\nreport:  {folder}/index.html", soft_wrap=True)


def _line(console: Console, text: str, style: str | None = None) -> None:
    """Print text as it is, on one line however long."""
    console.print(text, style=style, soft_wrap=True, highlight=False, markup=False)


def _mean(value: float | None, over: int, seeds: int) -> str:
    return _number(value) if value is None else f"{_number(value)} ({over} of {seeds})"


def _over(eval_scope: str | None) -> str:
    return f"accuracy, and so saving, is over {ACCURACY_OVER[eval_scope or '']}"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if (isinstance(value, float) and value != int(value)) or 0 < abs(value) <= 1 else f"{value:g}"
