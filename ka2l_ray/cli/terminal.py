"""What `ka2l` shows on the terminal when a command ends.

In: a configuration, results, a preview. Out: tables and lines on stdout.
Refuses to know: commands, and how what it shows was computed.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from ka2l_ray.config import Config, ConfigError
from ka2l_ray.results_schema import ComparisonResults, Measure, Results
from ka2l_ray.schema import ACCURACY_OVER
from ka2l_ray.text.answers import ends_in_thought
from ka2l_ray.text.printable import printable

if TYPE_CHECKING:
    from ka2l_ray.cli.doctor import Finding
    from ka2l_ray.corpus.preview import Preview
    from ka2l_ray.planning.capacity import NodeKind

MOST_SHOWN = 20
"""Files, topics and gold answers that a preview names at most."""
COLUMNS: dict[Measure, str] = {
    "annotations": "bought",
    "cost": "cost",
    "accuracy": "accuracy",
    "domain_accuracy": "domain",
    "beyond_accuracy": "beyond",
    "known_accuracy": "known",
    "replayed_accuracy": "replayed",
}
"""Columns of the table of rounds; one that no round has a number for is left out."""
Mean = Literal["of_oracle", "compute_saving", "area", "known_accuracy"]
OTHER_MEANS: tuple[Mean, ...] = ("of_oracle", "compute_saving", "area", "known_accuracy")
"""The means of a comparison besides the saving, in the order of their columns."""


def print_plan(config: Config, cluster: "Sequence[NodeKind] | None" = None) -> None:
    """The plan of a dry run. `cluster`: the kinds of its nodes, where there is one to join.

    Raises `ConfigError` with all problems of the plan once it is shown.
    """
    from ka2l_ray.planning.cost import size
    from ka2l_ray.planning.plan import make_plan

    plan = make_plan(config, cluster)
    shape, extent = plan.shape, plan.extent
    rows = (
        (
            line.stage,
            *(f"{n:,}" if n else "–" for n in (line.rows, line.read_tokens, line.written_tokens)),
            *(size(n) if n else "–" for n in (line.memory_bytes, line.storage_bytes)),
        )
        for line in plan.lines
    )
    heads = ("stage", "rows", "tokens read", "written", "memory", "storage")
    _table(heads, rows, f"{config.run.name}: nothing was run")
    for line in plan.lines:
        memory = f"; memory of one: {line.memory_is}" if line.memory_is else ""
        _line(f"{line.stage:<11} {line.actors}: {line.does}{memory}")
    quantized = "" if shape.quantization == "none" else f" in {shape.quantization}"
    weights = f"{shape.parameters:,} parameters{quantized}, {size(shape.weight_bytes)} of weights"
    splits = ", ".join(f"{split} {n:,}" for split, n in extent.splits.items())
    shared = f"a prompt has {extent.shared:,} shared tokens, read once per actor"
    _facts(
        {
            "model": f"{weights}, {size(shape.cache_bytes)} of cache per token; from {shape.source}",
            "engine": f"{plan.abilities}; found out on a tiny form of the model",
            "corpus": f"{splits}; {shared}, and {extent.own:,} of its own on average; {extent.source}",
            "storage": f"about {size(sum(line.storage_bytes for line in plan.lines))}",
            "price": f"{sum(line.price for line in plan.lines):,.10g} at most, in the unit of annotate.cost",
        },
        plan.notes,
    )
    if plan.problems:
        raise ConfigError("; ".join(plan.problems))


def print_trained(result: Mapping[str, Any], folder: str) -> None:
    """How a decoder was trained, and how good it is on held-out questions."""
    if found := result.get("search"):
        names = ("layer", "position", "token_layer", "loss", "exact_match", "entity_kept", "relation_right")
        tried = [[str(t[n]) if n in names[:3] else _number(t[n]) for n in names] for t in found]
        _table(names, tried, "Short trainings, the best first; loss in nats per token on held-out questions")
    steps, held = result["steps"], result["held_out"]
    least = min(held, key=lambda at: at[1])
    ended = "" if steps == result["planned_steps"] else f" of {result['planned_steps']}, ended early"
    rows = [("steps", f"{steps}{ended}"), ("questions", f"{result['rows']:,}")]
    rows += [("loss, held out", f"{least[1]:.3f} nats per token at step {least[0]}")]
    rows += [(name, _number(value)) for name, value in result["held_out_metrics"].items()]
    _table(("decoder", ""), rows, "Decoder, on questions about entities that it never saw")
    print(f"decoder: {folder}")  # noqa: T201


def print_new_questions(found: Mapping[str, Any], shown: int = 10) -> None:
    """Some of the new questions, what became of the others, and where the file is."""
    questions = found["questions"]
    rows = [(q["question"], q["source"], f"{q['p_unknown']:.2f}") for q in questions[:shown]]
    more = f", {shown} of them" if len(questions) > shown else ""
    _table(("question", "decoded from", "P(unknown)"), rows, f"{len(questions)} new questions{more}")
    became = ", ".join(f"{count:,} {status}" for status, count in found["statuses"].items())
    _line(f"from {found['sources']:,} pool questions: {became}")
    print(f"questions: {found['file']}")  # noqa: T201


def print_retried(rows: dict[str, int], searched: bool) -> None:
    """What `--retry-errors` repeats: {table: failed rows}; `searched`: whether a probe was fitted without them."""
    for name, count in rows.items():
        _line(f"{name}: {count:,} failed rows are done again")
    if not rows:
        _line("no row has failed: nothing to do again")
    elif searched:
        _line("γ and the probe stay as fitted without these rows; --redo label fits them again")


def print_results(folder: str, results: Results) -> None:
    """A row per round, the savings, and where results and report are."""
    if results["rounds"]:
        found = {k: name for k, name in COLUMNS.items() if any(r.get(k) is not None for r in results["rounds"])}
        if all(r["cost"] == r["annotations"] for r in results["rounds"]):
            del found["cost"]  # it says nothing more, and ten columns are too many for a narrow terminal
        rows = (
            (r["strategy"], str(r["seed"]), str(r["round"]), *(_number(r.get(k)) for k in found))
            for r in results["rounds"]
        )
        _table(("strategy", "seed", "round", *found.values()), rows, "Rounds")
        _line(_over(results["eval_scope"]))
    for s in results["saving"]:
        _line(f"saving of {s['strategy']} (seed {s['seed']}) against random: {_number(s['saving'])}")
    _line(f"results: {folder}/results.json\nreport:  {folder}/report/index.html")


def print_preview(found: "Preview") -> None:
    """What `corpus.preview` found."""
    if found.sources:
        rows = ((s["file"], f"{s['rows']:,}", f"{s['dropped']:,}") for s in found.sources[:MOST_SHOWN])
        _table(("file", "rows", "dropped"), rows, "Corpus")
        if (more := len(found.sources) - MOST_SHOWN) > 0:
            _line(f"… and {more:,} more files")
    for problem, count in found.dropped.items():
        _line(f"dropped {count:,}: {problem}", "red")
    for example in found.examples:
        _line(f"  {example}")
    splits = ", ".join(f"{split} {n:,}" for split, n in found.splits.items())
    merged = f"{found.questions:,} questions + {found.merged:,} merged with an equal one"
    together = "no two splits share one, except that eval asks the pool's facts again"
    if found.sources:
        groups = f"{found.split_groups:,} groups, the largest of {found.largest_group:,}"
        together = f"questions that are alike or about the same entity share a split: {groups}"
    again = f"{found.asked_again:,} questions of eval ask a pool question's fact again"
    again += f"; {found.not_reworded:,} have no wording to reserve" if found.not_reworded else ""
    lengths = (
        "{least:,} to {most:,} tokens, {median:,} in the median; {shared:,} are the same in all, read once per actor"
    )
    too_long = f"{found.too_long:,} of {found.measured:,} prompts leave no room for an answer"
    _facts(
        {
            "rows": f"{found.rows:,} = {merged} + {found.lost:,} dropped",
            "splits": splits + (f", solved examples {found.set_aside:,}" if found.set_aside else ""),
            **({"again": again} if found.asked_again else {}),
            "gold": f"{found.with_gold:,} of {found.questions:,} questions have answers to grade by",
            "alike": f"{found.near_duplicates:,} questions repeat another almost word for word, and share its split",
            "entities": f"{found.entities:,}; {together}",
            "topics": ", ".join(f"{g} {n:,}" for g, n in found.groups[:MOST_SHOWN]) or "none",
            "tokens": f"a prompt has {lengths.format(**found.tokens)}",
            "context": f"{found.tokens['context']:,} tokens; {too_long}",
        },
        [found.uneven] if found.uneven else [],
    )
    _line("prompt of the first question:", "bold")
    _line(found.prompt)
    if ends_in_thought(found.prompt):
        _line("the model thinks before it answers: leave room for its thoughts in collect.max_new_tokens", "bold")
    more = len(found.answers) - MOST_SHOWN
    gold = " | ".join([*found.answers[:MOST_SHOWN], *([f"and {more:,} more"] if more > 0 else [])])
    _line("its gold answers:" if gold else "it has no gold answer", "bold")
    if gold:
        _line(gold)


def print_comparison(folder: str, summary: ComparisonResults) -> None:
    """A row per strategy, each mean with the number of seeds it is taken over, and where `compare.json` is."""
    seeds = len(summary["seeds"])
    heads = (
        "saving",
        "95 % interval",
        "of the oracle's",
        "compute saving",
        "area under curve",
        "known, never replayed",
    )
    rows = (
        (
            s["strategy"],
            _mean(s["saving"], s["over"]["saving"], seeds),
            "–" if s["saving_ci"] is None else "{:.3f} … {:.3f}".format(*s["saving_ci"]),
            *(_mean(s[name], s["over"][name], seeds) for name in OTHER_MEANS),
        )
        for s in summary["strategies"]
    )
    title = f"Means over (N of {seeds}) seeds, against random's {summary['random_budget']} annotations"
    _table(("strategy", *heads), rows, title)
    _line(_over(summary["eval_scope"]))
    _line(f"results: {folder}/compare.json\nreport:  {folder}/index.html")


def print_findings(findings: Iterable["Finding"]) -> None:
    """What `ka2l doctor` found, a row each."""
    colours = {"ok": "green", "note": "yellow", "missing": "red"}
    rows = ((Text(f.state, colours[f.state]), f.name, f.says, f.fix) for f in findings)
    _table(("", "", "found", "what to type"), rows)


def as_text(text: str, style: str = "") -> Text:
    """Text that rich shows as it is, without markup, emoji names or characters that a terminal obeys."""
    return Text(printable(text), style)


def _table(heads: Iterable[str], rows: Iterable[Sequence[str | Text]], title: str | None = None) -> None:
    table = RichTable(*heads, title=as_text(title, "table.title") if title else None)
    for row in rows:
        table.add_row(*(as_text(cell) if isinstance(cell, str) else cell for cell in row))
    Console().print(table)


def _facts(facts: Mapping[str, str], notes: Iterable[str]) -> None:
    """A line for each of {name: text}, then the notes."""
    for name, text in facts.items():
        _line(f"{name:<8} {text}")
    for note in notes:
        _line(f"note     {note}", "yellow")


def _line(text: str, style: str = "") -> None:
    """Print a text, its lines however long."""
    Console().print(as_text(text, style), soft_wrap=True)


def _mean(value: float | None, over: int, seeds: int) -> str:
    return _number(value) if value is None else f"{_number(value)} ({over} of {seeds})"


def _over(eval_scope: str | None) -> str:
    return f"accuracy, and so saving, is over {ACCURACY_OVER[eval_scope or '']}"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if (isinstance(value, float) and value != int(value)) or 0 < abs(value) <= 1 else f"{value:g}"
