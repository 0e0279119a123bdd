"""Passes that share a prefix and leave out logits give the losses, gradients and base logits of plain ones."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from ka2l_ray.finetune.base import BaseLogits
from ka2l_ray.finetune.examples import TokenizedRow, collate, held_to_base
from ka2l_ray.finetune.losses import answer_loss, answers_of, kl_to_base
from ka2l_ray.finetune.passes import WORTH_SHARING, Passes, drops_out, shared_tokens
from ka2l_ray.models import attention

CPU = torch.device("cpu")
PAD = 0
PREFIX = list(range(5, 5 + WORTH_SHARING + 3))
ROWS = [
    TokenizedRow([*PREFIX, 7, 8, 9, 10], len(PREFIX) + 2, replayed=True),
    TokenizedRow([*PREFIX, 9, 11, 12, 13, 6, 7, 8, 9], len(PREFIX) + 5),
    TokenizedRow([*PREFIX, 12, 7, 10, 14, 15, 16], len(PREFIX) + 3, replayed=True),
]
"""Prompts and answers of different length behind one prefix."""


def plain(model, rows):
    """Logits and answer tokens of the model's own pass over whole rows."""
    inputs = collate(rows, PAD)
    labels = inputs.pop("labels")
    return answers_of(model(**inputs).logits, labels)


def objective(logits, answers, base):
    return answer_loss(logits, answers) + 2.0 * kl_to_base(logits, base, held_to_base(ROWS))


def gradients(model, value):
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [g for g in torch.autograd.grad(value, parameters, allow_unused=True) if g is not None]


@pytest.mark.parametrize("shares", [True, False])
def test_loss_and_gradients_are_those_of_whole_rows(model, shares):
    shared = shared_tokens(ROWS) if shares else ()
    assert len(shared) == (len(PREFIX) if shares else 0)
    logits, answers = plain(model, ROWS)
    base = (logits + torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))).detach()
    expected = objective(logits, answers, base := base[held_to_base(ROWS)])
    with attention.installed(model):
        found = objective(*Passes(model, CPU, PAD, shared)(ROWS), base)
        found_gradients = gradients(model, found)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    for mine, theirs in zip(found_gradients, gradients(model, expected), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("has_head", [True, False])
def test_the_head_sees_the_states_that_predict_answers_and_no_others(model, has_head, monkeypatch):
    seen = []
    hook = model.get_output_embeddings().register_forward_hook(lambda head, args, output: seen.append(args[0].shape))
    if not has_head:
        monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    logits, answers = Passes(model, CPU, PAD)(ROWS)
    hook.remove()
    expected, tokens = plain(model, ROWS)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert answers.tolist() == tokens.tolist() == [t for r in ROWS for t in r.ids[r.prompt_length :]]
    assert [shape[:-1].numel() for shape in seen] == [
        len(answers) if has_head else len(ROWS) * max(len(r.ids) for r in ROWS)
    ]


def test_no_rows_are_a_pass_without_answers(llama):
    logits, answers = Passes(llama, CPU, PAD, shared_tokens(ROWS))([])
    assert logits.shape == (0, llama.config.vocab_size)
    assert answer_loss(logits, answers).item() == 0
    assert all(not g.any() for g in gradients(llama, answer_loss(logits, answers)))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(0, 2))
def test_what_is_shared_ends_before_the_last_token_of_every_prompt(extra, answer):
    rows = [TokenizedRow([*PREFIX[: len(PREFIX) - n], *[1] * answer], len(PREFIX) - n) for n in extra]
    assert len(shared_tokens(rows)) in {0, len(PREFIX) - max(extra) - 1}
    assert len(shared_tokens([*rows, TokenizedRow([99, *PREFIX], 9)])) == 0


@pytest.mark.parametrize(("kept_bytes", "passes"), [(2**20, 1), (0, 3)])
def test_base_logits_are_made_once_if_they_may_be_kept(llama, kept_bytes, passes):
    made = []

    def call(**inputs):
        made.append(len(inputs["input_ids"]))
        return llama(**inputs)

    base = BaseLogits(Passes(llama, CPU, PAD, call=call), kept_bytes)
    logits, _ = plain(llama, ROWS)
    answers = [part[:-1] for part in logits.split([r.answer_length for r in ROWS])]
    for order in ([0, 1, 2], [0, 1, 2], [0, 0]):
        torch.testing.assert_close(base([ROWS[i] for i in order]), torch.cat([answers[i] for i in order]))
    assert len(made) == passes
    assert base([]).shape == (0, logits.shape[-1])


def test_a_model_that_drops_out_shares_nothing(model, llama):
    config = model.config
    expected = any(getattr(config, n, 0) for n in ("attn_pdrop", "resid_pdrop", "embd_pdrop", "attention_dropout"))
    assert drops_out(model) == expected
    lora = LoraConfig(r=2, lora_dropout=0.1, task_type="CAUSAL_LM")
    assert drops_out(get_peft_model(copy.deepcopy(llama), lora))
    own = LlamaConfig(**llama.config.to_dict() | {"attention_dropout": 0.1})
    assert drops_out(AutoModelForCausalLM.from_config(own))
    assert not drops_out(llama)
