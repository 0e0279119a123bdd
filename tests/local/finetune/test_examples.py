"""What a step trains on: loss on the answer only, and a global batch that ranks and micro-batches share without
overlap."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.config import FinetuneSection, PromptSection
from ka2l_ray.finetune.deepspeed import accumulation_steps, micro_batch_rows
from ka2l_ray.finetune.examples import (
    Example,
    TokenizedRow,
    batches_by_length,
    collate,
    epoch_batches,
    held_to_base,
    micro_batches,
    tokenize,
    tokenize_all,
)
from ka2l_ray.finetune.losses import IGNORED, answer_loss, answers_of
from ka2l_ray.text.prompts import render

PROMPT = PromptSection()
EXAMPLES = [Example(f"Where is {i}?", (f"Port {i}",)) for i in range(11)]


def batches(tokenizer, epoch, seed=0, examples=EXAMPLES, batch_rows=4):
    return list(epoch_batches(tokenize_all(tokenizer, PROMPT, examples), batch_rows, seed, epoch))


def texts(tokenizer, batches):
    return [tokenizer.decode(row.ids) for batch in batches for row in batch]


@pytest.mark.parametrize("answer", ["Port Alba", "x", "", "42 é", "two\nlines"])
def test_the_answer_and_the_end_carry_loss_and_the_prompt_does_not(tokenizer, answer):
    tokens = tokenize(tokenizer, PROMPT, "Where is it?", answer)
    assert tokenizer.decode(tokens.ids[: tokens.prompt_length]) == render(PROMPT, "Where is it?")
    assert tokenizer.decode(tokens.ids[tokens.prompt_length :]) == f" {answer}</s>"
    assert tokens.answer_length == len(tokens.ids) - tokens.prompt_length
    labels = collate([tokens], tokenizer.pad_token_id)["labels"][0]
    assert labels.tolist() == [IGNORED] * tokens.prompt_length + tokens.ids[tokens.prompt_length :]


def test_a_prompt_whose_last_token_grows_with_the_answer_masks_what_is_shared(tokenizer):
    """A template that ends in a space: the space and the answer's first word are one token."""
    tokens = tokenize(tokenizer, PromptSection(template="{question} Say"), "Where is it?", "Port")
    spaced = tokenize(tokenizer, PromptSection(template="{question} Say "), "Where is it?", "Port")
    for row in (tokens, spaced):
        assert tokenizer.decode(row.ids[: row.prompt_length]).strip() == "Where is it? Say"
        assert tokenizer.decode(row.ids[row.prompt_length :]).strip() == "Port</s>"


def test_rows_are_padded_on_the_right_and_padding_carries_no_loss():
    batch = collate([TokenizedRow([5, 6, 7], 1), TokenizedRow([8, 9, 10, 11, 12], 4)], pad_token=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0, 0], [8, 9, 10, 11, 12]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, -100], [-100, -100, -100, -100, 12]]


def test_an_epoch_shows_every_example_once(tokenizer):
    found = batches(tokenizer, epoch=0)
    assert [len(b) for b in found] == [4, 4, 3]
    expected = [tokenizer.decode(tokenize(tokenizer, PROMPT, e.question, e.answers[0]).ids) for e in EXAMPLES]
    assert sorted(texts(tokenizer, found)) == sorted(expected)


def test_the_order_changes_with_epoch_and_seed_and_nothing_else(tokenizer):
    first = batches(tokenizer, epoch=0)
    assert batches(tokenizer, epoch=0) == first
    assert batches(tokenizer, epoch=1) != first
    assert batches(tokenizer, epoch=0, seed=1) != first
    assert texts(tokenizer, batches(tokenizer, epoch=0, batch_rows=3)) == texts(tokenizer, first)


def test_replay_cycles_through_its_samples(tokenizer):
    """Four epochs show a replayed question with each of its four samples once, an annotation with its one answer."""
    examples = [Example("Why?", ("a", "b", "c", "d")), Example("Who?", ("she",))]
    shown = Counter(t for epoch in range(4) for t in texts(tokenizer, batches(tokenizer, epoch, examples=examples)))
    expected = {tokenizer.decode(tokenize(tokenizer, PROMPT, "Why?", a).ids): 1 for a in "abcd"}
    assert shown == expected | {tokenizer.decode(tokenize(tokenizer, PROMPT, "Who?", "she").ids): 4}


def test_an_annotation_is_shown_in_each_of_its_wordings_in_turn(tokenizer):
    """Also where a question has several answers, every pair comes up."""
    examples = [
        Example("Who?", ("she",), rewordings=("Who is it?", "Which one?")),
        Example("Why?", ("a", "b"), rewordings=("How come?",)),
        Example("When?", ("c", "d"), rewordings=("At what time?", "On which day?")),
    ]
    shown = Counter(t for epoch in range(6) for t in texts(tokenizer, batches(tokenizer, epoch, examples=examples)))

    def times(count, *pairs):
        return {tokenizer.decode(tokenize(tokenizer, PROMPT, q, a).ids): count for q, a in pairs}

    assert shown == {
        **times(2, ("Who?", "she"), ("Who is it?", "she"), ("Which one?", "she")),
        **times(3, ("Why?", "a"), ("How come?", "b")),
        **times(1, *((q, a) for q in ("When?", "At what time?", "On which day?") for a in "cd")),
    }


@given(st.integers(1, 5), st.integers(1, 8), st.integers(1, 4), st.data())
def test_ranks_and_micro_batches_partition_the_global_batch(workers, micro, steps, data):
    """For every configuration that is valid, also where the last batch of an epoch is short."""
    section = FinetuneSection(batch_rows=workers * micro * steps, micro_batch_rows=micro, workers=workers)
    size = data.draw(st.integers(1, section.batch_rows))
    batch = [TokenizedRow([i], 0) for i in range(size)]
    shares = [
        micro_batches(batch, rank, workers, micro_batch_rows(section), accumulation_steps(section))
        for rank in range(workers)
    ]
    assert Counter(row.ids[0] for share in shares for part in share for row in part) == dict.fromkeys(range(size), 1)
    assert all(len(share) == steps for share in shares)
    assert all(len(part) <= micro for share in shares for part in share)


def test_an_empty_part_has_no_loss_and_can_be_run(llama):
    batch = collate([], pad_token=0)
    assert batch["input_ids"].shape == (1, 1)
    labels = batch.pop("labels")
    loss = answer_loss(*answers_of(llama(**batch).logits, labels))
    assert loss.item() == 0.0
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in llama.parameters())
    llama.zero_grad()


def test_the_loss_is_the_sum_over_answer_tokens(llama, tokenizer):
    rows = [
        tokenize(tokenizer, PROMPT, "Where is it?", "Port Alba"),
        tokenize(tokenizer, PROMPT, "Who?", "the tall baker of Port Alba"),
    ]
    with torch.inference_mode():
        expected = 0.0
        for row in rows:
            logprobs = torch.log_softmax(llama(torch.tensor([row.ids])).logits[0], -1)
            expected -= sum(float(logprobs[i - 1, row.ids[i]]) for i in range(row.prompt_length, len(row.ids)))
        batch = collate(rows, tokenizer.pad_token_id)
        labels = batch.pop("labels")
        together = float(answer_loss(*answers_of(llama(**batch).logits, labels)))
    assert together == pytest.approx(expected, rel=1e-4)


ROWS = st.lists(st.integers(1, 400), min_size=1, max_size=300)


@given(ROWS, st.integers(1, 8), st.integers(0, 5))
def test_grouping_by_length_shows_every_row_once(lengths, batch_rows, seed):
    rows = [TokenizedRow([i] * n, 0) for i, n in enumerate(lengths)]
    batches = batches_by_length(rows, batch_rows, np.random.default_rng(seed))
    assert sorted(r.ids[0] for b in batches for r in b) == list(range(len(rows)))
    assert all(1 <= len(b) <= batch_rows for b in batches)
    assert len(batches) == -(-len(rows) // batch_rows), "the number of optimiser steps stays"


def test_grouping_by_length_saves_most_padding_and_keeps_the_steps_in_random_order():
    lengths = np.random.default_rng(0).integers(1, 200, 1024)
    rows = [TokenizedRow([0] * int(n), 0) for n in lengths]
    plain = [rows[i : i + 8] for i in range(0, len(rows), 8)]
    grouped = batches_by_length(rows, 8, np.random.default_rng(0))

    def padding(batches):
        return sum(len(b) * max(len(r.ids) for r in b) - sum(len(r.ids) for r in b) for b in batches)

    assert padding(grouped) < 0.2 * padding(plain)
    widths = [max(len(r.ids) for r in b) for b in grouped]
    assert widths != sorted(widths)


def test_grouped_epochs_are_the_same_on_every_rank_and_differ_from_each_other(tokenizer):
    def epoch(number):
        return list(epoch_batches(rows, 4, 0, number, group_by_length=True))

    rows = tokenize_all(tokenizer, PROMPT, EXAMPLES)
    assert epoch(0) == epoch(0)
    assert epoch(0) != epoch(1)


def test_answer_tokens_of_replayed_rows_but_their_end_tokens_are_held_to_the_base_model(tokenizer):
    examples = [Example("Why?", ("a",), replayed=True), Example("Who?", ("she",))]
    (batch,) = batches(tokenizer, epoch=0, examples=examples)
    replayed = [tokenizer.decode(r.ids).startswith(render(PROMPT, "Why?")) for r in batch]
    expected = [[r] * (row.answer_length - 1) + [False] for r, row in zip(replayed, batch, strict=True)]
    assert held_to_base(batch).tolist() == [x for row in expected for x in row]
    assert held_to_base([]).shape == (0,)
