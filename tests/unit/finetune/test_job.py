"""What a training run reads, and where it writes."""

from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa
import pytest

from ka2l_ray.config import FinetuneSection, ModelSection, PromptSection
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.metric_table import OF_TRAININGS
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.finetune.checkpoints import History
from ka2l_ray.finetune.job import Job, read_evaluation, read_examples
from ka2l_ray.finetune.record import Recorder, progress_line

ROWS = [
    {"id": f"{i:02d}", "question": f"q{i}", "answers": [f"a{i}", "alias"] if i % 5 else [], "source": "replay"}
    | {"rewordings": [f"q{i} again"] if i % 3 else []}
    for i in range(40)
]


def job(folder, **fields):
    table = Table(Folder.of(str(folder / "rows")))
    table.write((None, pa.Table.from_pylist(ROWS[::-1])))
    section = FinetuneSection(**fields)
    return Job(
        ModelSection(dtype="float32"), PromptSection(), section, table, Folder.of(str(folder / "round/model")), 0, table
    )


def test_examples_are_ordered_by_id_and_know_whether_they_are_replayed(tmp_path):
    found = read_examples(job(tmp_path).examples)
    assert [e.question for e in found] == [f"q{i}" for i in range(40)]
    assert all(e.replayed for e in found)
    assert [e.rewordings for e in found] == [(f"q{i} again",) if i % 3 else () for i in range(40)]


def test_evaluation_is_every_row_of_its_table_with_the_first_gold_answer(tmp_path):
    given = job(tmp_path, evaluate_every_epochs=1, evaluate_rows=10)
    with_gold = Table(Folder.of(str(tmp_path / "watched")))
    with_gold.write((None, pa.Table.from_pylist([r for r in ROWS[::-1] if r["answers"]])))
    found = read_evaluation(replace(given, evaluation=with_gold))
    assert [(e.question, e.answers) for e in found] == [(f"q{i}", (f"a{i}",)) for i in range(40) if i % 5]
    assert read_evaluation(replace(given, evaluation=None)) == []


def test_everything_is_next_to_the_model(tmp_path):
    given = job(tmp_path, precision="bfloat16")
    places = [given.checkpoints, given.merged, given.tensorboard, given.progress]
    assert [p.path.removeprefix(f"{tmp_path}/round/") for p in places] == [
        "train",
        "merged",
        "tensorboard",
        "model-progress.json",
    ]
    assert (given.training_model.dtype, given.model.dtype) == ("bfloat16", "float32")


@pytest.mark.parametrize("tensorboard", [False, True])
def test_rank_zero_reports_its_progress(tmp_path, tensorboard):
    given = job(tmp_path, epochs=2, tensorboard=tensorboard)
    assert progress_line(given.progress) is None
    reported: list[Mapping[str, float]] = []
    recorder, history = Recorder(given, steps=4, first_step=0, report=reported.append), History()
    for step in range(1, 5):
        history.losses.append(1.0 / step)
        history.kl.append(None)
        if step == 2:
            history.evaluations.append({"epoch": 1, "step": 2, "loss": 0.5, "token_accuracy": 0.75, "exact_match": 0.5})
        recorder.step(history, 0.25 * step, (step + 1) // 2, 1e-3, epoch_ends=step % 2 == 0)
    recorder.close()
    line = "epoch 2/2, step 4/4, loss 0.250 nats per answer token; eval loss 0.500, token accuracy 0.750 after epoch 1"
    assert progress_line(given.progress) == line
    assert [set(values) for values in reported] == [{m.name for m in OF_TRAININGS}] * 4
    assert list(reported[1].values()) == [2, 4, 0.5, 0.5]
    events = given.tensorboard.names() if given.tensorboard.exists() else []
    assert bool(events) == tensorboard
