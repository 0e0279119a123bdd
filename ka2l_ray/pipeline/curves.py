"""Learning curves side by side: each a Ray task with a process of its own, as many at once as the cluster holds.

In: runs whose base stages are done. Out: their rounds. A task whose node dies is restarted by Ray and skips what is
done. The curves use the driver's key for a chat endpoint, divide its limits among themselves and claim questions from
each other, so that none is paid for twice. Refuses to know: how a round works, what is made of the curves.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ray
from pydantic import SecretStr

from ka2l_ray.active import schedule
from ka2l_ray.active.round import Round, RoundState
from ka2l_ray.active.strategies import draws
from ka2l_ray.annotate.annotators import annotator_of
from ka2l_ray.annotate.stage import share_claims
from ka2l_ray.chat.endpoint import share
from ka2l_ray.chat.replies import key_of
from ka2l_ray.config import Config, EndpointSection, Strategy
from ka2l_ray.dataflow.cluster import connect, curves_at_once
from ka2l_ray.dataflow.log import log, log_progress, set_up_logging
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.tasks import cancel, fetch
from ka2l_ray.dataflow.vault import open_vault, vault
from ka2l_ray.errors import StageError, UserError
from ka2l_ray.finetune.job import progress_of
from ka2l_ray.finetune.record import progress_line

NODE_RETRIES = 3
INTERRUPTED = 130
"""Exit status of a curve's process that was cancelled."""
LOOKED_AT_S = 5.0
"""Seconds between two looks at which rounds are done."""


def play_rounds(run: Run) -> None:
    """Play every round of a run that may be played, curves side by side where the cluster holds several; where people
    answer, one round after another in this process, because a curve that waits for them is no failure."""
    at_once = run.config.active.parallel or curves_at_once(run.config)
    unfinished = _unfinished([run])
    if min(at_once, len(unfinished)) < 2 or annotator_of(run.config) == "file":
        schedule.play_rounds(run)
    else:
        play_curves("rounds", [run], at_once)


def play_curves(stage: str, runs: Sequence[Run], at_once: int) -> None:
    """Play what is unfinished of every curve of the runs, at most `at_once` at a time; a line for each round.

    Raises what `play_side_by_side` raises.
    """
    if not (unfinished := _unfinished(runs)):
        return
    _claims = share_claims()
    planned = [r for run in runs for r in schedule.planned_rounds(run)]
    log.info("%d curves, %d at once", len(unfinished), at_once, extra={"stage": stage})
    among, token = min(at_once, len(unfinished)), vault()
    key = key_of(runs[0].config.annotate.endpoint) if annotator_of(runs[0].config) == "endpoint" else None
    calls = {
        f"{name} draw {draw} of seed {r.config.run.seed}": (_sharing(r, among), name, draw, key, token)
        for r, name, draw in unfinished
    }
    waiting = [r for r in planned if r.state != RoundState.DONE]
    with log_progress(stage, lambda: _progress(planned)):
        play_side_by_side(_play_curve, calls, at_once, partial(_log_newly_done, waiting, len(planned), stage))


def _unfinished(runs: Sequence[Run]) -> list[tuple[Run, Strategy, int]]:
    """(run, strategy, draw) of each curve with a round that may be played."""
    curves = [(run, *curve) for run in runs for curve in draws(run.config.active)]
    return [c for c in curves if any(map(schedule.may_be_played, schedule.curve(*c)))]


def _log_newly_done(waiting: list[Round], planned: int, stage: str) -> None:
    """Log the rounds that are done by now, and take them from those that are waited for."""
    for a_round in _next(waiting):
        if a_round.state == RoundState.DONE:
            waiting.remove(a_round)
            line = schedule.describe(a_round.record(), planned - len(waiting), planned)
            log.info("%s", line, extra={"stage": stage})


def _next(waiting: Sequence[Round]) -> list[Round]:
    """Of each curve the first round that is waited for."""
    return [r for r in waiting if not any(e in waiting for e in r.earlier)]


def _progress(planned: Sequence[Round]) -> str:
    """How many rounds are done, and how far those are that are training."""
    waiting = [r for r in planned if r.state != RoundState.DONE]
    training = [f"{r}: {line}" for r in _next(waiting) if (line := progress_line(progress_of(r.model)))]
    return "; ".join([f"{len(planned) - len(waiting)} of {len(planned)} rounds done", *training])


def play_side_by_side(
    play: Callable[..., str],
    calls: Mapping[str, tuple[Any, ...]],
    at_once: int,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Run each call as a Ray task, at most `at_once` at a time; `calls` maps a name to the arguments of `play`.
    `meanwhile` is called every few seconds, and at the end.

    The first failure ends them all: running tasks are cancelled, and have ended before the error is raised with their
    names; waiting ones never start. Raises `StageError` for what the user can fix, else what the task raised.
    """
    task = ray.remote(num_cpus=0, max_retries=NODE_RETRIES)(_with_its_process)
    waiting, running = list(calls.items()), {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                name, arguments = waiting.pop(0)
                running[task.remote(play, *arguments)] = name
            finished, _ = ray.wait(list(running), timeout=LOOKED_AT_S)
            meanwhile()
            for done in finished:
                name = running.pop(done)
                line = _outcome(name, done, list(running.values()))
                log.debug("%s: %s", name, line)
    finally:
        cancel(running)


def _with_its_process(play: Callable[..., str], *arguments: Any) -> str:
    """Play a curve, and end the process if it is cancelled: Ray Data would let blocks in flight go on, which cost
    training time and money. What a process started ends with it."""
    try:
        return play(*arguments)
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)


def _sharing(run: Run, among: int) -> Run:
    """The run with a share of the endpoint's limits, one of `among`; limits change no result."""
    return replace(run, config=asking(run.config, share(run.config.annotate.endpoint, among)))


def asking(config: Config, endpoint: EndpointSection) -> Config:
    """The configuration with another `annotate.endpoint`."""
    annotate = config.annotate.model_copy(update={"endpoint": endpoint})
    return config.model_copy(update={"annotate": annotate})


def _outcome(name: str, done: "ray.ObjectRef[str]", others: Sequence[str]) -> str:
    """What a curve reports at its end. An error names the curve and the cancelled `others`: in its message if the user
    can fix it, else in a note."""
    cancelled = f"; cancelled with it: {', '.join(others)}" if others else ""
    try:
        return fetch(done)
    except UserError as error:
        raise StageError(f"{name}: {error}{cancelled}") from error
    except Exception as error:
        error.add_note(f"from {name}{cancelled}")
        raise


def _play_curve(run: Run, strategy: Strategy, draw: int, key: SecretStr | None, token: Any) -> str:
    """Play all rounds of one strategy and draw in a process of their own, the driver of its Ray Data pipelines and Ray
    Train runs.

    The key is passed as a masked argument, because Ray shows a `runtime_env` in its dashboard; the environment of this
    process may have no key, or another one.
    """
    set_up_logging(run.config.run)
    connect(run.config)
    open_vault(token)
    variable = run.config.annotate.endpoint.key_variable
    os.environ.pop(variable, None)
    if key is not None:
        os.environ[variable] = key.get_secret_value()
    return schedule.play_curve(run, strategy, draw)
