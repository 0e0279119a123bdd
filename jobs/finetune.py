"""Run every strategy's next round up to its fine-tuned model.

As a Ray job, from the project's folder:

    ray job submit --working-dir . -- python jobs/finetune.py --config jobs/configs/world.yaml

Earlier steps that are not done yet run first; finished steps are skipped, so a failed job can be submitted again.
"""

from ka2l_ray.cli.scripts import stage_job

if __name__ == "__main__":
    stage_job("finetune", __doc__ or "")
