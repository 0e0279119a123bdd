"""The whole loop: collect, label, search, score, then round by round acquire, decode, annotate, fine-tune, evaluate.

As a Ray job, from the project's folder:

    ray job submit --working-dir . -- python jobs/active_learning.py --config jobs/configs/world.yaml

Earlier steps that are not done yet run first; finished steps are skipped, so a failed job can be submitted again.
"""

from ka2l_ray.cli.scripts import stage_job

if __name__ == "__main__":
    stage_job("run", __doc__ or "")
