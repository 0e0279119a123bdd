"""The result of a run, or of a comparison, in one sentence.

In: results.json and what the run plans and waits for, or compare.json. Out: a sentence that claims no more than was
measured: it names what is missing, and a saving only where one is stored. Refuses to know: HTML, files, runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ka2l_ray.active.saving import LearningCurve, mean_curve
from ka2l_ray.active.saving import curves as by_seed
from ka2l_ray.active.strategies import CEILINGS, ceiling_of
from ka2l_ray.report.summary import Saving, savings
from ka2l_ray.report.templates import FORMATS
from ka2l_ray.results_schema import ComparisonResults, LabelResult, Results, StoppedResult

METHOD, BASELINE = "ka2l", "random"
NOTHING = 0.005
"""A saving below this is shown as none: it would round to 0 %."""
_ON = {
    "other": " on facts that no pool question asks",
    "same": " on pool facts in the words that were taught (memorisation)",
}
"""What accuracy is over, by `eval_scope`, where that is not the pool's facts in another wording."""
_percent, _whole, _count = FORMATS["percent"], FORMATS["whole_percent"], FORMATS["count"]


@dataclass(frozen=True)
class Plan:
    """What the configuration asks for, and what has to come from people first."""

    draws: Mapping[str, int]
    """{strategy: independent draws}, in the order of the configuration."""
    rounds: int
    """Rounds of every draw."""
    waiting: int = 0
    """Rounds that wait for people's answers."""


def result_sentence(results: Results, plan: Plan) -> str:
    """The result of a run in one sentence, whatever state the run is in."""
    done, left = sum(r["round"] > 0 for r in results["rounds"]), rounds_left(results, plan)
    said = _measured(results, plan) if done else _before_rounds(results)
    if done and left:
        said = f"so far ({done:,} of {done + left:,} rounds), {said}"
    if plan.waiting:
        said += f"; {_plural(plan.waiting, 'round waits', 'rounds wait')} for people's answers"
    return f"{said if said.startswith(tuple(plan.draws)) else said[0].upper() + said[1:]}."


def rounds_left(results: Results, plan: Plan, strategy: str | None = None) -> int:
    """Rounds still to be played, of one strategy or of all; without those that a strategy which stopped leaves out."""
    wanted = plan.draws if strategy is None else {strategy: plan.draws.get(strategy, 0)}
    done = sum(r["round"] > 0 and r["strategy"] in wanted for r in results["rounds"])
    left_out = sum(plan.rounds - s["after_round"] for s in results["stopped"] if s["strategy"] in wanted)
    return max(0, sum(wanted.values()) * plan.rounds - done - left_out)


def leading(strategies: Sequence[str]) -> str:
    """The strategy that a sentence is about: `ka2l`, else the first that is neither baseline nor ceiling."""
    last = (*CEILINGS, BASELINE)
    ordered = [s for s in strategies if s not in last] + [s for s in last if s in strategies]
    return METHOD if METHOD in ordered else ordered[0]


def _before_rounds(results: Results) -> str:
    if results["rounds"]:
        base = results["rounds"][0]["accuracy"]
        if base is None:
            return "no eval question has a gold answer, so no accuracy can be measured; no round is finished yet"
        return f"the base model has an {_accuracy(results, base)}; no round is finished yet"
    return f"{_unknown(results['label'])}what buying answers gains has not been measured yet"


def _unknown(label: LabelResult | None) -> str:
    if label is None:
        return ""
    return f"of {_count(label['questions'])} questions, the model does not know {_percent(label['unknown_fraction'])}; "


def _measured(results: Results, plan: Plan) -> str:
    """What finished rounds show."""
    lead = leading(list(plan.draws))
    own, baseline = _curve(results, lead), _curve(results, BASELINE)
    if not own and not baseline:
        return "no eval question has a gold answer, so neither accuracy nor a saving can be measured"
    if lead == BASELINE:
        return f"{_went(results, plan, lead, baseline)}; the run has no other strategy to compare with it"
    if BASELINE not in plan.draws:
        return f"{_went(results, plan, lead, own)}; the run has no random to compare it with"
    if len(own) < 2 or len(baseline) < 2:
        return "; ".join(_went(results, plan, s, c) for s, c in ((lead, own), (BASELINE, baseline)))
    return _against_random(results, plan, lead, own, baseline)


def _against_random(results: Results, plan: Plan, lead: str, own: LearningCurve, baseline: LearningCurve) -> str:
    (_, base), (budget, target) = baseline[0], baseline[-1]
    is_final = not rounds_left(results, plan, BASELINE)
    if target <= base:
        return (
            f"{_count(budget)} annotations chosen by random do not raise accuracy{_on(results)} ({_percent(base)} "
            f"before, {_percent(target)} after), so there is no saving to measure; {_stands(results, plan, lead, own)}"
        )
    saved = {s.strategy: s for s in savings(results["saving"])}
    if (found := saved.get(lead)) is None or found.saving is None:
        never = "has not reached" if rounds_left(results, plan, lead) else "never reaches"
        return (
            f"{_stands(results, plan, lead, own)} and {never} the {_percent(target)} that random "
            f"{'ends with' if is_final else 'has'} after {_count(budget)}"
        )
    needed, which = _count((1 - found.saving) * budget), "final" if is_final else "present"
    reaches = f"{lead} reaches random's {which} {_accuracy(results, target)} with {needed} annotations"
    if found.saving < NOTHING:
        return f"{reaches}, random with {_count(budget)}: nothing saved{_and_stopped(results, lead)}"
    ceiling = "" if lead in CEILINGS else _ceiling(saved.get(ceiling_of(saved) or ""))
    saves = f"{_whole(found.saving)} saved{ceiling}{_and_stopped(results, lead)}"
    return f"{reaches} instead of {_count(budget)}: {saves}"


def _curve(results: Results, strategy: str) -> LearningCurve:
    """The mean over draws, as savings take it; empty without an accuracy."""
    return mean_curve(list(by_seed(results["rounds"], strategy).values()))


def _went(results: Results, plan: Plan, strategy: str, curve: LearningCurve) -> str:
    """From the base model to the last round that all draws of a strategy have."""
    if len(curve) < 2:
        return _no_round(results, plan, strategy)
    (_, base), (bought, accuracy) = curve[0], curve[-1]
    return (
        f"accuracy{_on(results)} goes from {_percent(base)} to {_percent(accuracy)} with {_count(bought)} annotations "
        f"chosen by {strategy}{_early(results, strategy)}"
    )


def _no_round(results: Results, plan: Plan, strategy: str) -> str:
    if found := _stop(results, strategy):
        return f"{strategy} stopped before its first round ({found['reason']})"
    where = " in every draw" if plan.draws[strategy] > 1 else ""
    return f"the first round of {strategy} is not finished{where} yet"


def _stands(results: Results, plan: Plan, strategy: str, curve: LearningCurve) -> str:
    bought, accuracy = curve[-1]
    verb = "is at" if rounds_left(results, plan, strategy) else "ends at"
    after = f"after {_count(bought)} annotations{_early(results, strategy)}"
    return f"{strategy} {verb} an {_accuracy(results, accuracy)} {after}"


def _early(results: Results, strategy: str) -> str:
    found = _stop(results, strategy)
    return f" (stopped after round {found['after_round']}: {found['reason']})" if found else ""


def _and_stopped(results: Results, strategy: str) -> str:
    found = _stop(results, strategy)
    return f"; {strategy} stopped after round {found['after_round']} ({found['reason']})" if found else ""


def _stop(results: Results, strategy: str) -> StoppedResult | None:
    return next((s for s in results["stopped"] if s["strategy"] == strategy), None)


def _accuracy(results: Results, share: float) -> str:
    return f"accuracy of {_percent(share)}{_on(results)}"


def _on(results: Results) -> str:
    return _ON.get(results["eval_scope"] or "", "")


def _ceiling(found: Saving | None) -> str:
    return "" if found is None or found.saving is None else f" (the oracle saves {_whole(found.saving)})"


def _plural(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def comparison_sentence(comparison: ComparisonResults) -> str:
    """The result of a comparison in one sentence: its leading strategy over all seeds."""
    entries = {s["strategy"]: s for s in comparison["strategies"]}
    lead, seeds = leading(list(entries)), _plural(len(comparison["seeds"]), "seed", "seeds")
    on = _ON.get(comparison["eval_scope"], "")
    target = f"the accuracy{on} of {_count(comparison['random_budget'])} random annotations"
    if lead == BASELINE:
        return f"Over {seeds}, there is no strategy to compare with random."
    if (saving := entries[lead]["saving"]) is None:
        return f"No saving was measured in {seeds}: {lead} does not reach {target}, or these do not raise it."
    fewer = f"{_whole(abs(saving))} {'fewer' if saving > 0 else 'more'}" if abs(saving) >= NOTHING else "no fewer"
    ends, ceiling = entries[lead]["saving_ci"], comparison["ceiling"]
    interval = f", 95 % interval {_whole(ends[0])} to {_whole(ends[1])}" if ends else ""
    of_oracle = "" if ceiling is None or lead in CEILINGS else f"; the oracle saves {_whole(ceiling)}"
    reached = f"{entries[lead]['reached']} of {seeds} that reach{'es' if entries[lead]['reached'] == 1 else ''} it"
    return f"{lead} reaches {target} with {fewer} (mean of the {reached}{interval}{of_oracle})."
