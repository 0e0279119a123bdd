"""The commands for a cluster: run a command there as a job, and look at a run from anywhere.

In: the command line. Out: exit statuses, text. Refuses to know: how jobs and statuses work (`jobs`, `status`).
"""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ka2l_ray.cli.exits import plain_errors
from ka2l_ray.cli.options import ROUND_STAGES, STAGES, Debug, Overrides
from ka2l_ray.config import ConfigError, load_config

SUBMITTED = ("run", *STAGES, *ROUND_STAGES, "annotate", "compare")
"""Commands that a job may run."""


def status(
    run: Annotated[str, typer.Argument(help="The run's folder or its URI, such as runs/world or s3://bucket/runs/x.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead, for scripts.")] = False,
    debug: Debug = False,
) -> None:
    """What a run is doing, from its folder alone: steps, rows, rate, time left, the driver's last sign of life, errors.

    Works from any machine that reaches the folder, whether or not the cluster lives; writes nothing.
    """
    with plain_errors(debug):
        from ka2l_ray.cli.status import print_status
        from ka2l_ray.dataflow.runs import Run
        from ka2l_ray.pipeline.status import status_of

        print_status(status_of(Run.existing(run)), as_json)


def submit(
    config: Annotated[
        Path | None, typer.Argument(help="The run's YAML file; none with --follow.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    command: Annotated[
        str, typer.Option(help="What the job runs, with its options: run, a stage such as search, or compare.")
    ] = "run",
    address: Annotated[
        str | None,
        typer.Option(help="The cluster's dashboard; by default RAY_API_SERVER_ADDRESS or http://127.0.0.1:8265."),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Follow the job's log, and end with its exit status.")] = True,
    follow: Annotated[
        str | None, typer.Option(help="Follow the log of a job that was submitted before, instead of submitting.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Run a command as a Ray job on a cluster, from any folder; a run that was cut off continues when submitted again.

    This package, the configuration and the files that it names by relative paths are sent; `ka2l_ray` need not be
    installed on the cluster, but the packages that it needs must be.
    """
    with plain_errors(debug):
        from ka2l_ray.cli.jobs import Submission, follow_job, submit_job

        if follow is not None:
            raise SystemExit(follow_job(follow, address))
        if config is None:
            raise ConfigError("submit needs a configuration file, or --follow and a job")
        words = shlex.split(command)
        if not words or words[0] not in SUBMITTED:
            raise ConfigError(f"--command {command!r}: must begin with one of {', '.join(SUBMITTED)}")
        if misplaced := {"--set", "--import"}.intersection(words):
            raise ConfigError(
                f"--command {command!r}: {misplaced.pop()} is not for a job; give --set to submit itself, and import "
                "answers with `ka2l annotate`, which then goes on"
            )
        submission = Submission(config, load_config(config, overrides or ()), overrides or (), words)
        raise SystemExit(submit_job(submission, address, wait))
