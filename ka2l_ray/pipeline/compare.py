"""`ka2l compare`: strategies × seeds, as many curves at once as the cluster holds.

In: a configuration and a number of seeds. Out: one ordinary run folder per seed in `STORAGE/NAME-compare/`,
`compare.json`, `index.html`. All strategies of a seed share its base stages. Everything skips what is done, so a
comparison that was killed resumes at the training run it was in. All seeds share a chat endpoint's replies, so that no
question is paid for twice. Refuses to know: how curves are played, how savings are computed.
"""

from collections.abc import Sequence

from ka2l_ray.active.comparison import compare_strategies
from ka2l_ray.chat.replies import CACHE
from ka2l_ray.config import Config, ConfigError
from ka2l_ray.dataflow.cluster import curves_at_once
from ka2l_ray.dataflow.log import about, log
from ka2l_ray.dataflow.runs import Hold, Run, held_by_nobody, storage_of
from ka2l_ray.pipeline.checks import check, pinned
from ka2l_ray.pipeline.curves import asking, play_curves
from ka2l_ray.pipeline.loop import publish, run_steps
from ka2l_ray.report.comparison import render
from ka2l_ray.results_schema import ComparisonResults


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
        config = asking(config, endpoint.model_copy(update={"replies": (folder / CACHE).uri}))
    sections = [
        config.run.model_copy(update={"storage": folder.uri, "name": f"seed_{seed}", "seed": seed})
        for seed in range(config.run.seed, config.run.seed + seeds)
    ]
    return Run.open_all([config.model_copy(update={"run": section}) for section in sections], pinned, hold)


def compare(runs: Sequence[Run], parallel: int | None, command: str) -> tuple[str, ComparisonResults]:
    """Finish every run's base stages and learning curves, then write the comparison; returns its folder and the content
    of `compare.json`. At most `parallel` curves run at once, as many as the cluster holds if it is None."""
    for n, run in enumerate(runs, 1):
        log.info("base stages of seed %d (%d/%d)", run.config.run.seed, n, len(runs), extra={"stage": "compare"})
        with about(run=run.config.run.name):
            run_steps(run, "evaluate")
    play_curves("compare", runs, parallel or curves_at_once(runs[0].config))
    figures = compare_strategies([publish(run, command) for run in runs])
    folder, seeds = storage_of(runs[0].config), [run.config.run.seed for run in runs]
    summary = ComparisonResults(command=command, seeds=seeds, **figures)
    (folder / "compare.json").write_json(summary)
    (folder / "index.html").write_bytes(render(runs[0].config.report.title, summary).encode())
    return folder.uri, summary
