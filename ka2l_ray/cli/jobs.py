"""Running the loop as a Ray job.

In: a configuration file and an address. Out: the job's exit status; its log is followed as it runs.
Refuses to know: what a stage does. Losing the log stream does not fail the job: the job's own status decides.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ka2l_ray.cli.shell import command_line
from ka2l_ray.errors import ConfigError, library_message

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

EXCLUDED = [".git", ".venv", "runs", "tests", "*.egg-info"]
POLL_S = 2.0
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the environment of a job's driver, with its `runtime_env`."""
AGENT_WAIT_S = 120.0


def in_copied_folder() -> bool:
    """Whether this process drives a Ray job whose working directory is a copy, which Ray deletes afterwards."""
    job = json.loads(os.environ.get(JOB_VARIABLE, "{}"))
    return bool(job.get("runtime_env", {}).get("working_dir"))


def submit_and_follow(config: Path, overrides: Sequence[str], address: str) -> int:
    """Submit `jobs/active_learning.py` with this folder as working directory; returns 0 if the job succeeded, else 1.

    Raises `ConfigError` where no dashboard answers at the address.
    """
    from ray.job_submission import JobStatus, JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
    except ConnectionError as error:
        raise ConfigError(
            f"--address {address}: no dashboard of a Ray cluster answers there: {library_message(error)}"
        ) from error
    entrypoint = command_line("python", "jobs/active_learning.py", "--config", str(config), overrides=overrides)
    job = _submit(client, entrypoint)
    _say(f"job {job}: {entrypoint}")
    asyncio.run(_follow(client, job))
    while (status := client.get_job_status(job)) not in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED):
        time.sleep(POLL_S)
    _say(f"job {job}: {status.value.lower()}")
    return 0 if status == JobStatus.SUCCEEDED else 1


def _submit(client: "JobSubmissionClient", entrypoint: str) -> str:
    """Submit, waiting for the agent that starts jobs, since a head node's dashboard answers before it does."""
    deadline = time.monotonic() + AGENT_WAIT_S
    while True:
        try:
            return client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": ".", "excludes": EXCLUDED})
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            _say("the cluster has no job agent yet; trying again")
            time.sleep(POLL_S)


async def _follow(client: "JobSubmissionClient", job: str) -> None:
    try:
        async for lines in client.tail_job_logs(job):
            sys.stdout.write(lines)
    except (ConnectionError, OSError, RuntimeError) as error:
        _say(f"job {job}: lost its log ({error}); waiting for its status")


def _say(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201
