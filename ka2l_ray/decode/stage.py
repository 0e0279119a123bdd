"""Acquired unknown questions → new questions, through a pool of decoding actors.

In: source questions. Out: the table `decoded` of a round, and `reconstruction`, which measures the decoder.
Refuses to know: who acquires, who annotates. A round's sources are bounded by its budget, so they are read whole.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ka2l_ray import schema
from ka2l_ray.dataflow.log import log
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.paths import CORPUS
from ka2l_ray.dataflow.placement import of_actor
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.shard_size import row_seconds
from ka2l_ray.dataflow.stage import Stage, begun_by, run_stage
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.dataflow.tasks import run_tasks
from ka2l_ray.decode.actor import CandidatesActor, DecodeActor
from ka2l_ray.decode.asked import AskedAbout, asked_about
from ka2l_ray.decode.augment import CARD, Augmenter, requests_for, source_fields
from ka2l_ray.decode.decoders import Card, card_at, standardise
from ka2l_ray.decode.existing import alike, alike_in
from ka2l_ray.decode.filters import are_marked, statuses_of
from ka2l_ray.decode.grounding import Names, read_names
from ka2l_ray.decode.measuring import measures
from ka2l_ray.decode.question_states import states_of
from ka2l_ray.decode.rereading import DecodeSetup, RereadActor
from ka2l_ray.decode.self_decoder import is_held_out
from ka2l_ray.decode.states import decoder_folder
from ka2l_ray.decode.states_stage import common_words, decoder_address, reading
from ka2l_ray.decode.steering import MOST_ROWS, Steering, fit_steering, names_asked
from ka2l_ray.decode.whom import NO_GROUPS
from ka2l_ray.errors import StageError
from ka2l_ray.hashing import uniform
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.examine import abilities_of
from ka2l_ray.models.loading import depth_and_width
from ka2l_ray.models.prompts import Tokenize, corpus_prompt
from ka2l_ray.tables import matrix, matrix_or_nan

CANDIDATES, REREAD = "candidates", "reread"
"""Table of what is chosen from, beside the requests, and the stage that reads it: with `decode.reread` only."""
SEARCHED_HERE = 200_000
"""Questions, at most, among which the driver itself looks for near-duplicates: a million take it one to two minutes."""
_REQUESTS = schema.TABLES["requests"].schema


def decode(run: Run, sources: Sequence[Mapping[str, Any]], target: Table, earlier: Iterable[Folder] = ()) -> pa.Table:
    """Write the table `decoded` of a round and return it. `sources` are the questions whose states are decoded, with
    `id`, `question`, `group` and `entity`. What was decoded in `earlier` rounds, given by their folders, is not asked
    again."""
    if target.is_done:
        return target.read()
    requests, written = Table(target.folder / "requests"), Table(target.folder / "written")
    before = decoded_before(earlier)
    if not requests.is_done:
        rows = requests_for(sources, run.config.decode, _asked(run, sources, before))
        requests.write((None, pa.Table.from_pylist(rows, schema=_REQUESTS)))
    _run_all(run, "written", requests, written, target.folder, _augmenter(run))
    columns = [name for name in written.schema().names if name != "state"]
    fine = [r for r in written.read(columns).sort_by("id").to_pylist() if r["error"] is None]
    status = decoded_statuses(run, fine, [r["question"] for r in before])
    decoded = [r | {"question": r["decoded_question"], "status": s} for r, s in zip(fine, status, strict=True)]
    table = pa.Table.from_pylist(decoded, schema=schema.DECODED)
    manifest = written.manifest()
    target.write((None, table), rows_in=manifest["rows_in"], errors=manifest["errors"])
    return table


def decoded_statuses(run: Run, rows: Sequence[Mapping[str, Any]], already: Sequence[str]) -> list[str]:
    """The status of each row of `written`, one of `schema.DECODE_STATUSES`, by the run's splits and the questions that
    were decoded before."""
    fitted = Augmenter.load(_augmenter(run), run.config.decode, run.config.run.seed)
    texts, threshold = [r["decoded_question"] for r in rows], run.config.corpus.near_duplicates
    leaked = _alike_to(run, texts, "eval")
    repeated = _alike_to(run, texts, "probe", "pool") | alike(texts, [already], threshold)
    return statuses_of(rows, run.config.decode, leaked, repeated, threshold, fitted.steering, fitted.marked)


def _alike_to(run: Run, texts: Sequence[str], *splits: str) -> np.ndarray:
    """Which of N texts (bool, (N,)) are alike to a question of some splits, but for those of eval that repeat a pool
    question word by word. A task for each file where there are many questions."""
    table, found = run.table("questions"), np.zeros(len(texts), bool)
    files = [file for split in splits for file in table.files(split)]
    calls = [(table.folder, file, list(texts), run.config.corpus.near_duplicates) for file in files]
    if sum(map(table.part_rows, splits)) <= SEARCHED_HERE:
        parts = [alike_in(*call) for call in calls]
    else:
        parts = run_tasks(run.config.ray.tasks, "decode", alike_in, calls)
    for part in parts:
        found |= part
    return found


def _asked(run: Run, sources: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]) -> AskedAbout:
    """What probe, pool and earlier rounds ask about the entities of the sources."""
    entities = {s["entity"] for s in sources if s["entity"]}
    wanted, columns = pa.array(list(entities), pa.string()), ["question", "group", "entity"]
    batches = (b for split in ("probe", "pool") for b in run.table("questions").batches(columns, part=split))
    about = (b.filter(pc.is_in(b["entity"], wanted)) for b in batches)  # pyright: ignore
    return asked_about(entities, (row for b in about for row in b.to_pylist()), before)


def check_decoder(run: Run) -> dict[str, float | None]:
    """How well probe questions that the decoder never saw are decoded from their own states, greedily
    (`metrics.Reconstruction`); and what probe questions' states say about steering, which is fitted on them.

    Raises `StageError` where every row failed.
    """
    folder = decoder_folder(decoder_address(run))
    card, rows = card_at(folder), _probe_questions(run)
    if not is_fitted(run):
        _fit_augmenter(run, folder, card, rows)
    steering = Augmenter.load(_augmenter(run), run.config.decode, run.config.run.seed).steering
    about_steering = {
        "steering_groups": len(steering.names) if steering else None,
        "steering_found": steering.found if steering else None,
    }
    source, target = Table(run.folder / "base/reconstruction/requests"), run.base("reconstruction")
    if not source.is_done:
        unseen = [r for r in rows if is_held_out(r["question"], r["entity"], card.held_out)]
        own = {"variant": 0, "augment": "none"}
        requests = [{"id": r["id"], "source_id": r["id"]} | own | source_fields(r) for r in unseen]
        source.write((None, pa.Table.from_pylist(requests[: run.config.decode.check_questions], schema=_REQUESTS)))
    _run_all(run, "reconstruction", source, target, target.folder, None)
    if not source.rows:
        log.warning("no probe question is new to the decoder, so it is not measured", extra={"stage": "decode"})
        return about_steering
    table = target.read(["question", "entity", "decoded_question", "error"])
    table = table.filter(pc.is_null(table["error"]))  # pyright: ignore
    if not table.num_rows:
        raise StageError(f"{target.folder.path}: every row failed, so nothing can be compared; see its folder errors")
    written, true, entities = (table[name].to_pylist() for name in ("decoded_question", "question", "entity"))
    return measures(run, written, true, entities) | about_steering


def _probe_questions(run: Run) -> list[dict[str, Any]]:
    """At most `MOST_ROWS` probe questions: all about an entity, or none, because steering compares them."""
    rows = run.table("questions").read(["id", "question", "group", "entity"], part="probe").to_pylist()
    return sorted(rows, key=lambda r: (uniform("reconstruction", r["entity"] or r["id"]), r["id"]))[:MOST_ROWS]


def is_fitted(run: Run) -> bool:
    """Whether there is what wanted states are made with. It stays as it is once it is there, even where failed rows of
    `reconstruction` are done again, because rounds have used it."""
    return (_augmenter(run) / CARD).exists()


def _augmenter(run: Run) -> Folder:
    return run.folder / "base/augmenter"


def _fit_augmenter(run: Run, folder: Path, card: Card, rows: list[dict[str, Any]]) -> None:
    """Fit what wanted states are made with on the states of probe questions, and store it."""
    decode, seed, target = run.config.decode, run.config.run.seed, run.base("decoder/probe_states")
    source = run.base("decoder/probe_questions")
    if not source.is_done:
        source.write((None, pa.Table.from_pylist(rows, schema=schema.QUESTIONS)))
    asked = (
        [rows[n]["id"] for n in names_asked([r["group"] for r in rows], [r["entity"] for r in rows])]
        if "steer" in decode.augment
        else None
    )
    run_stage(reading(run, card, "probe_states", asked), source, target)
    table = target.read()
    table = table.filter(pc.is_null(table["error"]))  # pyright: ignore
    if not table.num_rows:
        raise StageError(f"{target.folder.path}: every row failed, so nothing can be steered; see its folder errors")
    states, steering = standardise(folder)(states_of(table)), None
    if "steer" in decode.augment:
        groups, entities = table["group"].to_pylist(), table["entity"].to_pylist()
        kinds = matrix_or_nan(table["kind_state"])
        steering = fit_steering(states.pooled, groups, entities, seed, states.mean_token, kinds)
        log.log(*_says(steering), extra={"stage": "decode"})
    known = run.base("knowledge").read(["id", "unknown"])
    unknown_ids = {i for i, u in zip(known["id"].to_pylist(), known["unknown"].to_pylist(), strict=True) if u}
    unknown = np.array([i in unknown_ids for i in table["id"].to_pylist()], bool)
    marked = are_marked(table["question"].to_pylist())
    Augmenter(decode, seed, steering, states.pooled[unknown], _names(run), marked).save(_augmenter(run))


def _names(run: Run) -> Names | None:
    """The names that new questions must contain one of. Raises `StageError` where there are none."""
    if (given := run.config.decode.grounding) is None:
        return None
    if given == CORPUS:
        batches = (b for split in ("probe", "pool") for b in run.table("questions").batches(["entity"], part=split))
        names = Names.of(r["entity"] for b in batches for r in b.to_pylist() if r["entity"])
    else:
        names = Names.of(read_names(given))
    if not names.names:
        raise StageError(f"decode.grounding = {given!r}: contains no name, so no new question could be kept")
    return names


def _says(steering: Steering | None) -> tuple[int, str]:
    """What steering was fitted, as a level and a line of the log."""
    if steering is None:
        return WARNING, (
            "the probe split has neither groups that share entities nor questions enough to cluster, so no state is "
            "steered: set decode.augment to something else"
        )
    kind = "groups" if steering.by_group else "clusters"
    found = "" if steering.found is None else f"; in {steering.found:.2f} of the questions the thing is found again"
    return INFO, f"steering among {len(steering.names)} {kind}{found}"


def is_apart(run: Run, target: Table) -> bool:
    """Whether `written` or `reconstruction` is made of `candidates`: as it was begun, else as `decode.reread` says."""
    begun = begun_by(target)
    return run.config.decode.reread is not None if begun is None else begun == REREAD


def stages_of(run: Run, table: str, apart: bool, augmenter: Folder | None = None) -> list[Stage[DecodeSetup]]:
    """What writes `written` or `reconstruction`: one stage that decodes, re-embeds and chooses or, `apart`, one that
    decodes and one that does the rest."""
    config, decode, prompt = run.config, run.config.decode, corpus_prompt(run)
    state = pa.list_(pa.float32(), depth_and_width(config.model)[1])
    setup = DecodeSetup(
        model=config.model,
        prompt=prompt,
        decode=decode,
        decoder=decoder_address(run),
        probe=run.folder / "base/search/probe",
        seed=config.run.seed,
        augmenter=augmenter,
        common=common_words(run),
        limits=Limits.of(decode.pool),
        placement=of_actor(config.model, decode.pool, "decode"),
        abilities=abilities_of(config.model),
    )
    whole = Stage(
        name="decode",
        run=config.run.name,
        spec=schema.TABLES[table],
        actor=DecodeActor,
        setup=setup,
        pool=decode.pool,
        tasks=config.ray.tasks,
        states=pa.schema([("state", state)]),
        max_error_fraction=config.run.max_error_fraction,
        prepare=Tokenize(config.model, prompt),
        row_seconds=row_seconds(decode.pool),
    )
    if not apart:
        return [whole]
    candidates, states = schema.TABLES["candidates"], pa.schema([("wanted", state)])
    write = replace(whole, spec=candidates, actor=CandidatesActor, states=states)
    pool = decode.pool if decode.reread is None else decode.reread.pool
    section = "decode" if decode.reread is None else "decode.reread"
    reads = replace(setup, common=NO_GROUPS, limits=Limits.of(pool), placement=of_actor(config.model, pool, section))
    reread = replace(
        whole,
        name=REREAD,
        spec=schema.reread(whole.spec),
        actor=RereadActor,
        setup=reads,
        pool=pool,
        prepare=None,
        row_seconds=row_seconds(pool),
    )
    return [write, reread]


def _run_all(run: Run, table: str, requests: Table, target: Table, folder: Folder, augmenter: Folder | None) -> None:
    """Decode, re-embed and choose; where that is done by two stages, the candidates are in `folder` between them."""
    stages = stages_of(run, table, is_apart(run, target), augmenter)
    tables = [requests, *[Table(folder / CANDIDATES)] * (len(stages) - 1), target]
    for stage, (source, to) in zip(stages, pairwise(tables), strict=True):
        run_stage(stage, source, to)


def decoded_before(folders: Iterable[Folder]) -> list[dict[str, Any]]:
    """Of what was written in rounds with these folders: `question`, `name`, `asks`, `status`."""
    tables = [Table(f / "decoded") for f in folders]
    rows = [r for t in tables if t.is_done for r in t.read(["question", "name", "asks", "status"]).to_pylist()]
    return [r for r in rows if r["question"]]


def decoded_states(target: Table, ids: Collection[str]) -> dict[str, np.ndarray]:
    """The standardised states (D,) of some questions of a table `decoded`, by id."""
    if not ids:
        return {}
    table = Table(target.folder / "written").read(["id", "state"])
    table = table.filter(pc.is_in(table["id"], pa.array(list(ids), pa.string())))  # pyright: ignore
    return dict(zip(table["id"].to_pylist(), matrix(table["state"]), strict=True))
