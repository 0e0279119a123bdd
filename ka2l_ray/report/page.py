"""The report of a run: one self-contained page, and every figure as a file beside it.

In: a run folder (results.json, base/knowledge, base/search/heat.json; each may be missing where a run was stopped early).
Out: report/index.html and report/NAME.svg. Refuses to know: Ray, models, and how any number was made; it shows what is stored.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ka2l_ray.artifacts import Folder, Run, Table
from ka2l_ray.report import figures
from ka2l_ray.report.summary import known_changes, savings
from ka2l_ray.schema import DECODE_STATUSES, QUADRANTS

STAGES = (
    "corpus",
    "questions",
    "collect",
    "label",
    "search",
    "score",
    "sample_pool",
    "replay",
    "acquire",
    "decode",
    "annotate",
    "finetune",
    "evaluate",
    "rounds",
)
DECODE_MEASURES = {
    "generated": "questions generated",
    "kept": "kept",
    "exact_match": "exact match with the source",
    "token_accuracy": "token accuracy",
    "bleu": "BLEU",
    "token_f1": "token F1",
    "similarity": "similarity of states (cosine)",
    "still_unknown_fraction": "share still unknown (probe)",
    "truly_unknown_fraction": "share truly unknown",
    "answerable": "answerable",
}
_NULL = "–"
_EMPTY = {
    **dict.fromkeys(("config_hash", "model", "seed", "command", "label", "search", "decode")),
    **{"versions": {}, "rounds": [], "saving": [], "stopped": [], "rows": {}, "time_s": {}},
}


def write_report(run: Run) -> Folder:
    """Write report/index.html and its figures; returns the report's folder. What a run has not made yet is named, not drawn."""
    stored = run.folder / "results.json"
    results = _EMPTY | (stored.read_json() if stored.exists() else {})
    heat = run.folder / "base/search/heat.json"
    drawn = draw_figures(results, entropy_counts(run.base("knowledge")), heat.read_json() if heat.exists() else None)
    report = run.folder / "report"
    for name, svg in drawn.items():
        file = report / f"{name}.svg"
        if svg is None:
            file.delete()  # an earlier report of this run may have drawn it
        else:
            file.write_bytes(svg.replace("<svg ", '<svg style="background:#fff;color:#000" ', 1).encode())
    (report / "index.html").write_bytes(render(run, results, drawn, _absent(run, results)).encode())
    return report


def entropy_counts(knowledge: Table) -> dict[str, Counter[float]]:
    """{group: {entropy_nats: questions}}, streamed; a group is the truth where known, else the greedy answer's grade."""
    counts: dict[str, Counter[float]] = {}
    for batch in knowledge.batches(["entropy_nats", "truth", "correct"]) if knowledge.is_done else ():
        grouped = pa.table(batch).group_by(["entropy_nats", "truth", "correct"]).aggregate([([], "count_all")])
        for row in grouped.to_pylist():
            if row["entropy_nats"] is not None:
                group = row["truth"] or {True: "right", False: "wrong", None: "no gold"}[row["correct"]]
                counts.setdefault(group, Counter())[row["entropy_nats"]] += row["count_all"]
    return counts


def draw_figures(
    results: Mapping[str, Any], counts: Mapping[str, Mapping[float, int]], heat: list[dict[str, Any]] | None
) -> dict[str, str | None]:
    """{name: SVG}, None where the run holds no number for a figure."""
    return {
        "entropy": figures.entropy_histogram(counts, results["label"] and results["label"]["threshold_nats"]),
        "layers": figures.auroc_by_layer(results["search"]),
        "heat": figures.layer_threshold_heat(heat),
        "accuracy": figures.accuracy_curves(results["rounds"]),
        "known": figures.known_curves(results["rounds"]),
        "times": figures.stage_times({stage: results["time_s"][stage] for stage in _in_order(results["time_s"], STAGES)}),
    }


def render(run: Run, results: Mapping[str, Any], drawn: Mapping[str, str | None], absent: Mapping[str, str]) -> str:
    """The page. Everything that comes from a file is escaped; only our own SVG is trusted."""
    return (
        environment()
        .get_template("page.html")
        .render(
            results,
            title=run.config.report.title,
            run_name=run.config.run.name,
            decoding=run.config.decode.enabled,
            figures={name: svg and Markup(svg) for name, svg in drawn.items()},
            absent=absent,
            savings=savings(results["saving"]),
            changes=known_changes(results["rounds"]),
            objectives=figures.OBJECTIVES,
            quadrants=_in_order((results["label"] or {}).get("quadrants") or (), QUADRANTS),
            decode_measures=DECODE_MEASURES,
            decode_names=_in_order((name for name in results["decode"] or () if name != "statuses"), tuple(DECODE_MEASURES)),
            statuses=_in_order((results["decode"] or {}).get("statuses") or (), DECODE_STATUSES),
            stages=_in_order({**results["rows"], **results["time_s"]}, STAGES),
            settings=yaml.safe_dump(run.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        )
    )


def environment() -> Environment:
    """Templates of this package and the filters that write numbers."""
    loader = PackageLoader("ka2l_ray", "report")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"count": _format(",.0f"), "amount": _format(",g"), "decimal": _format(".3f"), "nats": _format(".2f")}
    made.filters |= {"percent": _format(".1%"), "seconds": _format(",.1f"), "measure": _measure, "text": _text}
    return made


def _absent(run: Run, results: Mapping[str, Any]) -> dict[str, str]:
    """{stage: why the page shows nothing of it}, for stages that have not run or are switched off."""
    ran = {
        "label": run.base("knowledge").is_done,
        "search": results["search"] is not None,
        "decode": results["decode"] is not None,
        "evaluate": bool(results["rounds"]),
    }
    reasons = {stage: f"Stage {stage} has not run." for stage, done in ran.items() if not done}
    if "decode" in reasons and not run.config.decode.enabled:
        reasons["decode"] = "Decoding is switched off (decode.enabled: false)."
    return reasons


def _in_order(names: Iterable[str], order: tuple[str, ...]) -> list[str]:
    """Names as `order` has them, others after by alphabet: JSON files are sorted by name, not by meaning."""
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def _format(spec: str) -> Any:
    return lambda value: _NULL if value is None else format(value, spec).replace("%", "\N{NO-BREAK SPACE}%")


def _measure(value: float | None) -> str:
    return _format(",d" if isinstance(value, int) else ".3f")(value)


def _text(value: Any) -> str:
    return _NULL if value is None else str(value)
