"""The Python surface: its names, cheap to import, examples that are true, and a notebook from end to end."""

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import ka2l_ray
from ka2l_ray import (
    LinearProbe,
    ProbeRows,
    StateSource,
    decode_states,
    fit_probe,
    read_states,
    sample_answers,
    score_states,
    semantic_entropy,
)
from ka2l_ray.collect.actor import CollectActor, CollectSetup
from ka2l_ray.config import CollectSection, ModelSection, PromptSection
from ka2l_ray.models.loading import load_model, load_tokenizer
from ka2l_ray.models.prompts import Tokenize
from ka2l_ray.stats import auroc
from ka2l_ray.tables import matrix
from ka2l_ray.text.grading import grade
from ka2l_ray.world.facts import World, phrase_question

ROOT = Path(__file__).parents[2]
FUNCTIONS = ("decode_states", "fit_probe", "read_states", "sample_answers", "score_states", "semantic_entropy")
TYPES = ("LinearProbe", "ProbeFit", "ProbeRows", "SampledAnswers", "StateSource")
HEAVY = ("numpy", "pyarrow", "pydantic", "ray", "scipy", "sklearn", "torch", "transformers")
QUESTIONS = ["Which pet does Kuvan Gadadottir keep?", "Where does Mesul Gadadottir live?"]


def loaded_after(line: str) -> list[str]:
    """The heavy libraries that a fresh interpreter has loaded after a line of Python."""
    code = f"{line}\nimport sys\nprint(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_public_names():
    assert sorted(ka2l_ray.__all__) == sorted(FUNCTIONS + TYPES)
    assert set(ka2l_ray.__all__) <= set(dir(ka2l_ray))
    for name in ka2l_ray.__all__:
        assert getattr(ka2l_ray, name).__name__ == name
        assert inspect.isfunction(getattr(ka2l_ray, name)) == (name in FUNCTIONS)


def test_no_public_name_is_a_module_or_a_folder():
    inside = {p.stem for p in (ROOT / "ka2l_ray").iterdir()}
    assert inside & set(ka2l_ray.__all__) == set()


def test_editors_see_the_names_that_are_loaded():
    """Each name that `__all__` lists is imported for type checkers, from the module where `__getattr__` finds it."""
    tree = ast.parse((ROOT / "ka2l_ray/__init__.py").read_text())
    typed = {
        alias.name: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert typed.pop("TYPE_CHECKING") == "typing"
    assert typed == {name: getattr(ka2l_ray, name).__module__ for name in ka2l_ray.__all__}


def test_importing_the_package_loads_no_library_and_entropy_needs_none():
    assert loaded_after("import ka2l_ray") == []
    assert loaded_after("from ka2l_ray import semantic_entropy; semantic_entropy(['a', 'b'])") == []


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'ka2l_ray' has no attribute 'nothing'"):
        importlib.import_module("ka2l_ray").nothing  # noqa: B018


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_docstring_has_an_example_that_is_true(name):
    function = getattr(ka2l_ray, name)
    (example,) = doctest.DocTestFinder(recurse=False).find(function, name, globs={})
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


def test_the_readme_uses_public_names():
    """Its notebook; with a model of 7B it is read here, not run."""
    section = (ROOT / "README.md").read_text().partition("## From Python\n")[2].partition("\n## ")[0]
    tree = ast.parse(section.partition("```python\n")[2].partition("```")[0])
    named = {
        a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "ka2l_ray" for a in n.names
    }
    assert named == {*FUNCTIONS, "ProbeRows"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_docstring_says_what_it_raises_and_where_it_comes_from(name):
    text = inspect.getdoc(getattr(ka2l_ray, name)) or ""
    assert "Raises `" in text
    assert "Source: " in text
    assert "(N" in text or "K " in text


def test_a_notebook_from_a_model_to_scores_of_new_questions(world: World, tmp_path: Path) -> None:
    """The model knows half of these people. Questions and gold answers go in; the truth is compared at the end."""
    people = [p for p in world.people if not p.tutor][::13]
    facts = [world.by_key[p.name, n] for p in people for n in range(5)]
    facts = [f for f in facts if f.truth in ("known", "unseen")]
    questions = [phrase_question(f.attribute, 0, f.person.name) for f in facts]
    entity, unseen = np.array([f.person.name for f in facts]), np.array([f.truth == "unseen" for f in facts])

    model, tokenizer = load_model(ModelSection()), load_tokenizer(ModelSection())
    states = read_states(model, questions, layers=[5], tokenizer=tokenizer)[5]
    answers = sample_answers(model, questions, samples=6, tokenizer=tokenizer)
    entropy = np.array([semantic_entropy(a.samples) for a in answers])
    wrong = np.array([not grade(a.greedy, [f.value]) for a, f in zip(answers, facts, strict=True)])
    rows = ProbeRows(entropy, wrong=wrong, entity=entity)
    fit = fit_probe(states, rows, source=StateSource("world", PromptSection().template, 5, "last"))
    fit.probe.save(tmp_path / "probe")

    probe = LinearProbe.load(tmp_path / "probe")
    others = [p for p in world.people if not p.tutor][3::26]
    new = [world.by_key[p.name, 0] for p in others if world.by_key[p.name, 0].truth in ("known", "unseen")]
    asked = [phrase_question(f.attribute, 0, f.person.name) for f in new]
    scores = score_states(read_states(model, asked, [probe.card.layer], tokenizer=tokenizer)[5], probe)

    assert (auroc(unseen, entropy) or 0) > 0.95
    assert fit.objective.name == "correctness"
    assert fit.auroc is not None
    assert fit.auroc_ci is not None
    assert fit.auroc_ci[0] <= fit.auroc <= fit.auroc_ci[1]
    assert fit.auroc > 0.85
    assert (auroc(np.array([f.truth == "unseen" for f in new]), scores) or 0) > 0.85
    decoded = decode_states(read_states("world", asked, [3], "mean")[3])
    assert np.mean([d == q for d, q in zip(decoded, asked, strict=True)]) > 0.6


def test_labels_in_place_of_entropies_and_rows_of_their_own():
    states = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    labels = (states[:, 1] > 0).astype(int)
    fit = fit_probe(states, ProbeRows(labels))
    assert fit.chosen.threshold_nats == 1.0
    assert fit.objective.name == "entropy"
    assert (auroc(labels, score_states(states, fit.probe)) or 0) > 0.95
    assert (fit.probe.card.model, fit.probe.card.layer, fit.probe.card.width) == ("", -1, 4)


def test_states_and_rows_that_differ_in_number_are_refused():
    with pytest.raises(ValueError, match="3 states, but 2 entropies"):
        fit_probe(np.zeros((3, 2)), ProbeRows(np.zeros(2)))


def test_a_notebook_reads_and_samples_what_a_run_does():
    """The collecting actor, given the questions' texts as ids."""
    collect = CollectSection(samples=3, positions=("mean",))
    actor = CollectActor(
        CollectSetup(model=ModelSection(), prompt=PromptSection(), collect=collect, layers=(0, 4), seed=0)
    )
    batch = Tokenize(ModelSection(), PromptSection()).add(pa.table({"id": QUESTIONS, "question": QUESTIONS}))
    columns = actor(batch)
    answers = sample_answers("world", QUESTIONS, samples=3)
    assert [a.samples for a in answers] == columns["samples"]
    assert [a.greedy for a in answers] == columns["greedy"]
    states = read_states("world", QUESTIONS, [0, 4], "mean")
    for layer, values in states.items():
        assert matrix(columns[f"mean_{layer:03d}"]) == pytest.approx(values, rel=1e-3, abs=1e-3)  # stored as float16


def test_all_layers_of_a_model_in_memory(model, tokenizer):
    """Of each family; the tokenizer is given, for such a model has no name."""
    states = read_states(model, ["Why?"], tokenizer=tokenizer)
    assert {layer: values.shape for layer, values in states.items()} == dict.fromkeys(range(4), (1, 32))
    with pytest.raises(ValueError, match="give its tokenizer too"):
        read_states(model, ["Why?"])


def test_a_question_that_cannot_be_read_is_named_and_a_layer_too():
    with pytest.raises(ValueError, match=r"question 1, '': empty question"):
        read_states("world", [QUESTIONS[0], " "], [1])
    with pytest.raises(
        ValueError, match=r"question 0, 'long .* \[\.\.\.\]': prompt of .* exceeds? the model's context"
    ):
        sample_answers("world", ["long " * 500])
    with pytest.raises(ValueError, match="layer 9 is out of range"):
        read_states("world", QUESTIONS, [9])


def test_decoding_refuses_states_of_another_width_and_ids_of_another_number():
    with pytest.raises(ValueError, match=r"reads 2 states of width 128, got shape \(2, 3\)"):
        decode_states(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"reads 1 states of width 128, got shape \(2, 128\)"):
        decode_states(np.zeros((2, 128)), ids=["a"])


def test_noise_makes_other_questions_that_depend_on_seed_and_id_alone():
    states = np.repeat(read_states("world", QUESTIONS[:1], [3], "mean")[3], 8, axis=0)
    ids = [f"q{n}" for n in range(8)]
    written = decode_states(states, ids=ids, noise=1.0, temperature=0.7)
    assert len(set(written)) > 2
    assert decode_states(states[::-1], ids=ids[::-1], noise=1.0, temperature=0.7) == written[::-1]
    assert decode_states(states, ids=ids, noise=1.0, temperature=0.7, seed=1) != written
