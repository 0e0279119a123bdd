"""A run keeps its chat prompts: a template that writes the time gives one prompt, however often it is asked for."""

import pytest

from ka2l_ray.cli.terminal import print_preview
from ka2l_ray.config import CorpusSection, parse_config
from ka2l_ray.corpus.preview import preview
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.errors import StageError
from ka2l_ray.models.loading import load_tokenizer
from ka2l_ray.models.prompts import PROMPTS, corpus_prompt, finetune_prompt, resolved, share_prompts

CLOCK = "{{ strftime_now('%H:%M:%S.%f') }} {% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<model>"
CHAT = {"style": "chat", "instruction": "Be brief."}


@pytest.fixture
def config(llama, tokenizer, tmp_path):
    """A run's configuration with a model whose template writes the time of day."""
    folder = tmp_path / "model"
    llama.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CLOCK)

    def config(finetune=CHAT):
        return parse_config(
            {
                "run": {"name": "r", "storage": str(tmp_path / "runs")},
                "model": {"name_or_path": str(folder)},
                "corpus": {"prompt": CHAT},
                "finetune": {"prompt": finetune},
            },
            "test",
        )

    return config


def test_a_run_has_one_prompt_even_over_midnight(config):
    run = Run.open(config())
    first = corpus_prompt(run)
    assert corpus_prompt(Run.existing(run.folder.uri)) == first == finetune_prompt(run)
    now = resolved(run.config.corpus.prompt, Table(run.folder / "none"), load_tokenizer(run.config.model))
    assert now.template != first.template, "otherwise the test would show nothing"


def test_another_prompt_of_the_run_is_kept_beside_it(config):
    run = Run.open(config({"style": "chat", "instruction": "Be long."}))
    first, second = corpus_prompt(run), finetune_prompt(run)
    assert (corpus_prompt(run), finetune_prompt(run)) == (first, second)
    assert "Be brief." in first.template
    assert "Be long." in second.template


def test_a_run_may_be_given_the_prompts_of_another(config):
    run = Run.open(config())
    first, other = corpus_prompt(run), Run(run.folder / "reprobe", run.config)
    share_prompts(run, other)
    share_prompts(run, other)
    assert corpus_prompt(other) == first


def test_a_damaged_prompt_is_named(config):
    run = Run.open(config())
    corpus_prompt(run)
    (name,) = (run.folder / PROMPTS).names()
    (run.folder / PROMPTS / name).write_bytes(b'{"template": 3}')
    with pytest.raises(StageError, match="is not a prompt"):
        corpus_prompt(run)


@pytest.mark.parametrize("thinks", [True, False])
def test_the_preview_says_where_a_model_thinks_first(config, tmp_path, thinks, capsys):
    (tmp_path / "model/chat_template.jinja").write_text(f"{CLOCK}<think>\n")
    prompt = CHAT | {"enable_thinking": thinks}
    given = config().model_copy(update={"corpus": CorpusSection.model_validate({"prompt": prompt})})
    print_preview(preview(given))
    shown = " ".join(capsys.readouterr().out.split())
    assert ("leave room for its thoughts in collect.max_new_tokens" in shown) is thinks
    assert ("</think>" in shown) is not thinks


def test_prompts_without_a_template_leave_no_file(tmp_path):
    run = Run.open(parse_config({"run": {"name": "r", "storage": str(tmp_path)}}, "test"))
    assert corpus_prompt(run) == run.config.corpus.prompt
    assert not (run.folder / PROMPTS).exists()
