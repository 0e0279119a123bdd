"""Which questions a decoder is trained on."""

from pathlib import Path

from ka2l_ray.config import load_config
from ka2l_ray.corpus.formats import Question
from ka2l_ray.corpus.prepare import parsed_rows
from ka2l_ray.decode.training_questions import training_files

ROOT = Path(__file__).parents[3]


def test_files_need_no_rewordings_whatever_eval_needs(tmp_path: Path) -> None:
    (tmp_path / "nq.jsonl").write_text('{"question": "who wrote the origin of species", "answer": ["Darwin"]}\n')
    given = f"decode.training.questions={{nq_open: [{tmp_path / 'nq.jsonl'}]}}"
    config = load_config(ROOT / "jobs/configs/smollm2-wikifacts.yaml", ["decode.decoder=null", given])
    assert config.corpus.rewordings.source == "column"
    corpus, (file,) = training_files(config, "nq_open")
    (row,) = (row for _, row in parsed_rows(file, corpus))
    assert isinstance(row, Question)
    assert row.text == "who wrote the origin of species", "as it stands, without a question mark"
