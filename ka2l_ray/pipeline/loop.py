"""The loop over a run's steps: skip what is done, do the rest, write results and report.

In: a `Run`. Out: its tables, records, `results.json` and the report. Refuses to know: what a step does.
"""

from contextlib import nullcontext

from ka2l_ray.active.round import Round, RoundState
from ka2l_ray.active.schedule import next_rounds, waiting_rounds
from ka2l_ray.active.steps import play
from ka2l_ray.annotate.annotators import Waiting
from ka2l_ray.dataflow.log import log, stage_line
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.pipeline.results import WALL, gather
from ka2l_ray.pipeline.steps import DOES
from ka2l_ray.pipeline.table import STEP_NAMES, from_on, up_to
from ka2l_ray.report.page import write_report
from ka2l_ray.results_schema import Results

RESULTS, REDO = "results.json", "redo.json"


def execute(run: Run, until: str | None, command: str, before_s: float = 0.0) -> Results:
    """Run the steps up to `until`, write results.json and the report; returns the results.

    Unless everything was done before, the command's time is booked, with the seconds `before_s` that it took so far.
    """
    with run.records.timed(WALL, before_s) if _is_work_left(run, until) else nullcontext():
        run_steps(run, until)
    return publish(run, command)


def _is_work_left(run: Run, until: str | None) -> bool:
    names, done = {step.name for step in up_to(until)}, run.records.done()
    return bool(names - done - {"rounds"}) or ("rounds" in names and bool(next_rounds(run)))


def run_steps(run: Run, until: str | None) -> None:
    """Run every step up to and including `until`, all of them if it is None.

    A step that is done is called as well: it returns at once, unless files of its tables are gone or failed rows are to
    be done again.
    """
    if unfinished := (run.folder / REDO).read_json_or_empty():
        redo(run, unfinished["from"])
    records = run.records
    for step in up_to(until):
        done_before = records.is_done(step.name)
        with stage_line(step.name, "done before" if done_before else step.says):
            with nullcontext() if done_before or step.name == "rounds" else records.timed(step.name):
                counts = DOES[step.name](run)
            if counts is not None:
                rows = {"in": counts.get("rows_in", counts["rows"]), "out": counts["rows"]}
                records.finish(step.name, rows | {"errors": counts.get("errors", 0)}, counts.get("result"))


def publish(run: Run, command: str) -> Results:
    """Write results.json and the report from what is done so far; returns the results. `command` is what the user
    typed."""
    results = gather(run, command)
    (run.folder / RESULTS).write_json(results)
    write_report(run)
    return results


def advance(run: Run, name: str, command: str) -> list[Round]:
    """Finish the base stages, take every strategy's next round as far as the round command `name` goes, and publish.

    `decode` acquires, the others are named like the state that they end. Returns the rounds that wait for people's
    answers.
    """
    until = RoundState.ACQUIRE if name == "decode" else RoundState(name)
    run_steps(run, "evaluate")
    for a_round in next_rounds(run):
        log.info("%s", a_round, extra={"stage": name})
        try:
            play(a_round, until)
        except Waiting as waiting:
            log.info("%s", waiting, extra={"stage": name})
    publish(run, command)
    return waiting_rounds(run)


def redo(run: Run, name: str) -> None:
    """Delete the output of a step and of all that follow it. If killed half-way, it is finished before any step runs:
    otherwise results of later steps would stand on new inputs, and object storage, where files go one by one, would
    show a table whose files are gone."""
    note = run.folder / REDO
    first = min([name, *note.read_json_or_empty().values()], key=STEP_NAMES.index)
    note.write_json({"from": first})
    steps = from_on(first)
    for step in steps:
        for folder in step.folders:
            (run.folder / folder).delete()
    run.records.forget({step.name for step in steps})
    (run.folder / RESULTS).delete()
    note.delete()
