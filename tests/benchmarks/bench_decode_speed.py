"""`make bench`: decoding with re-ranking in batches against a loop over states one by one.

In: the world and, where it is installed, SmolLM2, each with the decoder that the package ships. Out:
`results/decode_speed.json`. Both sides are the same actor in one process of one thread: questions are decoded from
their own states, the best of four texts by the round trip, once `--rows` at a time and once one row per call. They take
turns, and which is first changes from pair to pair; the ratio is of their times, with its 95 % interval over pairs.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import torch

from ka2l_ray.config import DecodeSection, ModelSection, PromptSection, load_config
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.decode.actor import DecodeActor
from ka2l_ray.decode.decoders import card_at
from ka2l_ray.decode.rereading import DecodeSetup
from ka2l_ray.decode.states import decoder_folder
from ka2l_ray.models.examine import abilities_of
from ka2l_ray.models.loading import depth_and_width
from ka2l_ray.models.probe import LinearProbe, ProbeCard
from ka2l_ray.models.prompts import Tokenize
from ka2l_ray.schema import TABLES
from ka2l_ray.stats import interval
from ka2l_ray.world.facts import build_world, phrase_question
from ka2l_ray.world_model.pretrain import PROMPT

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "decode_speed.json"
PLACES = "Kinshasa Ulm Tromso Cusco Nara Perth Riga Lagos Quito Davos Aqaba Hilo".split()


def world_rows(count: int) -> list[dict[str, Any]]:
    facts = [f for f in build_world().facts if f.truth == "unseen"][:count]
    return [
        {"id": f.fact_id, "question": phrase_question(f.attribute, n % 3, f.person.name), "entity": f.person.name}
        for n, f in enumerate(facts)
    ]


def place_rows(count: int) -> list[dict[str, Any]]:
    names = [f"{a} {b}" for a in PLACES for b in PLACES if a != b][:count]
    return [{"id": name, "question": f"Which country is {name} located in?", "entity": name} for name in names]


def actor_of(model: ModelSection, prompt: PromptSection, decoder: str, scratch: Path) -> DecodeActor:
    card, width = card_at(decoder_folder(decoder)), depth_and_width(model)[1]
    source = ProbeCard(model.identity, prompt.template, card.layer, card.position, width, 1.0, 1.0)
    folder = Folder.of(str(scratch))
    LinearProbe(torch.ones(width).numpy() / width, 0.0, source).save(folder)
    decode = DecodeSection(decoder=decoder, candidates=4)
    abilities = abilities_of(model)
    return DecodeActor(
        DecodeSetup(
            model=model, prompt=prompt, decode=decode, decoder=decoder, probe=folder, seed=0, abilities=abilities
        )
    )


def compared(actor: DecodeActor, asked: pa.Table, pairs: int) -> dict[str, Any]:
    """Seconds of both ways by pair, and their ratio."""

    def together() -> None:
        actor(asked)

    def one_by_one() -> None:
        for n in range(asked.num_rows):
            actor(asked.slice(n, 1))

    actor(asked.slice(0, 2))  # what is done once is done
    seconds: dict[str, list[float]] = {"together": [], "one_by_one": []}
    for pair in range(pairs):
        ways = [("together", together), ("one_by_one", one_by_one)]
        for name, way in ways if pair % 2 == 0 else reversed(ways):
            started = time.monotonic()
            way()
            seconds[name].append(time.monotonic() - started)
    ratios = [b / a for a, b in zip(seconds["together"], seconds["one_by_one"], strict=True)]
    per_s = asked.num_rows / fmean(seconds["together"])
    return {"rows": asked.num_rows, "seconds": seconds, "questions_per_s": per_s, "ratio": fmean(ratios)} | {
        "ratio_ci": interval(ratios) if pairs > 1 else None
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"command": f"python {' '.join(sys.argv)}"}
    real = load_config(ROOT / "jobs/configs/smollm2-wikifacts.yaml")
    shipped = json.loads((decoder_folder("smollm2") / "decoder.json").read_text())["prompt"]
    subjects = {
        "world": (ModelSection(name_or_path="world"), PROMPT, "world", world_rows(given.rows)),
        "smollm2": (
            *(real.model, real.corpus.prompt.model_copy(update={"style": "bare", "template": shipped}), "smollm2"),
            place_rows(given.rows),
        ),
    }
    for name, (model, prompt, decoder, rows) in subjects.items():
        columns = dict.fromkeys(TABLES["requests"].schema.names)
        own = [columns | r | {"source_id": r["id"], "variant": 0, "augment": "itself"} for r in rows]
        asked = Tokenize(model, prompt).add(pa.Table.from_pylist(own, schema=TABLES["requests"].schema))
        with tempfile.TemporaryDirectory() as scratch:
            found[name] = compared(actor_of(model, prompt, decoder, Path(scratch)), asked, given.pairs)
        print(f"{name}: {json.dumps(found[name])}", flush=True)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
