"""Runs compared: every number beside its run, nothing invented, nothing trusted."""

import re
from pathlib import Path
from typing import Any

import pytest
from finished_run import open_run, results, write_run
from html_page import Page
from typer.testing import CliRunner

from ka2l_ray.cli.app import app
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.report.versus import key_figures, letters, render, versus_curves, write_versus


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """A whole run, and one with another objective and seed that stopped after its labels."""
    other = open_run(
        tmp_path / "b", run={"name": "r", "storage": str(tmp_path / "b"), "seed": 7}, search={"objective": "entropy"}
    )
    stopped = {"search": None, "decode": None, "rounds": [], "saving": [], "time_s": {"label": 0.8}, "seed": 7}
    (other.folder / "results.json").write_json(results() | stopped)
    return [write_run(tmp_path / "a"), other]


def _row(html: str, name: str) -> list[str]:
    found = re.search(rf"<tr><td>{re.escape(name)}</td>(.*?)</tr>", html)
    assert found, f"no row {name!r}"
    return re.findall(r"<td>(.*?)</td>", found[1])


def test_the_page_shows_both_runs_side_by_side(runs: list[Run]) -> None:
    html = write_versus(runs, "ka2l report A B").read_bytes().decode()
    assert (Path(runs[0].folder.path) / "report/compare.html").read_text() == html
    assert _row(html, "share unknown") == ["48.3\N{NO-BREAK SPACE}%"] * 2
    assert _row(html, "AUROC") == ["0.940", "–"]
    assert _row(html, "its 95 % interval") == ["0.919 to 0.959", "–"]
    assert _row(html, "finetune") == ["410.4", "–"]
    assert _row(html, "total") == ["531.7", "0.8"]
    assert "None" not in html


def test_the_first_screen_is_a_sentence_per_run_and_the_curves(runs: list[Run]) -> None:
    first, folded = render(runs, "").replace("\N{NO-BREAK SPACE}", " ").split("<details", 1)
    sentences = re.findall(r"<li><b>(.)</b>: (.*?)</li>", first)
    assert [letter for letter, _ in sentences] == ["A", "B"]
    assert sentences[0][1].endswith("instead of 225: 41 % saved (the oracle saves 47 %).")
    assert sentences[1][1].endswith("what buying answers gains has not been measured yet.")
    assert "<svg " in first
    assert "<table" not in first
    assert folded.count("<table") == 2


def test_what_differs_is_named_field_by_field(runs: list[Run]) -> None:
    html = render(runs, "")
    assert "<h3>A → B</h3>" in html
    fields = re.findall(r"<li><code>(.*?)</code></li>", html)
    assert fields == ["run.seed: 0 → 7", "search.objective: &#39;auto&#39; → &#39;entropy&#39;"]
    assert "Nothing." in render([runs[0], runs[0]], "")


def test_last_rounds_are_means_over_draws() -> None:
    parts = {
        name: {line.name: line.values for line in lines} for name, lines in key_figures([results(), results()]).items()
    }
    assert parts["Last round of random"]["accuracy"] == ["62.4\N{NO-BREAK SPACE}%"] * 2
    assert parts["Last round of random"]["annotations"] == ["225"] * 2
    assert "domain accuracy" not in parts["Last round of oracle"]
    assert parts["Annotations saved against random"]["ka2l"] == ["41.2\N{NO-BREAK SPACE}%"] * 2


def test_each_run_says_what_its_accuracy_is_over() -> None:
    parts = key_figures(
        [results(), results() | {"eval_scope": "other"}, results() | {"rounds": [], "eval_scope": None}]
    )
    (line,) = parts["What accuracy and savings are over"]
    assert line.values == [
        "facts that pool questions ask, in a wording of their own",
        "facts that no pool question asks",
        "–",
    ]


def test_one_figure_holds_the_curves_of_all_runs() -> None:
    rounds = results()["rounds"]
    figure = versus_curves({"A": rounds, "B": rounds, "C": rounds})
    assert figure
    svg = figure.svg()
    for text in ("run A", "run B", "run C", "ka2l", "random", "oracle"):
        assert f">{text}</text>" in svg
    assert len(set(re.findall(r"stroke-dasharray: [\d.,]+", svg))) == 2
    assert versus_curves({"A": [], "B": []}) is None
    assert "No run has a round yet." in render_empty()


def render_empty() -> str:
    from ka2l_ray.report.templates import environment

    nothing: dict[str, Any] = {
        "runs": {},
        "stored": {},
        "sentences": {},
        "differences": {},
        "parts": {},
        "figure": None,
    }
    return environment().get_template("versus.html").render(command="", **nothing)


def test_the_page_loads_nothing_and_trusts_nothing(runs: list[Run]) -> None:
    attack = "<script>alert(1)</script>"
    (runs[0].folder / "results.json").write_json(
        results() | {"model": attack, "command": attack, "time_s": {attack: 1.0}}
    )
    page = Page(render(runs, attack))
    assert "script" not in page.tags
    assert page.text.count(attack) == 4
    assert all(link.startswith("#") for link in page.loads)
    assert len(page.ids) == len(set(page.ids))


def test_any_number_of_runs_has_letters_of_its_own() -> None:
    assert letters(3) == ["A", "B", "C"]
    assert len(set(letters(60))) == 60


def test_the_command_writes_one_page_or_a_comparison(runs: list[Run], tmp_path: Path) -> None:
    one, two = (str(tmp_path / name / "r") for name in "ab")
    alone, both = (CliRunner().invoke(app, ["report", *given]) for given in ([one], [one, two]))
    assert alone.output.split() == [f"{one}/report/index.html"]
    assert both.output.split() == [f"{one}/report/compare.html"]
    assert f"ka2l report {one} {two}" in (tmp_path / "a/r/report/compare.html").read_text()


def test_a_folder_that_is_no_run_is_refused_by_name(
    runs: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        app(["report", str(tmp_path / "a/r"), str(tmp_path)])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"ka2l: {tmp_path}: has no config.yaml, so it is not a run folder\n"
    assert not (tmp_path / "a/r/report").exists()
