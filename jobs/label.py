"""From sampled answers to clusters, semantic entropy, γ, and the label known or unknown.

As a Ray job, from the project's folder:

    ray job submit --working-dir . -- python jobs/label.py --config jobs/configs/world.yaml

Earlier steps that are not done yet run first; finished steps are skipped, so a failed job can be submitted again.
"""

from ka2l_ray.cli.scripts import stage_job

if __name__ == "__main__":
    stage_job("label", __doc__ or "")
