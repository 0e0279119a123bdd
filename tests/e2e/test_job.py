"""`ray start --head`, then `ray job submit`, with token authentication on."""

import pytest
from commands import JobRun, results


@pytest.mark.timeout(2400)  # the run of `job_run` counts
def test_the_loop_runs_as_a_job_and_needs_the_token(job_run: JobRun) -> None:
    assert job_run.refused.returncode != 0
    assert job_run.done.returncode == 0, job_run.done.stdout + job_run.done.stderr
    assert "succeeded" in job_run.done.stdout + job_run.done.stderr
    assert [r["round"] for r in results(job_run.folder)["rounds"]] == [0, 1, 0, 1]
    assert (job_run.folder / "report/index.html").exists()
