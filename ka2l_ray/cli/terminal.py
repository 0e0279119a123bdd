"""What `ka2l` shows on the terminal when a command ends.

In: a configuration, results, a preview. Out: tables and lines on stdout.
Refuses to know: commands, and how what it shows was made.
"""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from ka2l_ray.config import Config, ConfigError
from ka2l_ray.schema import ACCURACY_OVER

MOST_SHOWN = 20
"""Files and topics that a preview names."""
COMPARED = ("saving", "of_oracle", "compute_saving", "area", "known_accuracy")
"""The means of a comparison, in the order of its columns."""


def print_plan(config: Config, cluster: Mapping[str, float] | None = None) -> None:
    """The plan of a dry run. Raises `ConfigError` with all that is wrong with it, once it is shown."""
    from ka2l_ray.planning.cost import size, storage_bytes
    from ka2l_ray.planning.plan import make_plan

    plan, console = make_plan(config, cluster), Console()
    shape, extent = plan.shape, plan.extent
    head = f"{config.run.name}: nothing was run"
    table = RichTable("stage", "rows", "tokens read", "written", "memory", "storage", title=head)
    for line in plan.lines:
        counts = (f"{n:,}" if n else "–" for n in (line.rows, line.read_tokens, line.written_tokens))
        table.add_row(line.stage, *counts, *(size(n) if n else "–" for n in (line.memory_bytes, line.storage_bytes)))
    console.print(table)
    for line in plan.lines:
        memory = f"; memory of one: {line.memory_is}" if line.memory_is else ""
        text = f"{line.stage:<11} {line.actors}: {line.does}{memory}"
        console.print(text, soft_wrap=True, highlight=False, markup=False)
    quantized = "" if shape.quantization == "none" else f" in {shape.quantization}"
    weights = f"{shape.parameters:,} parameters{quantized}, {size(shape.weight_bytes)} of weights, {size(shape.cache_bytes)} of cache a token"
    splits = ", ".join(f"{split} {n:,}" for split, n in extent.splits.items())
    prompt = (
        f"a prompt has {extent.shared:,} shared tokens, read once an actor, and {extent.own:,} of its own in the mean"
    )
    for name, text in {
        "model": f"{weights}; from {shape.source}",
        "corpus": f"{splits}; {prompt}; {extent.source}",
        "storage": f"about {size(storage_bytes(plan.lines))}",
        "price": f"{sum(line.price for line in plan.lines):,.10g} at most, in the unit of annotate.cost",
    }.items():
        console.print(f"{name:<8} {text}", soft_wrap=True, highlight=False, markup=False)
    for note in plan.notes:
        console.print(f"note     {note}", style="yellow", soft_wrap=True, highlight=False, markup=False)
    if plan.problems:
        raise ConfigError("; ".join(plan.problems))


def print_retried(rows: dict[str, int], searched: bool) -> None:
    """Which rows `--retry-errors` has done anew."""
    console = Console()
    for name, count in rows.items():
        console.print(f"{name}: {count:,} failed rows are done anew", highlight=False, markup=False)
    if not rows:
        console.print("no row has failed: nothing is done anew")
    elif searched:
        console.print("γ and the probe stay as they were fitted without them; --redo label fits them again")


def print_results(folder: str, results: dict[str, Any]) -> None:
    """A row per round, the savings, and where results and report lie."""
    console = Console()
    if results["rounds"]:
        shown = ("annotations", "cost", "accuracy", "domain_accuracy", "known_accuracy", "replayed_accuracy")
        heads = ("bought", "cost", "accuracy", "domain", "known", "replayed")
        table = RichTable("strategy", "seed", "round", *heads, title="Rounds")
        for r in results["rounds"]:
            table.add_row(r["strategy"], str(r["seed"]), str(r["round"]), *(_number(r[k]) for k in shown))
        console.print(table)
        console.print(_over(results))
    for s in results["saving"]:
        console.print(f"saving of {s['strategy']} (seed {s['seed']}) against random: {_number(s['saving'])}")
    console.print(f"results: {folder}/results.json\nreport:  {folder}/report/index.html", soft_wrap=True)


def print_preview(found: Any) -> None:
    """What `corpus.preview` found."""
    console = Console()
    if found.sources:
        table = RichTable("file", "rows", "dropped", title="Corpus")
        for source in found.sources[:MOST_SHOWN]:
            table.add_row(source["file"], f"{source['rows']:,}", f"{source['dropped']:,}")
        console.print(table)
        if more := len(found.sources) - MOST_SHOWN:
            console.print(f"… and {more:,} more files" if more > 0 else "", end="\n" if more > 0 else "")
    for problem, count in found.dropped.items():
        console.print(f"dropped {count:,}: {problem}", style="red", highlight=False, markup=False)
    for example in found.examples:
        console.print(f"  {example}", highlight=False, markup=False)
    splits = ", ".join(f"{split} {n:,}" for split, n in found.splits.items())
    together = "no two splits share one, but that eval asks the pool's facts again"
    if found.sources:
        groups = f"{found.split_groups:,} groups, the largest of {found.largest_group:,}"
        together = f"questions that are alike or about one entity share a split: {groups}"
    lines = {
        "rows": f"{found.rows:,} = {found.questions:,} questions + {found.merged:,} merged with an equal one + {found.lost:,} dropped",
        "splits": splits + (f", solved examples {found.set_aside:,}" if found.set_aside else ""),
        "gold": f"{found.with_gold:,} of {found.questions:,} questions have answers to grade by",
        "alike": f"{found.near_duplicates:,} questions repeat another almost word by word, and share its split",
        "entities": f"{found.entities:,}; {together}",
        "topics": ", ".join(f"{g} {n:,}" for g, n in found.groups[:MOST_SHOWN]) or "none",
        "tokens": "a prompt has {least:,} to {most:,} tokens, {median:,} in the median; {shared:,} are the same for all, read once".format(
            **found.tokens
        ),
        "context": f"{found.tokens['context']:,} tokens; {found.too_long:,} of {found.measured:,} prompts leave no room for an answer",
    }
    for name, text in lines.items():
        console.print(f"{name:<8} {text}", soft_wrap=True, highlight=False, markup=False)
    if found.uneven:
        console.print(f"note     {found.uneven}", style="yellow", soft_wrap=True, highlight=False, markup=False)
    console.print("prompt of the first question:", style="bold")
    console.print(found.prompt, highlight=False, markup=False, soft_wrap=True)
    gold = " | ".join(found.answers[:MOST_SHOWN]) + (
        f" | and {more:,} more" if (more := len(found.answers) - MOST_SHOWN) > 0 else ""
    )
    console.print("its gold answers:" if gold else "it has no gold answer", style="bold")
    if gold:
        console.print(gold, highlight=False, markup=False, soft_wrap=True)


def print_comparison(folder: str, summary: dict[str, Any]) -> None:
    """A row per strategy of `compare.json`, each mean with the number of seeds it is over, and where the file lies."""
    console, seeds = Console(), len(summary["seeds"])
    heads = (
        "saving",
        "95 % interval",
        "of the oracle's",
        "compute saving",
        "area under curve",
        "known, never replayed",
    )
    table = RichTable(
        "strategy",
        *heads,
        title=f"Means over (N of {seeds}) seeds, against random's {summary['random_budget']} annotations",
    )
    for s in summary["strategies"]:
        interval = "–" if s["saving_ci"] is None else "{:.3f} … {:.3f}".format(*s["saving_ci"])
        saving, *others = (_mean(s[name], s["over"][name], seeds) for name in COMPARED)
        table.add_row(s["strategy"], saving, interval, *others)
    console.print(table)
    console.print(_over(summary))
    console.print(f"results: {folder}/compare.json\nreport:  {folder}/index.html", soft_wrap=True)


def _mean(value: float | None, over: int, seeds: int) -> str:
    return _number(value) if value is None else f"{_number(value)} ({over} of {seeds})"


def _over(results: Mapping[str, Any]) -> str:
    return f"accuracy, and so saving, is over {ACCURACY_OVER[results['eval_scope']]}"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if (isinstance(value, float) and value != int(value)) or 0 < abs(value) <= 1 else f"{value:g}"
