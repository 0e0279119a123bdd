"""What a command shows at its end says what its numbers are over, and shows what others wrote as text."""

import logging
from typing import Any

import pytest
from finished_run import results
from obeyed_text import ATTACK, SHOWN, obeyed

from ka2l_ray.cli.doctor import Finding
from ka2l_ray.cli.exits import plain_errors
from ka2l_ray.cli.terminal import print_comparison, print_findings, print_preview, print_results, print_retried
from ka2l_ray.corpus.preview import Preview
from ka2l_ray.dataflow.log import log, set_up_logging
from ka2l_ray.errors import StageError
from ka2l_ray.text.printable import printable


@pytest.mark.parametrize(
    ("eval_scope", "facts"),
    [
        ("pool", "facts that pool questions ask, in a wording of their own"),
        ("other", "facts that no pool question asks"),
    ],
)
def test_rounds_and_comparisons_say_what_accuracy_is_over(
    eval_scope: str, facts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_results("runs/r", results() | {"eval_scope": eval_scope})
    comparison: Any = {"eval_scope": eval_scope, "seeds": [0], "random_budget": 10, "strategies": []}
    print_comparison("runs/c", comparison)
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count(f"accuracy, and so saving, is over {facts}") == 2


def test_what_others_wrote_is_text_on_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    found: Any = results() | {"eval_scope": "pool"}
    found["rounds"] = [r | {"strategy": ATTACK} for r in found["rounds"][:1]]
    found["saving"] = [s | {"strategy": ATTACK} for s in found["saving"][:1]]
    print_results(f"runs/{ATTACK}", found)
    corpus = Preview(
        sources=[{"file": ATTACK, "rows": 1, "dropped": 0}] * 2,
        rows=1,
        dropped={ATTACK: 1},
        examples=[ATTACK],
        lost=0,
        merged=0,
        set_aside=0,
        questions=1,
        near_duplicates=0,
        entities=0,
        split_groups=1,
        largest_group=1,
        uneven=ATTACK,
        splits={"pool": 1},
        with_gold=1,
        groups=[(ATTACK, 1)],
        prompt=ATTACK,
        answers=[ATTACK, ATTACK],
        tokens={"least": 1, "median": 1, "most": 1, "shared": 0, "context": 9},
        measured=1,
        too_long=0,
    )
    print_preview(corpus)
    print_findings([Finding("GPU", "note", ATTACK, ATTACK)])
    print_retried({ATTACK: 1}, searched=False)
    shown = capsys.readouterr().out
    assert obeyed(shown) == set()
    # round, saving, results, report; sources, dropped, example, note, topic, prompt, gold; finding; retried
    assert shown.count(SHOWN) == 4 + 9 + 2 + 1


def test_errors_and_log_lines_show_control_characters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit), plain_errors(debug=True):
        raise StageError(f"annotate: HTTP 500: {ATTACK}\nnext line")
    shown = capsys.readouterr().err
    assert obeyed(shown) == set()
    assert shown.startswith("Traceback")
    assert shown.endswith(f"ka2l: annotate: HTTP 500: {SHOWN}\nnext line\n")
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    set_up_logging()
    try:
        raise ValueError(ATTACK)
    except ValueError:
        log.warning("annotate: %s", ATTACK, exc_info=True)
    shown = capsys.readouterr().err
    assert obeyed(shown) == set()
    assert shown.splitlines()[0].endswith(f"ka2l annotate: {SHOWN}")
    assert shown.splitlines()[-1] == f"ValueError: {SHOWN}"


def test_text_without_control_characters_is_shown_as_it_is() -> None:
    text = "Wer ist „Ōe Kenzaburō“?\n\tמי? 🙂 e\u0301 \u200fمن؟ \u00a0–"
    assert printable(text) == text
