"""Ray Tune over probe layers and thresholds; one trial is one layer with all its thresholds.

As a Ray job, from the project's folder:

    ray job submit --working-dir . -- python jobs/search.py --config jobs/configs/world.yaml

Earlier steps that are not done yet run first; finished steps are skipped, so a failed job can be submitted again.
"""

from ka2l_ray.cli.scripts import stage_job

if __name__ == "__main__":
    stage_job("search", __doc__ or "")
