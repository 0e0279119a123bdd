"""Running a command as a Ray job, from any folder.

In: a configuration file, a command, the dashboard's address. Out: the job's exit status; its log is followed as it
runs. What is sent is this package, the configuration and the files that it names by relative paths: no data, no run, no
cache, and no checkout is needed.
Refuses to know: what a command does. Losing the connection does not fail the job: its own status decides.
"""

import asyncio
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import nlargest
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
from tenacity import (
    AsyncRetrying,
    Retrying,
    retry_if_exception,
    retry_if_exception_type,
    stop_after_delay,
    wait_fixed,
)

from ka2l_ray.cli.shell import command_line
from ka2l_ray.config import Config, RunSection
from ka2l_ray.dataflow.paths import sent_with_job
from ka2l_ray.errors import ConfigError, library_message
from ka2l_ray.text.printable import printable

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

NOT_SENT = ("__pycache__", "*.pyc", ".git", ".gitignore", ".rayignore")
"""Ignore files, since Ray would leave out what they name."""
SENT_AT_MOST = 200 * 2**20
"""Bytes that are sent with a job at most. The head node keeps them in memory, and every node fetches them; Ray's own
limit is 512 MiB."""
POLL_S = 2.0
SILENCE_S = 600.0
"""A dashboard that does not answer for this long is given up; the job may go on."""
AGENT_WAIT_S = 120.0
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the environment of a job's driver, with its `runtime_env`."""
ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
SILENT_S = 60.0
"""After so long without a word the connection is made anew: it may be gone without a sign."""
LOST = (OSError, RuntimeError)
"""What Ray's client raises where the connection breaks or the dashboard does not answer."""


def in_copied_folder() -> bool:
    """Whether this process drives a Ray job whose working directory is a copy, which Ray deletes afterwards."""
    job = json.loads(os.environ.get(JOB_VARIABLE, "{}"))
    return bool(job.get("runtime_env", {}).get("working_dir"))


@dataclass(frozen=True)
class Submission:
    """A `ka2l` command to be run on a cluster: `words` are `run`, or another command with its options."""

    file: Path
    config: Config
    overrides: Sequence[str]
    words: Sequence[str]

    @property
    def entrypoint(self) -> str:
        """The job's command, started in its working directory."""
        command, *options = self.words
        words = ("python", "-m", "ka2l_ray.cli", command, self.file.name, *options)
        return command_line(*words, overrides=self.overrides)

    @contextmanager
    def working_directory(self) -> Iterator[Path]:
        """A temporary folder with what the job needs: package, configuration, and what that names by relative paths.

        Raises `ConfigError` where `run.storage` is relative, where a file is missing or outside the current folder, and
        where all is more than `SENT_AT_MOST`.
        """
        package, files = Path(__file__).parents[1], sent_with_job(self.config, Path.cwd())
        files = sorted({f for f in files if not any(other in f.parents for other in files)})
        check_size([package, self.file, *files])
        with tempfile.TemporaryDirectory(prefix="ka2l-job-") as scratch:
            folder, left_out = Path(scratch), shutil.ignore_patterns(*NOT_SENT)
            shutil.copytree(package, folder / package.name, ignore=left_out)
            for file in files:
                target = folder / file.relative_to(Path.cwd())
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copytree(file, target, ignore=left_out) if file.is_dir() else shutil.copy(file, target)
            shutil.copy(self.file, folder / self.file.name)
            yield folder


def check_size(paths: Sequence[Path]) -> None:
    """Raise `ConfigError` where files and folders are too large to be sent with a job; names the largest files."""
    sizes = {file: os.path.getsize(file) for path in paths for file in _files_of(path)}
    if (total := sum(sizes.values())) > SENT_AT_MOST:
        first, *others = [
            f"{file}: {sizes[file] / 2**20:,.0f} MiB" for file in nlargest(3, sizes, key=sizes.__getitem__)
        ]
        raise ConfigError(
            f"{first}, of {total / 2**20:,.0f} MiB to be sent with the job; at most {SENT_AT_MOST / 2**20:,.0f} are "
            "sent: files of the configuration that have relative paths. Put what is large where every node reaches it, "
            f"and give its URI or its absolute path there{' (next: ' + ', '.join(others) + ')' if others else ''}"
        )


def _files_of(path: Path) -> Iterator[Path]:
    """The file, or all files in the folder that are sent, through links as they are copied."""
    if path.is_file():
        yield path
    left_out = shutil.ignore_patterns(*NOT_SENT)
    for folder, folders, names in os.walk(path, followlinks=True):
        folders[:] = sorted({*folders} - left_out(folder, folders))
        yield from (Path(folder, name) for name in sorted({*names} - left_out(folder, names)))


def submit_job(submission: Submission, address: str | None, wait: bool = True) -> int:
    """Submit a command as a job; returns the exit status of its driver, or 0 at once where `wait` is false.

    Raises `ConfigError` where no dashboard answers at the address, where it refuses this user, and where a job of the
    same run has not ended.
    """
    client = _client(address)
    with submission.working_directory() as folder:
        job = _submit(client, submission, folder)
    _say(f"job {job}: {submission.entrypoint}")
    if not wait:
        _say(f"follow it with: {_follow_command(job, address)}")
        return 0
    return _followed(client, job, address)


def follow_job(job: str, address: str | None) -> int:
    """Follow the log of a job that was submitted before, from its beginning; returns the exit status of its driver.

    Raises `ConfigError` where no dashboard answers at the address, and where it knows no such job.
    """
    client = _client(address)
    if job not in (known := sorted(j.submission_id for j in client.list_jobs() if j.submission_id)):
        raise ConfigError(f"--follow {job}: the cluster knows no such job; it knows {', '.join(known) or 'none'}")
    return _followed(client, job, address)


def _client(address: str | None) -> "JobSubmissionClient":
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    where = address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
    os.environ[ADDRESS_VARIABLE] = where = where if "://" in where else f"http://{where}"
    try:
        return JobSubmissionClient(where)  # which would take an address of the environment instead of its argument
    except AuthenticationError as error:
        raise ConfigError(
            f"--address {where}: the dashboard refuses this user: {library_message(error)}. Set RAY_AUTH_MODE=token, "
            "and RAY_AUTH_TOKEN to the cluster's token"
        ) from error
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"--address {where}: no dashboard of a Ray cluster answers there: {library_message(error)}"
        ) from error


def _submit(client: "JobSubmissionClient", submission: Submission, folder: Path) -> str:
    """Submit, waiting for the agent that starts jobs, since a head node's dashboard answers before it does."""
    patiently = Retrying(
        retry=retry_if_exception(lambda e: isinstance(e, RuntimeError) and "No available agent" in str(e)),
        stop=stop_after_delay(AGENT_WAIT_S),
        wait=wait_fixed(POLL_S),
        before_sleep=lambda _: _say("the cluster has no job agent yet; trying again"),
        reraise=True,
    )
    run, driver = submission.config.run, submission.config.ray.driver
    return patiently(
        client.submit_job,
        entrypoint=submission.entrypoint,
        submission_id=_next_id(run, client.list_jobs()),
        runtime_env={"working_dir": str(folder)},
        metadata={"run": run.name, "storage": run.storage},
        entrypoint_num_cpus=driver.cpus or None,
        entrypoint_resources=dict(driver.nodes.resources) or None,
        entrypoint_label_selector=dict(driver.nodes.labels) or None,
    )


def _next_id(run: RunSection, jobs: Sequence["JobDetails"]) -> str:
    """`NAME-1`, or the number after the last job's of this name. Raises `ConfigError` where a job of this run has not
    ended."""
    ids = {str(j.submission_id): j for j in jobs if re.fullmatch(rf"{re.escape(run.name)}-\d+", j.submission_id or "")}
    for name, job in ids.items():
        if not job.status.is_terminal() and (job.metadata or {}).get("storage") == run.storage:
            raise ConfigError(
                f"run.name = {run.name!r}: job {name} is at work on it. Follow it with `ka2l submit --follow {name}`, "
                "stop it with `ray job stop`, or choose another run.name"
            )
    return f"{run.name}-{1 + max((int(name.rpartition('-')[2]) for name in ids), default=0)}"


def _followed(client: "JobSubmissionClient", job: str, address: str | None) -> int:
    """Print the job's log until it has ended; returns its driver's exit status. Ctrl-C leaves the job running."""
    try:
        asyncio.run(_print_log(client, job))
        ended = client.get_job_info(job)
    except KeyboardInterrupt:
        _say(f"job {job} goes on; follow it with: {_follow_command(job, address)}\nstop it with: ray job stop {job}")
        raise
    succeeded, why = ended.status.value == "SUCCEEDED", (ended.message or "").partition(", last available logs")[0]
    _say(f"job {job}: {ended.status.value.lower()}" + (f": {why}" if why and not succeeded else ""))
    return 0 if succeeded else ended.driver_exit_code or 1


async def _print_log(client: "JobSubmissionClient", job: str) -> None:
    """Print every character of the log once, however often its stream breaks: each stream begins at the beginning."""
    log = _Log()
    while True:
        why = "its stream ended"
        try:
            log.begin()
            stream = client.tail_job_logs(job)
            while (lines := await asyncio.wait_for(anext(stream, None), SILENT_S)) is not None:
                log.print(lines)
        except TimeoutError:
            why = ""  # a job may say nothing for long, and a connection that is gone may not say so
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            why = library_message(error)
        if (await _status(client, job)).is_terminal():
            break
        if why:
            _say(f"job {job}: lost its log ({why}); connecting again")
        await asyncio.sleep(POLL_S)
    try:
        log.begin()
        log.print(await asyncio.wait_for(asyncio.to_thread(client.get_job_logs, job), SILENT_S))
    except (TimeoutError, OSError, RuntimeError) as error:  # its node may be gone
        _say(f"job {job}: the end of its log cannot be read ({library_message(error)})")


class _Log:
    """A log of which more and more is seen, and each character printed once."""

    def __init__(self) -> None:
        self._seen = self._printed = 0

    def begin(self) -> None:
        self._seen = 0

    def print(self, text: str) -> None:
        sys.stdout.write(text[max(0, self._printed - self._seen) :])
        sys.stdout.flush()
        self._seen += len(text)
        self._printed = max(self._printed, self._seen)


async def _status(client: "JobSubmissionClient", job: str) -> "JobStatus":
    """The job's status, asked again while the dashboard does not answer, for `SILENCE_S` at most."""

    async def asked() -> "JobStatus":
        return await asyncio.wait_for(asyncio.to_thread(client.get_job_status, job), SILENT_S)

    patiently = AsyncRetrying(
        retry=retry_if_exception_type(LOST), stop=stop_after_delay(SILENCE_S), wait=wait_fixed(POLL_S), reraise=True
    )
    try:
        return await patiently(asked)
    except LOST as error:
        raise ConfigError(
            f"the dashboard has not answered for {SILENCE_S / 60:.0f} minutes ({library_message(error)}); the job may "
            "go on: look with `ka2l status` at its run folder"
        ) from error


def _follow_command(job: str, address: str | None) -> str:
    return shlex.join(["ka2l", "submit", "--follow", job, *(["--address", address] if address else [])])


def _say(line: str) -> None:
    print(printable(line), file=sys.stderr)  # noqa: T201
