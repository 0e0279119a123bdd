"""`ka2l train-decoder` on the world: every question once, killed workers, bad input; and rounds that use what was
trained."""

import json
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from runs import copied, small
from tiny_models import tiny_encoder, tiny_writer

from ka2l_ray.config import Config, ConfigError, ModelSection
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.decode.decoders import card_at
from ka2l_ray.decode.self_decoder import SelfCard
from ka2l_ray.decode.seq2seq import Seq2SeqCard
from ka2l_ray.decode.stage import check_decoder, decode
from ka2l_ray.decode.states_stage import decoder_of
from ka2l_ray.decode.training import train_decoder
from ka2l_ray.errors import StageError
from ka2l_ray.models.loading import load_tokenizer

TRAINING = (
    "{examples: 64, batch_rows: 8, rank: 2, layer: 3, held_out: 0.2, "
    "evaluate_every_steps: 4, checkpoint_every_steps: 2}"
)
CITIES = [
    {"id": f"c{n}", "question": f"What is the capital of {a}{b}?"}
    for n, (a, b) in enumerate(zip("ABCDEF" * 3, "uvwxyz" * 3, strict=True))
]


def trained(storage: Path, *overrides: str) -> Config:
    return small(storage, "decode.decoder=null", f"decode.training={TRAINING}", "decode.check_questions=20", *overrides)


@pytest.fixture(scope="module")
def run(scored, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A scored run with a decoder of its own, and files of which some questions must be left out."""
    folder = tmp_path_factory.mktemp("trained")
    first = next(scored[0].table("questions").batches(["question"], part="eval"))["question"][0].as_py()
    rows = [*CITIES, CITIES[0] | {"id": "again"}, {"id": "leak", "question": first}]
    (folder / "more.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    given = f"decode.training.questions={{generic: [{folder / 'more.jsonl'}]}}"
    made = copied(scored[0], trained(folder, given))
    train_decoder(made)
    return made


def test_every_question_is_read_once_and_eval_is_left_out(run: Run) -> None:
    asked = run.base("decoder/questions").read().to_pylist()
    read = run.base("decoder/states").read().to_pylist()
    assert Counter(r["id"] for r in read) == Counter(r["id"] for r in asked)
    texts = Counter(r["question"] for r in asked)
    assert set(texts.values()) == {1}
    forbidden = {
        r
        for part in ("eval", "pool")
        for r in run.table("questions").read(["question"], part=part)["question"].to_pylist()
    }
    assert not forbidden & texts.keys()
    manifest = run.base("decoder/questions").manifest()
    assert manifest["left_out"] == 1
    assert manifest["of_format"] == {"probe": 120, "generic": len({c["question"] for c in CITIES})}
    entities = {held: {r["entity"] for r in asked if r["held_out"] == held and r["entity"]} for held in (True, False)}
    assert entities[True]
    assert not entities[True] & entities[False]


def test_what_was_trained_says_which_states_it_reads_and_how_good_it_is(run: Run) -> None:
    record = train_decoder(run)
    assert record["steps"] == record["planned_steps"] == 8
    assert record["held_out_metrics"]["exact_match"] is not None
    assert record["losses"][-1] < record["losses"][0]
    card = card_at(Path(decoder_of(run).path))
    assert (type(card), card.model, card.layer, card.token_layer) == (SelfCard, "world", 3, 2)
    checked = run.base("decoder/check").read()
    held = [r["id"] for r in run.base("decoder/questions").read().to_pylist() if r["held_out"]]
    assert sorted(checked["id"].to_pylist()) == sorted(held)
    before = (decoder_of(run) / "decoder.safetensors").read_bytes()
    (decoder_of(run) / "metrics.json").delete()  # as after a kill before it was measured
    assert train_decoder(run) == record, "it is measured again, and not trained again"
    assert (decoder_of(run) / "decoder.safetensors").read_bytes() == before


def test_rounds_decode_with_it(run: Run, tmp_path: Path) -> None:
    found = check_decoder(run)
    assert found["steering_groups"], "groups of the world share people"
    sources = run.table("questions").read(["id", "question", "group", "entity"], part="pool").slice(0, 6).to_pylist()
    target = Table(run.folder / "a_round/decoded")
    table = decode(run, sources, target, ())
    assert Counter(table["source_id"].to_pylist()) == Counter({s["id"]: 2 for s in sources})
    assert decode(run, sources, target, ()).equals(table)


def train_workers() -> list[psutil.Process]:
    """The Train workers of the cluster that this process started."""
    mine = psutil.Process().children(recursive=True)
    return [p for p in mine if p.is_running() and "RayTrainWorker" in " ".join(p.cmdline())]


@pytest.mark.long
def test_a_killed_worker_costs_the_steps_since_the_last_checkpoint(scored, tmp_path: Path) -> None:
    config = trained(tmp_path, "decode.training.examples=400", "decode.training.workers=2")
    made, killed = copied(scored[0], config), threading.Event()

    def kill() -> None:
        progress = made.folder / "base/decoder/progress.json"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not killed.is_set():
            if progress.exists() and progress.read_json_or_empty().get("step", 0) >= 10:
                train_workers()[-1].send_signal(signal.SIGKILL)
                killed.set()
            time.sleep(0.02)

    watcher = threading.Thread(target=kill)
    watcher.start()
    try:
        result = train_decoder(made)
    finally:
        watcher.join()
    assert killed.is_set()
    assert len(result["resumed_at_steps"]) == 1
    assert result["resumed_at_steps"][0] > 0
    assert len(result["losses"]) == result["steps"] == 50
    assert not (made.folder / "base/decoder/train").exists()


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        (("decode.training.layer=9",), ConfigError, r"decode\.training\.layer = 9: the model has layers 0 … 6"),
        (("decode.training.batch_rows=512",), StageError, r"questions to train a decoder on and .* held out"),
        (
            ("decode.training.questions={generic: [/no/such.jsonl]}",),
            ConfigError,
            r"decode\.training\.questions = '/no/such\.jsonl': no such file",
        ),
    ],
)
def test_bad_input_is_refused_before_any_actor_starts(scored, tmp_path: Path, changes, error, says) -> None:
    made = copied(scored[0], trained(tmp_path, *changes))
    with pytest.raises(error, match=says):
        train_decoder(made)
    assert not (made.folder / "base/decoder/states").exists()


@pytest.mark.long
def test_the_states_that_decode_best_are_searched_for_and_read(scored, tmp_path: Path) -> None:
    search = "{layers: [1, 3], token_layers: [2, none], examples: 64, held_out_rows: 16}"
    encoder = f"decode.bertscore.encoder={tiny_encoder(tmp_path / 'bert')}"
    made = copied(scored[0], trained(tmp_path, f"decode.training.search={search}", encoder))
    record = train_decoder(made)
    assert 0.0 < record["held_out_metrics"]["bert_f1"] <= 1.0
    found = record["search"]
    assert len({(t["layer"], t["token_layer"]) for t in found}) == 4
    assert [t["loss"] for t in found] == sorted(t["loss"] for t in found)
    card = card_at(Path(decoder_of(made).path))
    assert isinstance(card, SelfCard)
    assert (card.layer, card.token_layer) == (found[0]["layer"], found[0]["token_layer"])
    tried = {f: f.stat().st_mtime_ns for f in Path(made.folder.path).glob("base/decoder/search/*/trial.json")}
    (made.folder / "base/decoder/search/search.json").delete()
    (decoder_of(made) / "training.json").delete()  # as after a kill in training
    assert train_decoder(made)["search"] == found
    assert {f: f.stat().st_mtime_ns for f in tried} == tried, "what is there is not tried again"


@pytest.mark.long
def test_an_encoder_decoder_is_trained_and_decodes_what_was_read(scored, tmp_path: Path) -> None:
    writer = tiny_writer("t5", load_tokenizer(ModelSection(name_or_path="world")), tmp_path / "t5")
    made = copied(scored[0], trained(tmp_path, f"decode.training.writer={writer}", "decode.training.workers=2"))
    record = train_decoder(made)
    assert record["losses"][-1] < record["losses"][0]
    card = card_at(Path(decoder_of(made).path))
    assert isinstance(card, Seq2SeqCard)
    assert (card.layer, card.token_layer, card.writer) == (3, 2, str(writer))
    measured = check_decoder(made)  # after so few steps a random one may write nothing
    assert measured["token_f1"] is not None
    written = made.base("reconstruction").read(["explained", "error"])
    assert written["error"].null_count == written.num_rows > 0
    assert written["explained"].null_count == 0
