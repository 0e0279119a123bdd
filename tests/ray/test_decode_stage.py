"""The status of decoded questions in a run: the eval split is searched for slightly reworded questions."""

from pathlib import Path

import pyarrow as pa
import pytest

from ka2l_ray import schema
from ka2l_ray.config import parse_config
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.decode.stage import decoded_statuses

SPLITS = {
    "probe": ["Who founded the city of Lemba?"],
    "pool": ["Who owns the harbour of Lemba?"],
    "eval": ["Which city does Ada Byron call home?", "Which city does Bo Stone call home?"],
}


@pytest.mark.parametrize(("near_duplicates", "reworded"), [(0.8, "eval"), (1.0, "kept")])
def test_a_slightly_reworded_eval_question_is_dropped(tmp_path: Path, near_duplicates: float, reworded: str) -> None:
    run = Run(Folder.of(str(tmp_path)), parse_config({"corpus": {"near_duplicates": near_duplicates}}, "test"))
    rows = {split: [{"id": q, "question": q, "split": split} for q in texts] for split, texts in SPLITS.items()}
    run.table("questions").write(
        *((split, pa.Table.from_pylist(found, schema=schema.QUESTIONS)) for split, found in rows.items())
    )
    fates = {
        "Which city does Bo Stone call home?": "eval",
        "Which city does Ada Byron call her home?": reworded,
        "Who founded the city of Lemba?": "duplicate",
        "Who owns the harbour of Lemba?": "duplicate",
        "Who was decoded in an earlier round?": "duplicate",
        "Who built the bridge of Lemba?": "kept",
    }
    assert decoded_statuses(
        run, list(fates), [0.9] * len(fates), [1.0] * len(fates), ["Who was decoded in an earlier round?"]
    ) == list(fates.values())
