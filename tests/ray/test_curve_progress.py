"""What a run says while its curves are played in processes of their own."""

from pathlib import Path

from finished_run import open_run

from ka2l_ray.active import schedule
from ka2l_ray.finetune.job import progress_of
from ka2l_ray.pipeline.curves import _progress


def test_the_progress_of_curves_is_what_is_done_and_how_far_trainings_are(tmp_path: Path) -> None:
    planned = schedule.planned_rounds(open_run(tmp_path))
    assert _progress(planned) == f"0 of {len(planned)} rounds done"
    now = {"epoch": 2, "epochs": 6, "step": 30, "steps": 114, "loss": 1.5, "evaluation": None}
    progress_of(planned[0].model).write_json(now)
    assert _progress(planned) == (
        f"0 of {len(planned)} rounds done; {planned[0]}: epoch 2/6, step 30/114, loss 1.500 nats per answer token"
    )
