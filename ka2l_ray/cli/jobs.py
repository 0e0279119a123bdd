"""Running the loop or a stage as a Ray job.

In: a configuration file and an address. Out: the job's exit status; its log is followed as it runs.
Refuses to know: what a stage does. A broken log stream is not a failed job: the job's own status decides.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ka2l_ray.cli.words import command_line
from ka2l_ray.errors import ConfigError, told_by

EXCLUDED = [".git", ".venv", "runs", "tests", "*.egg-info"]
POLL_S = 2.0
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the environment of a job's driver, with its `runtime_env`."""
AGENT_WAIT_S = 120.0


def goes_along() -> bool:
    """Whether this process is the driver of a Ray job whose working directory Ray copies to every node, and throws away afterwards."""
    job = json.loads(os.environ.get(JOB_VARIABLE, "{}"))
    return bool(job.get("runtime_env", {}).get("working_dir"))


def submit_and_follow(config: Path, overrides: Sequence[str], address: str) -> int:
    """Submit `jobs/active_learning.py` with this folder as working directory; returns 0 where the job succeeded.

    Raises `ConfigError` where no dashboard answers at the address.
    """
    from ray.job_submission import JobStatus, JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
    except ConnectionError as error:
        raise ConfigError(
            f"--address {address}: no dashboard of a Ray cluster answers there: {told_by(error)}"
        ) from error
    entrypoint = command_line("python", "jobs/active_learning.py", "--config", str(config), overrides=overrides)
    job = _submit(client, entrypoint)
    print(f"job {job}: {entrypoint}", file=sys.stderr)  # noqa: T201
    asyncio.run(_follow(client, job))
    while (status := client.get_job_status(job)) not in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED):
        time.sleep(POLL_S)
    print(f"job {job}: {status.value.lower()}", file=sys.stderr)  # noqa: T201
    return 0 if status == JobStatus.SUCCEEDED else 1


def _submit(client: "JobSubmissionClient", entrypoint: str) -> str:  # type: ignore[name-defined]  # noqa: F821
    """Submit, waiting for a head node whose dashboard answers before the agent that starts jobs does."""
    deadline = time.monotonic() + AGENT_WAIT_S
    while True:
        try:
            return client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": ".", "excludes": EXCLUDED})
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            print("the cluster has no job agent yet; trying again", file=sys.stderr)  # noqa: T201
            time.sleep(POLL_S)


async def _follow(client: "JobSubmissionClient", job: str) -> None:  # type: ignore[name-defined]  # noqa: F821
    try:
        async for lines in client.tail_job_logs(job):
            sys.stdout.write(lines)
    except (ConnectionError, OSError, RuntimeError) as error:
        print(f"job {job}: lost its log ({error}); waiting for its status", file=sys.stderr)  # noqa: T201
