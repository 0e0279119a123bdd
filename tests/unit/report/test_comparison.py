"""The page of a comparison: holds the numbers, escapes what it did not write itself, loads nothing."""

import re
from typing import Any, get_args

import pytest
from html_page import Page

from ka2l_ray.cli.terminal import print_comparison
from ka2l_ray.config import Strategy
from ka2l_ray.report.comparison import learning_curves, render
from ka2l_ray.report.figures import styles_of


def entry(strategy: str, **numbers: Any) -> dict[str, Any]:
    curve = [
        {
            "annotations": 100 * n,
            "accuracy": 0.5 + n / 10,
            "ci": (0.4 + n / 10, 0.6 + n / 10) if n else None,
            "seeds": 2,
        }
        for n in range(3)
    ]
    names = (
        "saving",
        "saving_ci",
        "of_oracle",
        "of_oracle_lowest",
        "compute_saving",
        "area",
        "area_ci",
        "known_accuracy",
    )
    return (
        {"strategy": strategy, "curve": curve, "savings": [], "compute_savings": [], "reached": 0}
        | dict.fromkeys(names)
        | {"over": dict.fromkeys(names, 2)}
        | numbers
    )


@pytest.fixture
def comparison() -> dict[str, Any]:
    ka2l = {
        "saving": 0.4567,
        "saving_ci": (0.4012, 0.5089),
        "savings": [0.4321, None],
        "of_oracle": 0.913,
        "of_oracle_lowest": 0.887,
    }
    ka2l |= {"reached": 1, "compute_saving": -0.064, "area": 0.6543, "known_accuracy": 0.9871}
    ka2l["over"] = {"saving": 1, "of_oracle": 1, "compute_saving": 1, "area": 2, "known_accuracy": 2}
    strategies = [entry("random", area=0.6111), entry("ka2l", **ka2l), entry("coreset", savings=[None, None])]
    made = {
        "command": "ka2l compare x.yaml --seeds 2",
        "seeds": [7, 8],
        "random_budget": 1200,
        "area_up_to": 900,
        "ceiling": 0.4949,
        "ceiling_over": 1,
        "eval_scope": "pool",
    }
    return made | {"strategies": strategies}


def _svg(comparison: dict[str, Any]) -> str:
    drawing = learning_curves(comparison["strategies"])
    assert drawing
    return drawing.svg()


def rows(html: str) -> dict[str, list[str]]:
    """The cells of the table by strategy."""
    found = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", html)]
    return {cells[0]: [c.replace("\N{NO-BREAK SPACE}", " ") for c in cells[1:]] for cells in found if cells}


def test_the_table_holds_every_number_and_a_dash_for_what_is_not_there(comparison):
    found = rows(render("World", comparison))
    assert found["ka2l"] == [
        "45.7 % (1 of 2)",
        "43.2 %, –",
        "91.3 % (1 of 2)",
        "88.7 %",
        "-6.4 % (1 of 2)",
        "65.4 % (2 of 2)",
        "98.7 % (2 of 2)",
    ]
    assert found["coreset"] == ["–", "–, –", "–", "–", "–", "–", "–"]
    assert found["random"][-2:] == ["61.1 % (2 of 2)", "–"]


@pytest.mark.parametrize(
    ("eval_scope", "facts", "sentence"),
    [
        ("pool", "facts that pool questions ask, in a wording of their own", "for the same accuracy (95"),
        ("other", "facts that no pool question asks", "for the same accuracy on facts that no pool question asks (95"),
    ],
)
def test_the_page_says_what_accuracy_and_saving_are_over(comparison, eval_scope, facts, sentence):
    text = " ".join(Page(render("World", comparison | {"eval_scope": eval_scope})).text.split())
    assert sentence in text
    assert f"Accuracy is over {facts}." in text
    assert f"random's final accuracy, over {facts}." in text
    assert eval_scope == "pool" or "pool questions ask" not in text


def test_the_sentences_name_savings_intervals_ceiling_and_who_never_reached_random(comparison):
    text = " ".join(Page(render("World", comparison)).text.split())
    assert "ka2l needs 45.7 % fewer annotations than random buying for the same accuracy" in text
    assert "same accuracy (95 % interval 40.1 % to 50.9 %), in the 1 of 2 seeds that reached it at all." in text
    assert "coreset has no saving in any seed: it did not reach the accuracy of 1,200 randomly bought" in text
    assert "saves 49.5 % (mean of the 1 of 2 seeds in which it reached random's accuracy): that is the ceiling" in text
    assert "Seeds 7, 8;" in text
    assert "over 0 to 900 annotations" in text
    assert "ka2l compare x.yaml --seeds 2" in text


def test_the_terminal_names_the_seeds_of_every_mean(comparison, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    print_comparison("runs/x-compare", comparison)
    out = capsys.readouterr().out
    (row,) = [" ".join(line.replace("│", " ").split()) for line in out.splitlines() if " ka2l " in line]
    assert row == "ka2l 0.457 (1 of 2) 0.401 … 0.509 0.913 (1 of 2) -0.064 (1 of 2) 0.654 (2 of 2) 0.987 (2 of 2)"
    assert "Means over (N of 2) seeds" in out


def test_without_an_oracle_nothing_is_said_of_a_ceiling(comparison):
    assert "oracle, which" not in render("World", comparison | {"ceiling": None})


def test_names_titles_and_commands_are_text_and_never_markup(comparison):
    evil = "<script>alert(1)</script>&\"'"
    comparison["strategies"] = [entry("random"), entry(evil, saving=0.1)]
    page = Page(render(evil, comparison | {"command": evil}))
    assert "script" not in page.tags
    assert page.text.count(evil) == 7  # title, heading, command, result, sentence, legend of the figure, table


def test_the_first_screen_is_a_sentence_and_the_curves(comparison):
    first, folded = render("World", comparison).split("<details", 1)
    assert "ka2l reaches the accuracy of 1,200 random annotations with 46\N{NO-BREAK SPACE}% fewer" in first
    assert "<svg " in first
    assert "<table" not in first
    assert "<table" in folded


def test_the_page_loads_nothing(comparison):
    html = render("World", comparison)
    assert all(link.startswith("#") for link in Page(html).loads)
    assert re.findall(r"url\((?!#)|@import", html) == []
    assert set(re.findall(r"https?://[^\"\s<]+", html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_the_figure_names_every_strategy_and_shades_intervals(comparison):
    svg = _svg(comparison)
    for name in ("random", "ka2l", "coreset"):
        assert f">{name}</text>" in svg
    assert svg.count("FillBetweenPolyCollection") == 3
    for point in (p for s in comparison["strategies"] for p in s["curve"]):
        point["ci"] = None
    assert "FillBetweenPolyCollection" not in _svg(comparison)


def test_without_a_point_there_is_no_figure_and_the_page_says_so(comparison):
    comparison["strategies"] = [entry("random", curve=[])]
    assert learning_curves(comparison["strategies"]) is None
    assert "No strategy has a round yet." in render("World", comparison)


def test_the_same_comparison_is_the_same_bytes(comparison):
    assert render("World", comparison) == render("World", comparison)


def test_all_strategies_can_be_told_apart():
    styles = styles_of(get_args(Strategy))
    assert len(set(styles.values())) == len(styles)
