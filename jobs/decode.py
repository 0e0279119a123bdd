"""Acquire the next round's questions and decode new questions from their hidden states.

As a Ray job, from the project's folder:

    ray job submit --working-dir . -- python jobs/decode.py --config jobs/configs/world.yaml

With `--count 100` new questions are decoded from the whole pool until so many are kept, and nothing is acquired.
Earlier steps that are not done yet run first; finished steps are skipped, so a failed job can be submitted again.
"""

from ka2l_ray.cli.scripts import stage_job

if __name__ == "__main__":
    stage_job("decode", __doc__ or "")
