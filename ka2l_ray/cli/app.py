"""`ka2l`: a command for the whole loop, and one for each stage.

In: a configuration file. Out: a run folder, a table on the terminal, an exit status. Refuses to know: how stages work.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ka2l_ray.cli.exits import INTERNAL, PAUSED, fail, plain_errors
from ka2l_ray.cli.jobs import in_copied_folder
from ka2l_ray.cli.options import ROUND_STAGES, STAGES, ConfigFile, Debug, Overrides, RetryErrors
from ka2l_ray.cli.remote import status, submit
from ka2l_ray.cli.shell import command_line
from ka2l_ray.cli.tables import print_tables
from ka2l_ray.cli.terminal import (
    print_comparison,
    print_findings,
    print_new_questions,
    print_plan,
    print_preview,
    print_results,
    print_retried,
    print_trained,
)
from ka2l_ray.config import Config, ConfigError, load_config, parse_config
from ka2l_ray.pipeline.table import STEP_NAMES

if TYPE_CHECKING:
    from ka2l_ray.active.round import Round
    from ka2l_ray.dataflow.runs import Run

app = typer.Typer(
    name="ka2l",
    help="Find out what a language model does not know, and teach it that and only that, on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
world_app = typer.Typer(
    help="The knowledge world: a made-up world and the small model that knows half of it.", no_args_is_help=True
)
app.add_typer(world_app, name="world")


def _load(config: Path, overrides: Sequence[str] | None) -> Config:
    """The configuration with paths that are valid on all nodes; relative ones count from the current folder. From here
    on, lines look as `run.log` says."""
    from ka2l_ray.dataflow.log import set_up_logging
    from ka2l_ray.dataflow.paths import absolute

    loaded = load_config(config, overrides or ())
    set_up_logging(loaded.run)
    return absolute(loaded, Path.cwd(), in_copied_folder())


def _held(config: Config) -> "Run":
    """The run, checked and held by this process: all that can be refused before connecting to a cluster."""
    from ka2l_ray.dataflow import driver
    from ka2l_ray.dataflow.runs import Run
    from ka2l_ray.pipeline import checks

    checks.check(config)
    return Run.open(config, checks.pinned, driver.hold)


def _connect(config: Config) -> None:
    """Join or start the cluster, and check that its nodes reach what the run needs."""
    from ka2l_ray.dataflow.cluster import connect
    from ka2l_ray.dataflow.log import log
    from ka2l_ray.dataflow.nodes import check_nodes

    if in_copied_folder() and Path(config.run.storage).is_relative_to(Path.cwd()):
        log.warning(
            "run.storage = %r is in this job's working directory: the results are deleted with it", config.run.storage
        )
    connect(config)
    check_nodes(config)


def _open(config: Config) -> "Run":
    """The run of a configuration, held by this process, on a cluster that reaches it."""
    run = _held(config)
    _connect(run.config)
    return run


@app.command("run")
def run_command(
    config: ConfigFile,
    overrides: Overrides = None,
    until: Annotated[str | None, typer.Option(help=f"Stop after this stage: {', '.join(STEP_NAMES[:-1])}.")] = None,
    redo: Annotated[str | None, typer.Option(help="Delete this stage and all after it, then run.")] = None,
    retry_errors: RetryErrors = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan, do nothing.")] = False,
    cluster: Annotated[
        Path | None,
        typer.Option(help="With --dry-run: a file for `ray up` or KubeRay; can such a cluster hold the run?"),
    ] = None,
    debug: Debug = False,
) -> None:
    """Run the whole loop; finished stages are skipped, a killed run continues.

    On the world, accuracy and saving are over the pool's facts in another wording; on files over facts that no pool
    question asks.
    """
    with plain_errors(debug):
        loaded = _load(config, overrides)
        # Imported here: Ray and torch take seconds to load, and a mistake in the file is reported before that.
        from ka2l_ray.active import schedule
        from ka2l_ray.pipeline import checks, loop

        for name in (until, redo):
            if name is not None and name not in STEP_NAMES:
                raise ConfigError(f"no stage {name!r}; stages are {', '.join(STEP_NAMES)}")
        if dry_run:
            checks.check_sections(loaded)
            print_plan(loaded, checks.cluster_nodes(loaded, cluster))
            checks.check_decoder_fits(loaded)
            return
        run = _open(loaded)
        if redo:
            loop.redo(run, redo)
        if retry_errors:
            _retry_errors(run)
        typed = _typed("run", config, overrides, *(("--until", until) if until else ()))
        print_results(run.folder.path, loop.execute(run, until, typed, _age_s()))
        _end_paused(config, overrides, schedule.waiting_rounds(run))


def _age_s() -> float:
    """Seconds since this command was started: imports and Ray's start are part of what it takes."""
    import psutil

    return time.time() - psutil.Process().create_time()


def _retry_errors(run: "Run") -> None:
    """Have the failed rows of every stage done again, and say which."""
    from ka2l_ray.pipeline import retry

    print_retried(retry.retry_errors(run), (run.folder / "base/search/search.json").exists())


def _typed(name: str, config: Path, overrides: Sequence[str] | None, *options: str) -> str:
    """The command as a shell reads it, for the record and for people to type again."""
    return command_line("ka2l", name, str(config), *options, overrides=overrides or ())


def decode_command(
    config: ConfigFile,
    overrides: Overrides = None,
    count: Annotated[
        int | None,
        typer.Option(min=1, help="Decode from the whole pool, without a round, until so many questions are kept."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Acquire the next round's questions and decode new ones from hidden states; with --count, as many as are wanted.

    Earlier stages run first where they are missing. With --count the pool questions that are likeliest unknown are
    decoded, wave by wave; the new questions are written to a file, and nothing is acquired.
    """
    with plain_errors(debug):
        loaded = _load(config, overrides)
        if count and not loaded.decode.enabled:
            raise ConfigError("--count: decode.enabled is false, so there is nothing that writes questions")
        run = _open(loaded)
        from ka2l_ray.pipeline import loop

        typed = _typed("decode", config, overrides, *(("--count", str(count)) if count else ()))
        if not count:
            _end_paused(config, overrides, loop.advance(run, "decode", typed))
            return
        from ka2l_ray.active.new_questions import new_questions

        loop.execute(run, "decode", typed, _age_s())
        print_new_questions(new_questions(run, count))


def _stage_command(name: str, text: str) -> None:
    """Add a command that runs every step up to `name`: a step of the run, or else one of its next round."""

    def command(config: ConfigFile, overrides: Overrides = None, debug: Debug = False) -> None:
        with plain_errors(debug):
            run, typed = _open(_load(config, overrides)), _typed(name, config, overrides)
            from ka2l_ray.pipeline import loop

            if name in ROUND_STAGES:
                _end_paused(config, overrides, loop.advance(run, name, typed))
            else:
                loop.execute(run, name, typed, _age_s())

    command.__doc__ = f"{text} Earlier stages run first where they are missing."
    app.command(name)(command)


def _end_paused(config: Path, overrides: Sequence[str] | None, waiting: "list[Round]") -> None:
    """Say what people have to do, and exit with status 3: paused, neither done nor failed."""
    if waiting:
        files = "".join(f"\n  {(r.folder / 'annotations/to_annotate.csv').uri}" for r in waiting)
        resume = _typed("annotate", config, overrides, "--import", "FILE")
        fail(
            f"paused, {len(waiting)} round(s) wait for answers:{files}\nFill in the column `answer`, then: {resume}",
            PAUSED,
        )


for _name, _text in (STAGES | ROUND_STAGES).items():
    if _name == "decode":
        app.command(_name)(decode_command)
    else:
        _stage_command(_name, _text)


@app.command("annotate")
def annotate_command(
    config: ConfigFile,
    overrides: Overrides = None,
    import_from: Annotated[
        list[str] | None,
        typer.Option("--import", help="CSV or JSONL with the answers to a waiting round's questions. May be repeated."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Run the next round up to its annotations; with --import, check people's answers and continue their rounds."""
    with plain_errors(debug):
        from ka2l_ray.active import schedule
        from ka2l_ray.annotate.file import import_file
        from ka2l_ray.pipeline import loop

        run = _held(_load(config, overrides))
        folders = [r.folder / "annotations" for r in schedule.planned_rounds(run)]
        for file in import_from or ():
            counts = import_file(file, folders, run.config.annotate.endpoint)
            print(f"{file}: " + ", ".join(f"{name} {n}" for name, n in counts.items()))  # noqa: T201
        _connect(run.config)
        given = [part for file in import_from or () for part in ("--import", file)]
        _end_paused(config, overrides, loop.advance(run, "annotate", _typed("annotate", config, overrides, *given)))


@app.command("train-decoder")
def train_decoder_command(
    config: ConfigFile,
    output: Annotated[
        str | None,
        typer.Option("--to", help="A folder or URI to copy the decoder to, for `decode.decoder` of other runs."),
    ] = None,
    overrides: Overrides = None,
    debug: Debug = False,
) -> None:
    """Train a question decoder for the model on its own states (`decode.training`), and measure it.

    Reads the run's probe split and the files in `decode.training.questions`. A killed training continues.
    """
    with plain_errors(debug):
        loaded = _load(config, overrides)
        if loaded.decode.decoder is not None or not loaded.decode.enabled:
            raise ConfigError("train-decoder: set decode.enabled: true and decode.decoder: null, so that runs use it")
        from ka2l_ray.dataflow.storage import Folder
        from ka2l_ray.decode.states_stage import decoder_of
        from ka2l_ray.decode.training import train_decoder
        from ka2l_ray.pipeline import loop

        run = _open(loaded)
        loop.execute(run, "questions", _typed("train-decoder", config, overrides), _age_s())
        result = train_decoder(run)
        folder = decoder_of(run)
        if output is not None:
            target = Folder.of(output if "://" in output else str(Path(output).absolute()))
            with folder.local() as local:
                target.upload(Path(local))
        print_trained(result, output or folder.uri)


@app.command()
def compare(
    config: ConfigFile,
    strategies: Annotated[
        str | None, typer.Option(help="Names, separated by commas; by default those in the file.")
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Number of seeds from run.seed on; each has its own split, samples and training.")
    ] = 3,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="Curves at once; by default as many as fit on the cluster.")
    ] = None,
    retry_errors: RetryErrors = False,
    overrides: Overrides = None,
    debug: Debug = False,
) -> None:
    """Compare strategies over several seeds: learning curves, and what each saves against random choice.

    A killed comparison continues. On the world, accuracy and saving are over the pool's facts in another wording;
    on files over facts that no pool question asks.
    """
    with plain_errors(debug):
        from ka2l_ray.dataflow import driver
        from ka2l_ray.pipeline import compare as comparing

        chosen = [f"active.strategies=[{strategies}]"] if strategies else []
        runs = comparing.open_runs(_load(config, [*(overrides or ()), *chosen]), seeds, driver.hold)
        for run in runs if retry_errors else ():
            _retry_errors(run)
        _connect(runs[0].config)
        words = ("--seeds", str(seeds), *(("--strategies", strategies) if strategies else ()))
        print_comparison(*comparing.compare(runs, parallel, _typed("compare", config, overrides, *words)))


@app.command()
def corpus(config: ConfigFile, overrides: Overrides = None, debug: Debug = False) -> None:
    """Preview a corpus: rows, splits, topics, a prompt, token lengths, what was dropped and why.

    Writes nothing and loads no model.
    """
    with plain_errors(debug):
        loaded = _load(config, overrides)
        from ka2l_ray.corpus.preview import preview

        print_preview(preview(loaded))


@app.command()
def tables(
    name: Annotated[
        str | None, typer.Argument(help="A table, a column, a fact of a manifest, or a word of what they mean.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Which tables a run writes, and which column is made where; all of them where no name is given."""
    with plain_errors(debug):
        print_tables(name)


@app.command()
def doctor(
    config: Annotated[
        Path | None, typer.Argument(help="A run's YAML file: can its model be read, too?", show_default=False)
    ] = None,
    overrides: Overrides = None,
    model: Annotated[
        str | None, typer.Option(help="A folder, URI or hub id: can it be read, and what can the engine do with it?")
    ] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code from the model's repository.")] = False,
    debug: Debug = False,
) -> None:
    """Check what is missing on this machine, and what to type. Exit status 1 if something cannot run."""
    with plain_errors(debug):
        from ka2l_ray.cli.doctor import examine, examine_model

        models = [_load(config, overrides).model] if config else []
        if model is not None:
            given = {"name_or_path": model, "trust_remote_code": trust_remote_code}
            models.append(parse_config({"model": given}, "--model").model)
        findings = [*examine(), *(finding for m in models for finding in examine_model(m))]
        print_findings(findings)
        if missing := [f.name for f in findings if f.state == "missing"]:
            fail(f"missing: {', '.join(missing)}", INTERNAL)


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(help="A run folder or its URI; several to compare.")],
    debug: Debug = False,
) -> None:
    """Write a run's report again from its results; for several runs, a page that compares them, next to the first's."""
    with plain_errors(debug):
        from ka2l_ray.dataflow.runs import Run
        from ka2l_ray.report.page import write_report
        from ka2l_ray.report.versus import write_versus

        opened, typed = [Run.existing(run) for run in runs], command_line("ka2l", "report", *runs)
        page = write_versus(opened, typed) if len(opened) > 1 else write_report(opened[0]) / "index.html"
        print(page.path)  # noqa: T201


app.command()(status)
app.command()(submit)


@world_app.command("build")
def world_build(
    output: Annotated[
        Path | None, typer.Option(help="Folder for `model` and `decoder`; by default the shipped assets.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=8, help="Data-parallel workers that train the model.")] = 2,
    seed: Annotated[
        int, typer.Option(min=0, help="Another world: other names, people, facts and weights. Needs --output.")
    ] = 0,
    decoder: Annotated[bool, typer.Option(help="Train the decoder too.")] = True,
    debug: Debug = False,
) -> None:
    """Train the world's language model and question decoder on Ray Train (about 15 minutes on two cores)."""
    with plain_errors(debug):
        from ka2l_ray.dataflow.cluster import connect
        from ka2l_ray.dataflow.log import set_up_logging
        from ka2l_ray.models.loading import ASSETS
        from ka2l_ray.world.facts import WorldRecipe
        from ka2l_ray.world_model.build import build
        from ka2l_ray.world_model.pretrain import ModelRecipe

        if seed and output is None:
            raise ConfigError("--seed: the shipped assets are seed 0; give another world its own folder with --output")
        set_up_logging()
        connect(Config())
        build(
            (output or ASSETS).absolute(),
            WorldRecipe(seed=seed),
            ModelRecipe(seed=seed),
            workers=workers,
            with_decoder=decoder,
        )
