"""The report renders what a run holds, escapes what it did not write itself, loads nothing, and invents nothing."""

import itertools
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from finished_run import open_run, write_knowledge, write_round, write_run
from html_page import Page

from ka2l_ray.report.page import write_report

FIGURES = ("accuracy", "entropy", "heat", "known", "layers", "map", "times", "topics")


def _row(html: str, first: str) -> list[str]:
    """Cells of the table row that begins with `first`."""
    found = re.search(rf"<tr><td>{re.escape(first)}</td>(.*?)</tr>", html)
    assert found, f"no row {first!r}"
    return re.findall(r"<td>(.*?)</td>", found[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a whole run."""
    return Path(write_report(write_run(tmp_path_factory.mktemp("whole"))).path)


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "index.html").read_text()


def test_page_is_whole_and_self_contained(page: str) -> None:
    parsed = Page(page)
    assert len(parsed.ids) == len(set(parsed.ids)), "two figures share an id"
    assert parsed.loads
    assert all(target.startswith("#") for target in parsed.loads), "the page loads something"
    assert parsed.tags.count("script") == 1, "the search is the only script"
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_every_figure_is_inline_and_beside_the_page(page: str, folder: Path) -> None:
    assert page.count("<svg ") == len(FIGURES)
    for name in FIGURES:
        svg = (folder / f"{name}.svg").read_text()
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n")
        assert f'<figure id="figure-{name}">\n<svg ' in page
    assert page.count("Made by <code>ka2l run jobs/configs/demo.yaml</code>") == len(FIGURES)


def test_references_inside_a_figure_resolve(page: str) -> None:
    ids = set(Page(page).ids)
    used = set(re.findall(r"url\(#([^)]+)\)", page)) | set(re.findall(r'xlink:href="#([^"]+)"', page))
    assert used
    assert used <= ids


def test_nulls_are_dashes(page: str) -> None:
    assert _row(page, "share truly unknown") == ["–"]
    assert _row(page, "baseline: predictive entropy") == ["–"]
    assert _row(page, "decode") == ["150", "300", "–", "12.9"]
    assert _row(page, "finetune") == ["–", "–", "–", "410.4"]
    assert "None" not in page
    assert not re.search(r"\bnan\b", Page(page).text)


def test_numbers_are_those_of_the_run(page: str) -> None:
    summary = " ".join(Page(page.split('<p id="summary">')[1].split("</p>")[0]).text.split())
    assert "Of 2,200 questions, the model does not know 48.3 %" in summary
    assert "AUROC of 0.940 (95 % interval 0.919 to 0.959)" in summary
    assert "ka2l needs 41.2 % fewer annotations" in summary
    assert "87.1 % of what the oracle saves" in summary
    assert "from 100.0 % to 96.4 % with ka2l, from 100.0 % to 96.0 % with random" in summary
    assert _row(page, "label") == ["2,200", "2,198", "2", "0.8"]
    assert _row(page, "semantic entropy, against the truth (known, unseen)") == ["0.987"]
    assert _row(page, "status: kept") == ["181"]


def test_the_first_screen_is_a_sentence_the_curves_and_the_map(page: str) -> None:
    first, folded = page.replace("\N{NO-BREAK SPACE}", " ").split("<details", 1)
    assert (
        '<p id="result">ka2l reaches random&#39;s final accuracy of 62.4 % with 132 annotations instead of 225: '
        "41 % saved (the oracle saves 47 %).</p>"
    ) in first
    assert re.findall(r'<figure id="figure-(\w+)">\n<svg ', first) == ["accuracy", "map"]
    assert "<table" not in first
    assert folded.count("<table") == 12


def test_ways_to_make_new_questions_stand_beside_each_other(page: str) -> None:
    assert _row(page, "steer") == ["150", "120", "0.800", "0.900", "0.900"]
    assert _row(page, "noise") == ["150", "61", "0.800", "0.900", "0.900"]


def test_every_fold_says_the_number_that_matters(page: str) -> None:
    shown = page.replace("\N{NO-BREAK SPACE}", " ")
    assert re.findall(r'<details id="fold-(\w+)" open>', shown) == ["words"]
    folds = re.findall(r'<details id="fold-(\w+)">\n<summary><h2>.*?</h2>(.*)</summary>', shown)
    assert {name: Page(number).text.strip() for name, number in folds} == {
        "rounds": "ka2l: accuracy 74.4 % after 225 annotations",
        "savings": "ka2l: 41 % saved",
        "ledger": "1,125 asked, 1,050 paid",
        "forgetting": "ka2l: 100.0 % → 96.4 % of what was known",
        "labels": "48.3 % of 2,200 questions unknown",
        "probe": "layer 6, AUROC 0.940",
        "topics": "least known: topic 20, 64.3 % unknown",
        "decoded": "181 of 300 kept",
        "bought": "40 bought",
        "times": "531.7 s in all",
        "versions": "0123456789ab",
    }


def _luminance(colour: str) -> float:
    """Relative luminance of `#rgb` or `#rrggbb` (WCAG 2)."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    shares = [int(digits[n : n + 2], 16) / 255 for n in (0, 2, 4)]
    linear = [s / 12.92 if s <= 0.03928 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_text_can_be_read_in_light_in_dark_and_on_paper(page: str) -> None:
    schemes = [dict(re.findall(r"--(\w+): (#[0-9a-f]+)", rule)) for rule in re.findall(r":root \{(.*?)\}", page)]
    assert len(schemes) == 3
    for colours in schemes:
        for text, ground in itertools.product(("ink", "soft", "mark"), ("ground", "panel")):
            low, high = sorted(_luminance(colours[name]) for name in (text, ground))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground, colours)


@pytest.mark.parametrize("abstains", [0, 1234])
def test_what_the_model_abstains_from_is_said(tmp_path: Path, results: dict[str, Any], abstains: int) -> None:
    run = open_run(tmp_path)
    (run.folder / "results.json").write_json(results | {"label": results["label"] | {"abstains": abstains}})
    html = (write_report(run) / "index.html").read_bytes().decode()
    summary = " ".join(Page(html.split('<p id="summary">')[1].split("</p>")[0]).text.split())
    assert "semantic entropy reaches γ" in summary
    assert ("nats, or most of them are no answer (1,234 questions)." in summary) is bool(abstains)
    assert ("no answer" in summary) is bool(abstains)


def test_people_who_have_not_answered_yet_are_waited_for(tmp_path: Path, results: dict[str, Any]) -> None:
    run = open_run(tmp_path, corpus={"source": "questions.jsonl"}, annotate={"source": "file"})
    asked = run.round("ka2l", 0, 1)
    (asked / "annotations/asked.json").write_json([])
    (asked / "steps.json").write_json({"acquire": {"done": True}})
    results |= {"rounds": [r for r in results["rounds"] if r["round"] == 0], "saving": []}
    (run.folder / "results.json").write_json(results)
    html = (write_report(run) / "index.html").read_bytes().decode()
    assert "no round is finished yet; 1 round waits for people&#39;s answers.</p>" in html


def test_a_run_on_files_calls_no_eval_question_a_pool_fact(tmp_path: Path, page: str, results: dict[str, Any]) -> None:
    world = " ".join(Page(page).text.split())
    assert world.count("facts that pool questions ask, in a wording of their own") == 3
    rounds = [r | {"domain_accuracy": None} for r in results["rounds"]]
    run = open_run(
        tmp_path,
        corpus={"source": "questions.jsonl"},
        active={"strategies": ["ka2l", "random"], "rounds": 3, "budget": 225},
    )
    (run.folder / "results.json").write_json(results | {"eval_scope": "other", "rounds": rounds})
    html = (write_report(run) / "index.html").read_bytes().decode()
    text = " ".join(Page(html).text.split())
    assert "pool facts" not in text
    assert "pool questions ask" not in text
    assert (
        "ka2l needs 41.2 % fewer annotations than random buying "
        "for the same accuracy on facts that no pool question asks (" in text
    )
    assert "Accuracy: facts that no pool question asks;" in text
    assert "domain:" not in text
    assert "Savings compare accuracies over facts that no pool question asks." in text
    assert "Accuracy is over facts that no pool question asks." in text
    assert "facts that no pool question asks" in (tmp_path / "r/report/accuracy.svg").read_text()


def test_the_page_says_how_many_questions_are_graded_and_why_the_objective_fell_back(
    tmp_path: Path, results: dict[str, Any]
) -> None:
    results["search"] |= {
        "graded": 12,
        "objective": "entropy",
        "note": "chosen by entropy, not by correctness: 3 right <b>",
    }
    run = open_run(tmp_path)
    (run.folder / "results.json").write_json(results)
    html = (write_report(run) / "index.html").read_bytes().decode()
    assert (
        "12 of the 2,198 probe questions are graded (chosen by entropy, not by correctness: 3 right <b>)."
        in " ".join(Page(html).text.split())
    )
    assert _row(html, "semantic entropy, against wrong greedy answers (1,146 wrong, 1,054 right)") == ["0.931"]


def portion(count: int, of: int) -> dict[str, Any]:
    return {"share": count / of, "count": count, "of": of}


@pytest.mark.parametrize("has_floor", [True, False])
def test_losses_and_gains_stand_beside_the_noise_floor(
    tmp_path: Path, results: dict[str, Any], has_floor: bool
) -> None:
    changed = {"lost": portion(3, 150), "gained": portion(4, 200)}
    rounds = [r | (changed if r["round"] == 3 else {"lost": portion(9, 150)}) for r in results["rounds"]]
    floor = {"lost": portion(6, 250), "gained": portion(3, 300)} if has_floor else None
    ledger = {"known": {"questions": 560, "samples": 2600}}
    known = {"known": 250, "shaky": 50, "wrong": 300}
    told = {"rounds": rounds, "known": known, "noise_floor": floor, "evaluation_ledger": ledger}
    run = open_run(tmp_path)
    (run.folder / "results.json").write_json(results | told)
    html = (write_report(run) / "index.html").read_bytes().decode()
    table = html.partition('id="lost-and-gained"')[2].partition("</table>")[0].replace("\N{NO-BREAK SPACE}", " ")
    assert _row(table, "random") == ["0", "2.0 % (3 of 150)", "2.0 % (4 of 200)"]
    if has_floor:
        assert _row(table, "noise floor") == ["–", "2.4 % (6 of 250)", "1.0 % (3 of 300)"]
    text = " ".join(Page(html).text.split())
    assert "the base model knows 250 (right greedily in both wordings, and in more than half" in text
    assert "50 are shaky (right, but not that surely), 300 wrong." in text
    assert "Evaluation alone asked the base model 560 questions, and drew 2,600 samples, for known;" in text
    assert ("so there is no noise floor" in text) is not has_floor


def test_what_others_wrote_is_escaped(tmp_path: Path, results: dict[str, Any]) -> None:
    attack = "<script>alert('$x$')</script> & co"
    results |= {"command": f"ka2l run {attack}", "model": attack, "versions": {attack: attack}}
    results["rounds"][0]["strategy"] = results["saving"][0]["strategy"] = attack
    results["time_s"][attack] = 3.0
    run = open_run(tmp_path, title=attack)
    (run.folder / "results.json").write_json(results)
    html = (write_report(run) / "index.html").read_bytes().decode()
    assert "<script" not in html
    assert attack in Page(html).text
    for name in ("accuracy", "times"):
        assert attack in "".join(ElementTree.fromstring((tmp_path / f"r/report/{name}.svg").read_text()).itertext())


def test_a_new_run_renders(tmp_path: Path) -> None:
    html = (write_report(open_run(tmp_path)) / "index.html").read_bytes().decode()
    assert "<svg " not in html
    for stage in ("label", "search", "decode", "evaluate"):
        assert f"Stage {stage} has not run." in html
    assert [f.name for f in (tmp_path / "r/report").iterdir()] == ["index.html"]


def test_a_run_stopped_after_label_shows_what_it_has(tmp_path: Path, results: dict[str, Any]) -> None:
    run = open_run(tmp_path)
    write_knowledge(run)
    stopped = results | {"search": None, "decode": None, "rounds": [], "saving": [], "time_s": {"label": 0.8}}
    (run.folder / "results.json").write_json(stopped)
    html = (write_report(run) / "index.html").read_bytes().decode()
    assert sorted(f.stem for f in (tmp_path / "r/report").glob("*.svg")) == ["entropy", "times", "topics"]
    assert "Stage search has not run." in html
    assert "Stage label has not run." not in html


def test_a_figure_that_no_longer_holds_is_removed(tmp_path: Path, results: dict[str, Any]) -> None:
    run = open_run(tmp_path)
    (run.folder / "results.json").write_json(results)
    write_report(run)
    assert (tmp_path / "r/report/accuracy.svg").exists()
    (run.folder / "results.json").write_json(results | {"rounds": []})
    write_report(run)
    assert not (tmp_path / "r/report/accuracy.svg").exists()
    assert not (tmp_path / "r/report/accuracy.png").exists()


def test_a_corpus_without_gold_renders(tmp_path: Path, results: dict[str, Any]) -> None:
    none = dict.fromkeys(("accuracy", "domain_accuracy", "known_accuracy", "replayed_accuracy"))
    results["rounds"] = [r | none for r in results["rounds"]]
    results["saving"] = [{"strategy": "ka2l", "seed": 0, "saving": None, "of_oracle": None}]
    results["label"] |= {"entropy_auroc_vs_incorrect": None, "entropy_auroc_vs_truth": None, "quadrants": {}}
    results["search"] |= {"objective": "entropy", "auroc_vs_truth": None, "auroc_ci": None}
    results["search"]["layers"] = [e | {"auroc_vs_truth": None, "auroc_ci": None} for e in results["search"]["layers"]]
    run = open_run(tmp_path)
    (run.folder / "results.json").write_json(results)
    html = (write_report(run) / "index.html").read_bytes().decode()
    assert "the accuracy that random buying ends with was not reached, or random buying does not raise it." in html
    assert (
        html.count("This run has no numbers for this figure.") == 4
    )  # accuracy, known, heat without heat.json, map without states
    assert "None" not in html


def test_what_tables_hold_is_escaped(tmp_path: Path, results: dict[str, Any]) -> None:
    attack = "<script>alert(1)</script>"
    run = open_run(tmp_path)
    (run.folder / "results.json").write_json(results)
    write_round(run, "ka2l", 0, 1, decoded=3, text=attack)
    html = (write_report(run) / "index.html").read_bytes().decode()
    assert html.count("<script") == 1
    assert attack not in html
    assert Page(html).text.count(attack) == 10 * 3 + 3 * 2  # question, answer and reason; source and decoded question


def test_the_ledger_and_the_topics_are_those_of_the_run(page: str) -> None:
    assert "<td>225</td><td>216</td><td>9</td><td>refused 6, blank 3</td><td>15</td><td>225</td><td>210</td>" in page
    assert page.count("<td>225</td><td>216</td>") == 5
    topics = page[page.index('<table id="topics">') :].split("</table>")[0]
    assert topics.count("<tr>") == 1 + 25 + 2
    assert '<td class="text">5 other topics</td>' in topics
    assert '<td class="text">no topic</td><td>1</td><td>0</td>' in topics


def test_accuracy_under_the_corpus_prompt_is_shown_where_it_was_measured(
    page: str, tmp_path: Path, results: dict[str, Any]
) -> None:
    assert "corpus.prompt</th>" not in page
    results["rounds"][0]["corpus_prompt_accuracy"] = 0.3456
    del results["rounds"][1]["corpus_prompt_accuracy"]
    run = open_run(tmp_path)
    (run.folder / "results.json").write_json(results)
    html = (write_report(run) / "index.html").read_bytes().decode()
    assert "<th>accuracy</th><th>corpus.prompt</th><th>domain</th>" in html
    rows = re.findall(r"<tr><td>ka2l</td>(.*?)</tr>", html)
    assert [re.findall(r"<td>(.*?)</td>", row)[5] for row in rows[:2]] == ["34.6\N{NO-BREAK SPACE}%", "–"]


def test_every_table_of_questions_has_a_search_field_and_names_its_folder(page: str) -> None:
    for name, table, rows in (("decoded", "decoded", "12 of 12"), ("bought", "annotations", "40 of 40")):
        assert f'<input type="search" data-table="{name}"' in page
        assert f'<table id="{name}">' in page
        assert f"{rows} rows;" in page.split(f'data-table="{name}"')[0]
        assert f"<code>r/strategies/*/seed_*/round_*/{table}/*.parquet</code>" in page


def test_the_page_says_when_rows_are_left_out(tmp_path: Path, results: dict[str, Any]) -> None:
    run = open_run(tmp_path)
    (run.folder / "results.json").write_json(results)
    for number in (1, 2):
        write_round(run, "ka2l", 0, number, bought=700)
    html = (write_report(run) / "index.html").read_bytes().decode()
    assert "500 of 1,400 rows, the first of every round;" in html
    assert html.split('<table id="bought">')[1].split("</table>")[0].count("<tr>") == 501
