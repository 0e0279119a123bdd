"""`ray start --head`, then `ray job submit`, with token authentication on."""

import pytest
from commands import LINES, JobRun, results


@pytest.mark.timeout(2400)  # the run of `job_run` counts
def test_the_loop_runs_as_a_job_and_needs_the_token(job_run: JobRun) -> None:
    assert job_run.refused.returncode != 0
    assert job_run.done.returncode == 0, job_run.done.stdout + job_run.done.stderr
    assert "succeeded" in job_run.done.stdout + job_run.done.stderr
    assert [r["round"] for r in results(job_run.folder)["rounds"]] == [0, 1]
    assert (job_run.folder / "report/index.html").exists()
    decoded = results(job_run.folder)["decode"]
    assert decoded["by_augment"]["steer"]["generated"] == decoded["generated"] > 0
    assert decoded["steering_groups"] > 1


@pytest.mark.timeout(2400)
def test_a_log_is_shown_once_and_whole_though_its_stream_breaks_and_the_jobs_status_is_the_commands(
    job_run: JobRun,
) -> None:
    shown = [line for line in job_run.followed.stdout.splitlines() if line.startswith("line ")]
    assert [line.split()[1] for line in shown] == [str(n) for n in range(LINES)]
    assert {len(line.split()[2]) for line in shown} == {200}
    assert job_run.followed.returncode == 7, job_run.followed.stderr
    assert job_run.cuts == 3
    assert "lost its log" in job_run.followed.stderr
