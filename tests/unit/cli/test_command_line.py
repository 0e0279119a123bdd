"""What is typed can be typed again, and a pause says how to go on."""

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from ka2l_ray.cli.app import _end_paused, app
from ka2l_ray.cli.exits import PAUSED
from ka2l_ray.cli.shell import command_line
from ka2l_ray.cli.terminal import print_retried
from ka2l_ray.dataflow.storage import Folder

OVERRIDES = ["run.storage=/my runs", "active.stop={accuracy: 0.9}", "report.title=It's mine"]


def test_a_recorded_command_can_be_typed_again():
    typed = command_line("ka2l", "run", "my configs/x.yaml", overrides=OVERRIDES)
    assert shlex.split(typed) == [
        "ka2l",
        "run",
        "my configs/x.yaml",
        *(part for o in OVERRIDES for part in ("--set", o)),
    ]
    assert command_line("ka2l", "run", "x.yaml", overrides=["run.seed=1"]) == "ka2l run x.yaml --set run.seed=1"


def test_a_pause_names_its_files_and_goes_on_with_the_same_overrides(tmp_path, capsys):
    waiting: Any = [SimpleNamespace(folder=Folder.of(str(tmp_path / "round_01")))]
    with pytest.raises(SystemExit) as ended:
        _end_paused(Path("x.yaml"), OVERRIDES, waiting)
    assert ended.value.code == PAUSED
    *_, file, hint = capsys.readouterr().err.splitlines()
    assert file.strip() == f"{tmp_path}/round_01/annotations/to_annotate.csv"
    typed = shlex.split(hint.partition("then: ")[2])
    assert typed == [
        "ka2l",
        "annotate",
        "x.yaml",
        "--import",
        "FILE",
        *(part for o in OVERRIDES for part in ("--set", o)),
    ]


def test_nothing_that_waits_is_no_pause():
    _end_paused(Path("x.yaml"), None, [])


def test_both_commands_repeat_failed_rows_and_say_which(capsys):
    for command in ("run", "compare"):
        assert "--retry-errors" in CliRunner().invoke(app, [command, "--help"], terminal_width=200).output
    for rows, searched, says in (
        ({}, True, "no row has failed: nothing to do again"),
        (
            {"activations": 1200, "ka2l seed 0 round 1: evaluation": 2},
            False,
            "ka2l seed 0 round 1: evaluation: 2 failed rows are done again",
        ),
        ({"scores": 1}, True, "γ and the probe stay as fitted without these rows; --redo label fits them again"),
    ):
        print_retried(rows, searched)
        assert says in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", ["run", "compare"])
def test_the_help_says_what_accuracy_is_over(command):
    text = " ".join(CliRunner().invoke(app, [command, "--help"], terminal_width=200).output.replace("│", " ").split())
    assert "on files over facts that no pool question asks" in text
