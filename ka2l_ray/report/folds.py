"""The one number of each part of the page, which its summary line shows while the part is folded.

In: parts of results.json, and what the page shows besides. Out: a few words, empty where the run has no such number.
Refuses to know: HTML, files, how any number was computed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ka2l_ray.report.curves import curves
from ka2l_ray.report.headline import leading
from ka2l_ray.report.summary import known_changes, savings, spendings
from ka2l_ray.report.tables import Listing
from ka2l_ray.report.templates import FORMATS
from ka2l_ray.report.topics import Topic
from ka2l_ray.results_schema import LabelResult, Results, RoundResult, SavingResult, SearchResult

_LONGEST_NAME = 40
_percent, _whole, _count = FORMATS["percent"], FORMATS["whole_percent"], FORMATS["count"]


def fold_numbers(results: Results, topics: Sequence[Topic], bought: Listing) -> dict[str, str]:
    """{part of the page: its number in a few words}."""
    return {
        "rounds": _rounds(results["rounds"]),
        "savings": _savings(results["saving"]),
        "ledger": _ledger(results["rounds"]),
        "forgetting": _forgetting(results["rounds"]),
        "labels": _labels(results["label"]),
        "probe": _probe(results["search"]),
        "topics": _topics(topics),
        "decoded": _decoded(results["decode"] or {}),
        "bought": f"{_count(bought.total)} bought" if bought.total else "",
        "times": _times(results["time_s"]),
        "versions": results["config_hash"] or "",
    }


def _rounds(rounds: Sequence[RoundResult]) -> str:
    means = {c.strategy: c.mean[-1] for c in curves(rounds, "accuracy") if len(c.mean) > 1}
    if not means:
        return ""
    annotations, accuracy = means[lead := leading(list(means))]
    return f"{lead}: accuracy {_percent(accuracy)} after {_count(annotations)} annotations"


def _savings(entries: Sequence[SavingResult]) -> str:
    found = {s.strategy: s.saving for s in savings(entries)}
    if not found:
        return ""
    saving = found[lead := leading(list(found))]
    return f"{lead}: {'none measured' if saving is None else f'{_whole(saving)} saved'}"


def _ledger(rounds: Sequence[RoundResult]) -> str:
    ledgers = [s.ledger for s in spendings(rounds)]
    asked, paid = (sum(ledger[name] for ledger in ledgers) for name in ("asked", "paid"))
    return f"{_count(asked)} asked, {FORMATS['amount'](paid)} paid" if ledgers else ""


def _forgetting(rounds: Sequence[RoundResult]) -> str:
    found = {c.strategy: c for c in known_changes(rounds)}
    if not found:
        return ""
    change = found[leading(list(found))]
    return f"{change.strategy}: {_percent(change.before)} → {_percent(change.after)} of what was known"


def _labels(label: LabelResult | None) -> str:
    return f"{_percent(label['unknown_fraction'])} of {_count(label['questions'])} questions unknown" if label else ""


def _probe(search: SearchResult | None) -> str:
    return f"layer {search['layer']}, AUROC {FORMATS['decimal'](search['auroc'])}" if search else ""


def _topics(topics: Sequence[Topic]) -> str:
    """The least known topic, which comes first."""
    if not topics:
        return ""
    name = topics[0].name
    shown = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
    return f"least known: {shown}, {_percent(topics[0].share)} unknown"


def _decoded(decode: Mapping[str, Any]) -> str:
    return f"{_count(decode['kept'])} of {_count(decode['generated'])} kept" if decode else ""


def _times(time_s: Mapping[str, float | None]) -> str:
    timed = [seconds for seconds in time_s.values() if seconds is not None]
    return f"{FORMATS['seconds'](sum(timed))} s in all" if timed else ""
