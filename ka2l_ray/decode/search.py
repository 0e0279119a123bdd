"""Ray Tune over the states that a decoder reads: which layer and position say best what is asked, and which layer's
tokens of whom.

In: a run with `decoder_questions`. Out: `base/decoder/search`: `trial.json` of each combination, and `search.json` with
all of them, the best first. One that is there is not tried again.
Refuses to know: how a decoder is trained, what it is used for.
"""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from ray import tune

from ka2l_ray.dataflow.log import log, log_progress
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.placement import Placement, gpus_used
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.dataflow.trials import run_trials
from ka2l_ray.dataflow.vault import open_vault, vault
from ka2l_ray.decode.fitting import TrainedCard
from ka2l_ray.decode.states_stage import common_words
from ka2l_ray.decode.trial import RESULT, TrialSetup, cards_of, for_trials, run_trial
from ka2l_ray.errors import StageError
from ka2l_ray.models.examine import abilities_of
from ka2l_ray.models.prompts import corpus_prompt

SUMMARY = "search.json"


def search_decoders(run: Run, card: TrainedCard, questions: Table) -> list[dict[str, Any]]:
    """Try every combination of `decode.training.search`; returns what `run_trial` does of each, the best first.

    Raises `StageError` where a trial failed.
    """
    folder = run.folder / "base/decoder/search"
    if (summary := folder / SUMMARY).exists():
        return summary.read_json()["trials"]
    cards = cards_of(card, run.config.decode.training)
    missing = {name: c for name, c in cards.items() if not (folder / name / RESULT).exists()}
    if missing:
        _tune(run, missing, questions, folder)
    if lost := [name for name in missing if not (folder / name / RESULT).exists()]:
        raise StageError(f"decode.training.search: no decoder was trained for {', '.join(lost)}; see the errors above")
    found = sorted(((folder / name / RESULT).read_json() for name in cards), key=lambda trial: trial["loss"])
    summary.write_json({"trials": found})
    best = found[0]
    said = "of %d combinations layer %d (%s), tokens at %s decode best: %.3f nats per token on held-out questions"
    counts = (len(found), best["layer"], best["position"], best["token_layer"], best["loss"])
    log.info(said, *counts, extra={"stage": "decode"})
    return found


def _tune(run: Run, cards: dict[str, TrainedCard], questions: Table, folder: Folder) -> None:
    config, training = run.config, for_trials(run.config.decode.training)
    setup = TrialSetup(
        model=config.model,
        prompt=corpus_prompt(run),
        training=training,
        questions=_some(questions, training.examples, training.held_out_rows),
        common=common_words(run),
        placement=Placement(gpus_used(config.model, training.gpus_per_worker), "decode.training.gpus_per_worker"),
        abilities=abilities_of(config.model),
        seed=config.run.seed,
    )
    log.info("a short training for each of %d combinations", len(cards), extra={"stage": "decode"})
    steps = max(1, training.examples // training.batch_rows)
    with log_progress("decode", lambda: _line([folder / name for name in cards], steps)):
        run_trials(
            _trial,
            list(cards),
            name=f"decoders-{run.hash}",
            stage="decode.training.search",
            metric="loss",
            mode="min",
            resources={"CPU": training.cpus_per_worker} | ({"GPU": 1} if training.gpus_per_worker else {}),
            nodes=training.nodes,
            setup=setup,
            cards=cards,
            folder=folder,
            token=vault(),
        )


def _line(trials: list[Folder], steps: int) -> str:
    """How far the trials in some folders are, each of so many steps."""
    done = sum((trial / RESULT).exists() for trial in trials)
    made = sum((trial / "progress.json").read_json_or_empty().get("step", 0) for trial in trials)
    return f"search: {done} of {len(trials)} combinations, step {made:,}/{steps * len(trials):,}"


def _trial(
    params: dict[str, str], setup: TrialSetup, cards: dict[str, TrainedCard], folder: Folder, token: Any
) -> None:
    open_vault(token)
    name = params["value"]
    found = run_trial(setup, cards[name], folder / name)
    tune.report({key: value for key, value in found.items() if isinstance(value, (int, float))})


def _some(questions: Table, examples: int, held_out: int) -> pa.Table:
    """As many questions as a trial can use, in the order of the table, which is random."""
    rows = questions.read()
    held, taught = rows.filter(rows["held_out"]), rows.filter(pc.invert(rows["held_out"]))  # pyright: ignore
    return pa.concat_tables([taught.slice(0, examples), held.slice(0, held_out)])
