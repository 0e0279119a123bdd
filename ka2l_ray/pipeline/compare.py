"""`ka2l compare`: strategies × seeds, each curve a Ray task, as many at once as the cluster holds.

In: a configuration and a number of seeds. Out: one ordinary run folder per seed in `STORAGE/NAME-compare/`,
`compare.json`, `index.html`. All strategies of a seed share its base stages. Everything skips what is done, so a
comparison that was killed resumes at the training run it was in; a task whose node dies is restarted by Ray and does
the same. The curves use the driver's key for a chat endpoint and divide its limits among themselves, and all seeds
share its replies, so that no question is paid for twice. Refuses to know: how a round works, how savings are computed.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
from pydantic import SecretStr

from ka2l_ray.active import schedule
from ka2l_ray.active.comparison import compare_strategies
from ka2l_ray.active.round import RoundState
from ka2l_ray.active.strategies import draws
from ka2l_ray.annotate.annotators import annotator_of
from ka2l_ray.annotate.stage import share_claims
from ka2l_ray.chat.endpoint import share
from ka2l_ray.chat.replies import CACHE, key_of
from ka2l_ray.config import Config, ConfigError, EndpointSection, Strategy
from ka2l_ray.dataflow.cluster import connect, curves_at_once
from ka2l_ray.dataflow.log import about, log, log_progress, set_up_logging
from ka2l_ray.dataflow.runs import Hold, Run, held_by_nobody, storage_of
from ka2l_ray.dataflow.tasks import cancel, fetch
from ka2l_ray.dataflow.vault import open_vault, vault
from ka2l_ray.errors import StageError, UserError
from ka2l_ray.pipeline.checks import check, pinned
from ka2l_ray.pipeline.loop import publish, run_steps
from ka2l_ray.report.comparison import render
from ka2l_ray.results_schema import ComparisonResults

NODE_RETRIES = 3
INTERRUPTED = 130
"""Exit status of a curve's process that was cancelled."""


def open_runs(config: Config, seeds: int, hold: Hold = held_by_nobody) -> list[Run]:
    """One run folder per seed, all held before any is written. Raises `ConfigError` before any work if the
    configuration does not allow a comparison."""
    if "random" not in config.active.strategies:
        raise ConfigError("active.strategies: a comparison needs `random`, against which savings are measured")
    if config.annotate.source == "file":
        raise ConfigError(
            "annotate.source = file: a comparison cannot wait for people; use world, reference or endpoint"
        )
    check(config)
    folder = storage_of(config) / f"{config.run.name}-compare"
    if (endpoint := config.annotate.endpoint).replies is None:
        config = _asking(config, endpoint.model_copy(update={"replies": (folder / CACHE).uri}))
    sections = [
        config.run.model_copy(update={"storage": folder.uri, "name": f"seed_{seed}", "seed": seed})
        for seed in range(config.run.seed, config.run.seed + seeds)
    ]
    return Run.open_all([config.model_copy(update={"run": section}) for section in sections], pinned, hold)


def _asking(config: Config, endpoint: EndpointSection) -> Config:
    """The configuration with another `annotate.endpoint`."""
    annotate = config.annotate.model_copy(update={"endpoint": endpoint})
    return config.model_copy(update={"annotate": annotate})


def compare(runs: Sequence[Run], parallel: int | None, command: str) -> tuple[str, ComparisonResults]:
    """Finish every run's base stages and learning curves, then write the comparison; returns its folder and the content
    of `compare.json`. At most `parallel` curves run at once, as many as the cluster holds if it is None."""
    key = key_of(runs[0].config.annotate.endpoint) if annotator_of(runs[0].config) == "endpoint" else None
    for n, run in enumerate(runs, 1):
        log.info("base stages of seed %d (%d/%d)", run.config.run.seed, n, len(runs), extra={"stage": "compare"})
        with about(run=run.config.run.name):
            run_steps(run, "evaluate")
    curves = [(run, *curve) for run in runs for curve in draws(run.config.active)]
    at_once, _claims = parallel or curves_at_once(runs[0].config), share_claims()
    log.info("%d curves, %d at once", len(curves), at_once, extra={"stage": "compare"})
    unfinished = [c for c in curves if any(r.state != RoundState.DONE for r in schedule.curve(*c))]
    among = min(at_once, len(unfinished))
    token = vault()
    calls = {
        f"{name} draw {draw} of seed {r.config.run.seed}": (_sharing(r, among), name, draw, key, token)
        for r, name, draw in unfinished
    }
    with log_progress("compare", lambda: _progress(runs)):
        play_side_by_side(_play_curve, calls, at_once)
    figures = compare_strategies([publish(run, command) for run in runs])
    folder, seeds = storage_of(runs[0].config), [run.config.run.seed for run in runs]
    summary = ComparisonResults(command=command, seeds=seeds, **figures)
    (folder / "compare.json").write_json(summary)
    (folder / "index.html").write_bytes(render(runs[0].config.report.title, summary).encode())
    return folder.uri, summary


def _progress(runs: Sequence[Run]) -> str:
    states = [r.state for run in runs for r in schedule.planned_rounds(run)]
    return f"{sum(s == RoundState.DONE for s in states)} of {len(states)} rounds done"


def play_side_by_side(play: Callable[..., str], calls: Mapping[str, tuple[Any, ...]], at_once: int) -> None:
    """Run each call as a Ray task, at most `at_once` at a time; `calls` maps a name to the arguments of `play`.

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
            (done,), _ = ray.wait(list(running))
            name = running.pop(done)
            log.info("%s: %s", name, _outcome(name, done, list(running.values())), extra={"stage": "compare"})
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
    return replace(run, config=_asking(run.config, share(run.config.annotate.endpoint, among)))


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
