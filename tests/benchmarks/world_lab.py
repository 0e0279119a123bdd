"""The loop on the knowledge world in one process, for studies of many training runs: no Ray, no DeepSpeed.

In: an unknown share, a seed, a recipe. Out: what a strategy buys, the tuned model's figures.
Acquisition, replay, examples, losses, probes and grading are the product's; only the training loop is plain PyTorch,
with the same global batches. `bench_cross_check.py` trains the same examples on Ray Train and DeepSpeed.
"""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ka2l_ray.active.policies import PoolRow
from ka2l_ray.active.replay import knew, replayed_answers, select_replay
from ka2l_ray.active.strategies import policy
from ka2l_ray.collect.actor import CollectActor, CollectSetup
from ka2l_ray.config import (
    AcquireSection,
    CollectSection,
    CorpusSection,
    DecodeSection,
    FinetuneSection,
    ModelSection,
    SearchSection,
    Strategy,
    WorldCorpusSection,
)
from ka2l_ray.corpus.world import world_questions
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.decode.actor import DecodeActor
from ka2l_ray.decode.asked import asked_about
from ka2l_ray.decode.augment import Augmenter, requests_for
from ka2l_ray.decode.decoders import card_at, standardise
from ka2l_ray.decode.existing import alike
from ka2l_ray.decode.filters import Found, statuses, statuses_of
from ka2l_ray.decode.grounding import Names
from ka2l_ray.decode.metrics import Reconstruction, reconstruction
from ka2l_ray.decode.question_states import QuestionStates
from ka2l_ray.decode.reading import ReadActor, ReadSetup
from ka2l_ray.decode.rereading import DecodeSetup
from ka2l_ray.decode.states import decoder_folder
from ka2l_ray.decode.steering import MOST_ROWS, fit_steering
from ka2l_ray.entropy.thresholds import otsu
from ka2l_ray.finetune.base import BaseLogits
from ka2l_ray.finetune.deepspeed import learning_rate_factor
from ka2l_ray.finetune.examples import Example, TokenizedRow, epoch_batches, held_to_base, tokenize_all
from ka2l_ray.finetune.losses import answer_loss, kl_to_base
from ka2l_ray.finetune.model import with_new_adapters
from ka2l_ray.finetune.passes import Passes
from ka2l_ray.finetune.trunk import Trunk
from ka2l_ray.hashing import uniform
from ka2l_ray.label.actor import ClusterActor, ClusterSetup, KnowledgeActor, KnowledgeSetup
from ka2l_ray.models.answers import Answer, Decoding
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.engine import Engine
from ka2l_ray.models.generation import Generator
from ka2l_ray.models.loading import load_model, load_tokenizer
from ka2l_ray.models.probe import StateSource, score_states
from ka2l_ray.models.prompts import Tokenize
from ka2l_ray.probe.fit import ProbeFit, ProbeRows, fit_probe
from ka2l_ray.probe.score import ScoreActor, ScoreSetup
from ka2l_ray.schema import TABLES
from ka2l_ray.stats import auroc
from ka2l_ray.tables import matrix, unseen_targets
from ka2l_ray.text.grading import grade
from ka2l_ray.text.prompts import Prompter
from ka2l_ray.text.tokens import pad_id
from ka2l_ray.world.facts import World
from ka2l_ray.world_model.pretrain import PROMPT

BATCH = 256
LAYERS = (3, 4, 5, 6)
REPLAY_SEED_STEP = 1  # as the product's replay stage: other samples than those that made the labels


@dataclass(frozen=True)
class Setting:
    """What a seed varies is everything: split, samples, probe, training."""

    unknown_share: float
    seed: int
    pool_questions: int = 800
    probe_questions: int = 1300
    domain_questions: int = 40
    misconceptions: bool = False
    model: str = "world"
    facts_per_person: int | None = None


class Lab:
    """The base model's side of a setting, computed once: probe, scored pool, replay samples, base evaluation."""

    def __init__(self, setting: Setting, world: World) -> None:
        self.setting, self.world = setting, world
        self.model_section = ModelSection(name_or_path=setting.model)
        corpus = WorldCorpusSection(
            pool_questions=setting.pool_questions,
            probe_questions=setting.probe_questions,
            domain_questions=setting.domain_questions,
            unknown_share=setting.unknown_share,
            misconceptions=setting.misconceptions,
            facts_per_person=setting.facts_per_person,
        )
        self.tables = world_questions(world, corpus, setting.seed)
        self.tokenizer, self.tokenize = load_tokenizer(self.model_section), Tokenize(self.model_section, PROMPT)
        self.pool = {r["id"]: r for r in self.tables["pool"].to_pylist()}

    def collected(self, table: pa.Table, samples: int, layers: Sequence[int], seed: int) -> dict[str, Any]:
        """Columns of the collecting actor for a whole table."""
        section, limits = CollectSection(samples=samples), Limits(rows=BATCH)
        actor = CollectActor(
            CollectSetup(
                model=self.model_section, prompt=PROMPT, collect=section, layers=layers, seed=seed, limits=limits
            )
        )
        columns = actor(self.tokenize.add(table))
        return {name: matrix(values) if name.startswith("last_") else values for name, values in columns.items()}

    def labels(self, columns: dict[str, Any], table: pa.Table) -> dict[str, Any]:
        answers = {k: v for k, v in columns.items() if not k.startswith("last_")}
        return dict(ClusterActor(ClusterSetup())(pa.table(answers | {"answers": table["answers"]})))

    @cached_property
    def probe(self) -> tuple[int, ProbeFit, float, float]:
        """(layer, fit, γ, SE AUROC against the truth), chosen as `ka2l search` chooses."""
        table, seed = self.tables["probe"], self.setting.seed
        columns = self.collected(table, 10, LAYERS, seed)
        labels = self.labels(columns, table)
        entropy = np.array(labels["entropy_nats"])
        gamma = otsu(dict(zip(*(x.tolist() for x in np.unique(entropy, return_counts=True)), strict=True)))
        unseen = unseen_targets(table["truth"])
        wrong = np.array([c is False for c in labels["correct"]])
        rows = ProbeRows(entropy, wrong, unseen, np.array(table["entity"].to_pylist()))
        search, fits = SearchSection(bootstrap=100), {}
        for n in LAYERS:
            source = StateSource(self.setting.model, PROMPT.template, n, "last")
            states = columns[f"last_{n:03d}"].astype(np.float64)
            fits[n] = fit_probe(states, rows, gamma, search, seed, source)
        best = max(LAYERS, key=lambda n: fits[n].validation_auroc)
        compared = unseen >= 0
        return best, fits[best], gamma, float(auroc(unseen[compared], entropy[compared]) or 0.0)

    @cached_property
    def rows(self) -> list[PoolRow]:
        """The pool as policies see it: scores, states, and what sampling it would show."""
        layer, fit, gamma, _ = self.probe
        table = self.tables["pool"]
        columns = self.collected(table, 10, (layer,), self.setting.seed)
        labels = self.labels(columns, table)
        graded = pa.table({name: labels[name] for name in ("entropy_lo", "abstains", "correct")})
        knowledge = KnowledgeActor(KnowledgeSetup(threshold_nats=gamma))(graded)
        states = columns[f"last_{layer:03d}"]
        scores = score_states(states, fit.probe)
        return [
            PoolRow(r["id"], float(p), r["truth"], r["group"], e, n, q, s)
            for r, p, e, n, q, s in zip(
                table.to_pylist(),
                scores,
                labels["entropy_nats"],
                labels["likelihood"],
                knowledge["quadrant"],
                states,
                strict=True,
            )
        ]

    @cached_property
    def replay_answers(self) -> dict[str, dict[str, Any]]:
        """The base model's own T = 1 samples and greedy answer of every pool question."""
        table = self.tables["pool"]
        columns = self.collected(table, 4, (), self.setting.seed + REPLAY_SEED_STEP)
        return {
            i: {"samples": s, "greedy": g}
            for i, s, g in zip(table["id"].to_pylist(), columns["samples"], columns["greedy"], strict=True)
        }

    @cached_property
    def base_right(self) -> set[str]:
        return {r["id"] for r, ok in zip(self._eval_rows, self.grade(self.base, self._eval_rows), strict=True) if ok}

    @cached_property
    def base(self) -> Any:
        return load_model(self.model_section)

    @property
    def _eval_rows(self) -> list[dict[str, Any]]:
        return self.tables["eval"].to_pylist()

    def grade(self, model: Any, rows: Sequence[dict[str, Any]]) -> list[bool]:
        """Whether the greedy answer to each row is right."""
        written = self._answers(model, rows, Decoding(0, 0, 1.0, 0.0, 8, PROMPT.stop))
        return [bool(grade(a[0].text, r["answers"])) for a, r in zip(written, rows, strict=True)]

    def _answers(self, model: Any, rows: Sequence[dict[str, Any]], decoding: Decoding) -> list[list[Answer]]:
        prompts = Prompter(self.tokenizer, PROMPT)
        engine = Engine(model, pad_id(self.tokenizer), prompts.shared, Limits(rows=BATCH))
        reading = Generator(engine, self.tokenizer, decoding)(
            [r["id"] for r in rows], prompts([r["question"] for r in rows])
        )
        if reading.failed:
            raise next(iter(reading.failed.values()))
        return reading.answers

    def decoded(self, sources: Sequence[str], section: DecodeSection | None = None) -> list[dict[str, Any]]:
        """Rows of `written` with their `status`, for the states of pool questions."""
        section, seed = section or DecodeSection(), self.setting.seed
        with tempfile.TemporaryDirectory() as scratch:
            folder = Folder.of(scratch)
            self.probe[1].probe.save(folder / "probe")
            fields: dict[str, Any] = {"model": self.model_section, "prompt": PROMPT}
            setup = DecodeSetup(**fields, decode=section, decoder="world", probe=folder / "probe", seed=seed)
            probed = sorted(
                self.tables["probe"].to_pylist(), key=lambda r: (uniform("reconstruction", r["entity"]), r["id"])
            )[:MOST_ROWS]
            asked = self._asked([{n: r[n] for n in ("id", "question", "group", "entity")} for r in probed])
            card = card_at(decoder_folder("world"))
            at = {"layer": card.layer, "position": card.position, "token_layer": None}
            read = matrix(ReadActor(ReadSetup(**fields, **at))(asked)["state"])
            states = standardise(decoder_folder("world"))(QuestionStates.pooled_alone(read)).pooled
            scored = ScoreActor(ScoreSetup(**fields, probe=folder / "probe"))(asked)["p_unknown"]
            unknown = np.array(scored) >= section.min_p_unknown
            steering = fit_steering(states, [r["group"] for r in probed], [r["entity"] for r in probed], seed)
            entities = [e for s in ("probe", "pool") for e in self.tables[s]["entity"].to_pylist()]
            names = Names.of(entities) if section.grounding == "corpus" else None
            Augmenter(section, seed, steering, states[unknown], names).save(folder / "augmenter")
            rows = [r for split in ("probe", "pool") for r in self.tables[split].to_pylist()]
            asked = asked_about({self.pool[i]["entity"] for i in sources}, rows)
            requests = requests_for([self.pool[i] for i in sources], section, asked)
            written = DecodeActor(replace(setup, augmenter=folder / "augmenter"))(self._asked(requests))
        columns = {name: list(values) for name, values in written.items() if name != "state"}
        made = [r | {name: values[n] for name, values in columns.items()} for n, r in enumerate(requests)]
        existing, threshold = [[r["question"] for r in rows]], CorpusSection().near_duplicates
        texts = [r["decoded_question"] for r in made]
        leaked, repeated = (alike(texts, others, threshold) for others in (self._evaluation, existing))
        status = statuses_of(made, section, leaked, repeated, threshold, steering)
        return [r | {"status": s} for r, s in zip(made, status, strict=True)]

    def found_again(self, count: int, candidates: int, corrections: int = 0) -> Reconstruction:
        """Pool questions decoded from their own states, each the best of some candidates by the round trip."""
        rows = list(self.pool.values())[:count]
        with tempfile.TemporaryDirectory() as scratch:
            self.probe[1].probe.save(Folder.of(scratch) / "probe")
            setup = DecodeSetup(
                model=self.model_section,
                prompt=PROMPT,
                decode=DecodeSection(candidates=candidates, corrections=corrections),
                decoder="world",
                probe=Folder.of(scratch) / "probe",
                seed=self.setting.seed,
            )
            requests = [
                {"id": r["id"], "source_id": r["id"], "variant": 0, "augment": "itself", "question": r["question"]}
                for r in rows
            ]
            found = DecodeActor(setup)(self._asked(requests))
        return reconstruction(list(found["decoded_question"]), [r["question"] for r in rows])

    def filtered(self, questions: Sequence[str], section: DecodeSection | None = None) -> list[dict[str, Any]]:
        """Questions that were not decoded, with the `status` that the same filters give them."""
        table = pa.table({"id": [str(n) for n in range(len(questions))], "question": list(questions)})
        with tempfile.TemporaryDirectory() as scratch:
            self.probe[1].probe.save(scratch)
            setup = ScoreSetup(model=self.model_section, prompt=PROMPT, probe=Folder.of(scratch))
            p_unknown = [float(p) for p in ScoreActor(setup)(self.tokenize.add(table))["p_unknown"]]
        threshold = CorpusSection().near_duplicates
        existing = [self.tables[s]["question"].to_pylist() for s in ("probe", "pool")]
        found = Found(
            questions=questions,
            p_unknown=p_unknown,
            leaked=alike(questions, self._evaluation, threshold),
            repeated=alike(questions, existing, threshold),
        )
        rows = zip(questions, p_unknown, statuses(found, section or DecodeSection(), threshold), strict=True)
        return [{"decoded_question": q, "p_unknown": p, "status": s} for q, p, s in rows]

    @property
    def _evaluation(self) -> list[list[str]]:
        return [self.tables["eval"]["question"].to_pylist()]

    def _asked(self, requests: Sequence[dict[str, Any]]) -> pa.Table:
        return self.tokenize.add(pa.Table.from_pylist(list(requests), schema=TABLES["requests"].schema))

    def bought(
        self, strategy: Strategy, count: int, draw_seed: int, acquire: AcquireSection | None = None
    ) -> list[str]:
        return [c.id for c in policy(strategy, acquire or AcquireSection(), draw_seed).choose(self.rows, set(), count)]

    def examples(
        self, bought: Sequence[str], finetune: FinetuneSection, replayed: int
    ) -> tuple[list[Example], set[str]]:
        """What a round trains on: right answers of the bought, own answers of the replayed."""
        replay = finetune.replay
        unknown = round(replayed * replay.unknown_share)
        chosen = set(select_replay(self.rows, set(bought), replayed - unknown, unknown, self.setting.seed))
        taught = [Example(self.pool[i]["question"], tuple(self.pool[i]["answers"])) for i in sorted(bought)]
        own = self.replay_answers
        answers = {
            i: replayed_answers(own[i]["samples"], own[i]["greedy"], self.pool[i]["answers"], replay)
            for i in sorted(chosen)
        }
        return taught + [Example(self.pool[i]["question"], tuple(a), True) for i, a in answers.items()], chosen

    def train(self, examples: Sequence[Example], finetune: FinetuneSection, seed: int) -> Any:
        """The training of `finetune/train.py` on one process without DeepSpeed."""
        torch.manual_seed(seed)
        model: Any = load_model(self.model_section)
        model.config.use_cache = False
        base = model
        if finetune.mode == "lora":
            model = with_new_adapters(model, finetune.lora)
        model.train()
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=finetune.learning_rate, weight_decay=finetune.weight_decay, betas=(0.9, 0.98), fused=True
        )
        steps = finetune.epochs * math.ceil(len(examples) / finetune.batch_rows)
        rows, step = tokenize_all(self.tokenizer, PROMPT, examples), 0
        trunk = Trunk.of(base, rows[0], torch.device("cpu"), pad_id(self.tokenizer), ())
        passes = self._passes(model, trunk)
        for epoch in range(finetune.epochs):
            for batch in epoch_batches(rows, finetune.batch_rows, seed, epoch):
                for group in optimizer.param_groups:
                    group["lr"] = finetune.learning_rate * learning_rate_factor(step, steps, finetune.warmup_share)
                self._loss(passes, batch, finetune.replay.kl_weight).backward()
                torch.nn.utils.clip_grad_norm_(parameters, finetune.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
                step += 1
        if finetune.mode == "lora":
            model = model.merge_and_unload()
        model.config.use_cache = True
        return model.eval()

    def _loss(self, passes: Passes, batch: list[TokenizedRow], kl_weight: float) -> torch.Tensor:
        logits, answers = passes(batch)
        loss = answer_loss(logits, answers)
        if kl_weight:
            base_logits = self._base_logits([row for row in batch if row.replayed])
            loss = loss + kl_weight * kl_to_base(logits, base_logits, held_to_base(batch))
        return loss / len(answers)

    def _passes(self, model: Any, trunk: Trunk | None = None) -> Passes:
        return Passes(model, torch.device("cpu"), pad_id(self.tokenizer), trunk=trunk)

    @cached_property
    def _base_logits(self) -> BaseLogits:
        return BaseLogits(self._passes(self.base))

    def figures(self, model: Any, bought: Sequence[str], replayed: set[str]) -> dict[str, Any]:
        """Accuracies; those of `other_phrasing` and `same_phrasing` are over the facts of the bought questions."""
        rows, pool = self._eval_rows, self.pool
        right = dict(zip([r["id"] for r in rows], self.grade(model, rows), strict=True))
        touched = {pool[i]["fact_id"] for i in [*bought, *replayed]}
        taught = {pool[i]["fact_id"] for i in bought}
        untouched = [right[r["id"]] for r in rows if r["id"] in self.base_right and r["fact_id"] not in touched]
        known_replayed = [r for i in sorted(replayed) if knew(**self.replay_answers[i], gold=(r := pool[i])["answers"])]
        return {
            "accuracy": float(np.mean([right[r["id"]] for r in rows if r["scope"] == "pool"])),
            "known_never_replayed": float(np.mean(untouched)),
            "known_never_replayed_n": len(untouched),
            "known_replayed": float(np.mean(self.grade(model, known_replayed))) if known_replayed else None,
            "taught_same_phrasing": float(np.mean(self.grade(model, [pool[i] for i in bought]))),
            "taught_other_phrasing": float(
                np.mean([right[r["id"]] for r in rows if r["fact_id"] in taught and r["scope"] == "pool"])
            ),
            "truly_unknown_bought": float(np.mean([pool[i]["truth"] == "unseen" for i in bought])),
            "misconceptions_bought": sum(pool[i]["truth"] == "misconception" for i in bought),
            "misconceptions_replayed": sum(pool[i]["truth"] == "misconception" for i in replayed),
        }

    def base_accuracy(self) -> float:
        return float(np.mean([r["id"] in self.base_right for r in self._eval_rows if r["scope"] == "pool"]))

    def entropy_auroc_untouched(self, model: Any, count: int = 600) -> float | None:
        """SE AUROC against the truth of a tuned model, on probe questions, which no training ever touched."""
        table = self.tables["probe"].slice(0, count)
        answers = self._answers(model, table.to_pylist(), Decoding(self.setting.seed, 10, 1.0, 0.0, 8, PROMPT.stop))
        columns = {
            "samples": [[a.text for a in row[1:]] for row in answers],
            "sample_logprobs": [[a.logprob for a in row[1:]] for row in answers],
            "greedy": [row[0].text for row in answers],
            "greedy_logprob": [row[0].logprob for row in answers],
            "answers": table["answers"],
        }
        entropy = ClusterActor(ClusterSetup())(pa.table(columns))["entropy_nats"]
        unseen = unseen_targets(table["truth"])
        return auroc(unseen[unseen >= 0], np.array(entropy)[unseen >= 0])
