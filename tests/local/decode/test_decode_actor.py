"""The decoding actor on the world, whose decoder, entities and truth are known."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from decoder_jobs import CARD, QUESTIONS, read

from ka2l_ray import schema
from ka2l_ray.config import DecodeSection, ModelSection, RereadSection
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.decode.actor import CandidatesActor, DecodeActor
from ka2l_ray.decode.asked import AskedAbout
from ka2l_ray.decode.augment import Augmenter, requests_for
from ka2l_ray.decode.decoders import standardise
from ka2l_ray.decode.grounding import Names
from ka2l_ray.decode.question_states import QuestionStates, states_of
from ka2l_ray.decode.rereading import DecodeSetup, RereadActor
from ka2l_ray.decode.self_decoder import SelfDecoder
from ka2l_ray.decode.states import decoder_folder
from ka2l_ray.decode.steering import fit_steering
from ka2l_ray.hashing import uniform
from ka2l_ray.models.activations import prompt_states
from ka2l_ray.models.loading import load_model, load_tokenizer
from ka2l_ray.models.probe import LinearProbe, ProbeCard
from ka2l_ray.models.prompts import Tokenize, encode
from ka2l_ray.tables import matrix
from ka2l_ray.world.facts import build_world, phrase_question
from ka2l_ray.world_model.pretrain import PROMPT

WORLD = ModelSection(name_or_path="world")
FACTS = [f for f in build_world().facts if f.truth == "unseen" and not f.person.known][:500]
ROWS = [
    {
        "id": f.fact_id,
        "question": phrase_question(f.attribute, int(3 * uniform("way", f.fact_id)), f.person.name),
        "entity": f.person.name,
    }
    for f in FACTS
]
"""Every attribute of a hundred people of whom the model knows nothing."""
SOURCES = [r | {"group": None} for r in ROWS[::9]]


def asked(requests: list[dict[str, Any]]) -> pa.Table:
    columns = dict.fromkeys(schema.TABLES["requests"].schema.names)
    return Tokenize(WORLD, PROMPT).add(
        pa.Table.from_pylist([columns | r for r in requests], schema=schema.TABLES["requests"].schema)
    )


def setup(folder: Folder, section: DecodeSection, decoder: str = "world", **fields: Any) -> DecodeSetup:
    return DecodeSetup(
        model=WORLD, prompt=PROMPT, decode=section, decoder=decoder, probe=folder / "probe", seed=0, **fields
    )


@pytest.fixture(scope="module")
def itself(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The world's model as its own decoder, as it is before any training."""
    rows, folder = pa.table({"question": QUESTIONS} | read(QUESTIONS)), tmp_path_factory.mktemp("itself") / "decoder"
    made = SelfDecoder(CARD, load_model(WORLD), load_tokenizer(WORLD))
    made.begin(states_of(rows), QUESTIONS, rows["whom_ids"].to_pylist())
    for name, values in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(values, std=0.2)  # so that the adapters change what is read where they are not off
    made.save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A probe, and an augmenter that is fitted as a run fits it."""
    folder = Folder.of(str(tmp_path_factory.mktemp("decode")))
    card = ProbeCard("world", PROMPT.template, 3, "last", 128, 1.0, 1.0)
    LinearProbe(np.ones(128) / 128, 0.0, card).save(folder / "probe")
    own = [r | {"source_id": r["id"], "variant": 0, "augment": "none"} for r in ROWS]
    found = DecodeActor(setup(folder, DecodeSection()))(asked(own))
    exact = np.mean([w == r["question"] for w, r in zip(found["decoded_question"], ROWS, strict=True)])
    assert exact > 0.7, "questions are reconstructed from their own states"
    assert found["similarity"].mean() > 0.9
    read = prompt_states(
        load_model(WORLD), 6, encode(load_tokenizer(WORLD), PROMPT, [r["question"] for r in ROWS]), "mean", [3]
    )
    states = standardise(decoder_folder("world"))(QuestionStates.pooled_alone(read[3].numpy())).pooled
    steering = fit_steering(states, [None] * len(ROWS), [r["entity"] for r in ROWS])
    assert steering is not None
    Augmenter(DecodeSection(), 0, steering, states[:50]).save(folder / "augmenter")
    names = Names.of(r["entity"] for r in ROWS)
    Augmenter(DecodeSection(), 0, steering, states[:50], names).save(folder / "grounded")
    return folder


def decoded(
    folder: Folder, augmenter: str = "augmenter", known: AskedAbout | None = None, **fields: Any
) -> list[dict[str, Any]]:
    wanted: dict[str, Any] = {"variants": 1}
    section = DecodeSection(**(wanted | fields))
    requests = requests_for(SOURCES, section, known)
    found = DecodeActor(setup(folder, section, augmenter=folder / augmenter))(asked(requests))
    assert "error" not in found
    return [r | {name: values[n] for name, values in found.items()} for n, r in enumerate(requests)]


def about_the_same_person(rows: list[dict[str, Any]]) -> float:
    """Share of the questions that ask something else about a person who exists, and who is the source's."""
    world = build_world()
    pairs = [(world.ask(r["question"]), world.ask(r["decoded_question"])) for r in rows]
    return sum(b is not None and a is not None and b.person == a.person and b != a for a, b in pairs) / len(pairs)


def test_steering_asks_something_else_of_the_same_person_where_noise_asks_of_nobody(folder: Folder) -> None:
    steered, shaken = decoded(folder), decoded(folder, augment=["noise"])
    assert all(r["target"] is not None for r in steered)
    assert all(r["target"] is None for r in shaken)
    assert about_the_same_person(steered) > 0.5
    assert about_the_same_person(shaken) < 0.2


def test_what_is_asked_of_a_person_already_is_not_asked_again_and_turns_ask_different_things(folder: Folder) -> None:
    """Two more attributes of each are asked by the corpus, in other words than the model was asked before."""
    world = build_world()
    taken = {r["id"]: (world.ask(r["question"]).attribute, n) for n, r in enumerate(SOURCES)}  # pyright: ignore
    known: AskedAbout = {
        str(r["entity"]): [
            {"question": phrase_question((attribute + more) % 5, (n + 1) % 3, str(r["entity"])), "group": "Rusaville"}
            for more in range(3)
        ]
        for r in SOURCES
        for attribute, n in [taken[r["id"]]]
    }
    rows = decoded(folder, known=known, variants=3)
    by_source = {s["id"]: [r for r in rows if r["source_id"] == s["id"]] for s in SOURCES}
    assert all([r["exhausted"] for r in own] == [False, False, True] for own in by_source.values()), "two are left"
    assert all(r["decoded_question"] == "" for r in rows if r["exhausted"])
    asked_for = {
        r["id"]: (f.attribute - taken[r["source_id"]][0]) % 5
        for r in rows
        if (f := world.ask(r["decoded_question"])) and f.person.name == r["entity"]
    }
    left = [asked_for[r["id"]] in (3, 4) for r in rows if r["id"] in asked_for]
    assert len(left) > len(SOURCES)
    assert np.mean(left) > 0.95, "what is wanted is what is left"
    assert all(r["reworded"] == (asked_for[r["id"]] < 3) for r in rows if r["id"] in asked_for)


def test_of_several_candidates_the_nearest_is_taken(folder: Folder) -> None:
    one, four = decoded(folder, candidates=1), decoded(folder, candidates=4)
    changed = [(a, b) for a, b in zip(one, four, strict=True) if a["decoded_question"] != b["decoded_question"]]
    assert changed
    world = build_world()
    better = [b["explained"] > a["explained"] for a, b in changed if world.ask(a["decoded_question"])]
    assert all(better), "a text that could be kept is replaced by a nearer one alone"
    assert np.mean([r["similarity"] for r in four]) > np.mean([r["similarity"] for r in one])
    assert np.mean([r["explained"] for r in four]) > np.mean([r["explained"] for r in one])


@pytest.mark.parametrize("decoder", ["world", "itself"])
def test_re_embedding_in_another_actor_changes_nothing_and_a_source_that_cannot_be_read_stays_an_error(
    folder: Folder, decoder: str, request: pytest.FixtureRequest
) -> None:
    """`itself` reads without its adapters."""
    decoder = decoder if decoder == "world" else request.getfixturevalue(decoder)
    section = DecodeSection(variants=2, augment=("steer", "noise"), reread=RereadSection())
    unreadable = SOURCES[0] | {"id": "long", "question": "word " * 2000}
    requests = requests_for([*SOURCES[:20], unreadable], section)
    made = setup(folder, section, decoder, augmenter=folder / "grounded")
    whole, between = DecodeActor(made)(asked(requests)), dict(CandidatesActor(made)(asked(requests)))
    lost = [n for n, error in enumerate(between.pop("error")) if error is not None]
    assert {requests[n]["source_id"] for n in lost} == {"long"}
    fine = [n for n in range(len(requests)) if n not in lost]
    table = pa.table({name: [r[name] for r in requests] for name in ("id", "augment", "question", "entity")} | between)
    again = RereadActor(made)(table.take(fine))
    assert "error" not in again
    assert [len(t) for t in table["texts"].take(fine).to_pylist()] == [section.candidates] * len(fine)
    for name in whole.keys() - {"error", "state", "similarity", "explained", "explained_after", "p_unknown"}:
        assert list(again[name]) == [whole[name][n] for n in fine], name
    for name in ("similarity", "explained", "p_unknown"):
        assert np.allclose(again[name], whole[name][fine], atol=1e-4), name
    shares = [[pytest.approx(s, abs=1e-4) for s in whole["explained_after"][n]] for n in fine]
    assert again["explained_after"] == shares
    assert np.allclose(matrix(again["state"]), matrix(whole["state"].take(pa.array(fine))), atol=1e-3)


def test_corrections_come_nearer_to_what_is_wanted(folder: Folder) -> None:
    once, corrected = decoded(folder, candidates=1), decoded(folder, candidates=1, corrections=2)
    assert [len(r["explained_after"]) for r in once] == [1] * len(once)
    assert [r["explained_after"][0] for r in corrected] == [r["explained_after"][0] for r in once]
    means = [np.mean([r["explained_after"][n] for r in corrected]) for n in range(3)]
    assert means[0] < means[1] <= means[2]
    assert [r["explained"] for r in corrected] == pytest.approx([r["explained_after"][-1] for r in corrected])
    own = [r | {"source_id": r["id"], "variant": 0, "augment": "itself"} for r in ROWS[:120]]
    exact = [
        np.mean([w == r["question"] for w, r in zip(found["decoded_question"], own, strict=True)])
        for more in (0, 2)
        for found in [DecodeActor(setup(folder, DecodeSection(candidates=1, corrections=more)))(asked(own))]
    ]
    assert exact[1] > exact[0] + 0.03, "more questions are found again"
    plain = [r | {"augment": "none"} for r in own[:8]]
    greedy = DecodeActor(setup(folder, DecodeSection(corrections=2)))(asked(plain))
    assert [len(shares) for shares in greedy["explained_after"]] == [1] * 8, "how good one text is, is measured"


def test_candidates_that_name_somebody_who_exists_come_first(folder: Folder) -> None:
    free, grounded = (decoded(folder, which, augment=["noise"]) for which in ("augmenter", "grounded"))
    assert all(r["name"] == r["entity"].lower() for r in free if r["name"]), (
        "without a list, whom the source asks about"
    )
    named = [r for r in grounded if r["name"]]
    assert all(r["name"] in r["decoded_question"].lower() for r in named)
    world = build_world()
    assert np.mean([world.ask(r["decoded_question"]) is not None for r in named]) > 0.9, "who is named exists"
    listed = Names.of(r["entity"] for r in ROWS)
    assert len(named) > sum(listed.within(r["decoded_question"]) is not None for r in free)


def test_a_question_does_not_depend_on_the_rows_beside_it(folder: Folder) -> None:
    section = DecodeSection(variants=1, candidates=3)
    requests = requests_for(SOURCES[:6], section)
    actor = DecodeActor(setup(folder, section, augmenter=folder / "augmenter"))
    together = list(actor(asked(requests))["decoded_question"])
    apart = [actor(asked([r]))["decoded_question"][0] for r in requests]
    assert apart == together


def test_a_source_that_cannot_be_read_is_an_error_of_its_row_alone(folder: Folder) -> None:
    section = DecodeSection(variants=1)
    requests = requests_for([SOURCES[0], SOURCES[1] | {"question": "word " * 2000}], section)
    found = DecodeActor(setup(folder, section, augmenter=folder / "augmenter"))(asked(requests))
    assert found["error"][0] is None
    assert "tokens" in found["error"][1]
