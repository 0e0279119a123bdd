"""The report renders what a run holds, escapes what it did not write itself, loads nothing, and invents nothing."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pytest

from ka2l_ray.artifacts import Run
from ka2l_ray.config import Config
from ka2l_ray.report.page import entropy_counts, write_report

FIGURES = ("accuracy", "entropy", "heat", "known", "layers", "times")
VOID = {"meta", "br", "link", "img", "input", "hr"}


def _open(tmp_path: Path, title: str = "What the model does not know") -> Run:
    return Run.open(Config.model_validate({"run": {"name": "r", "storage": str(tmp_path)}, "report": {"title": title}}))


def _write_knowledge(run: Run) -> None:
    """40 rows per entropy value and truth, one failed row, and one row without a known truth."""
    kinds = {"known": (0.0, 0.325), "rare": (0.325, 0.8018), "misconception": (0.0, 0.5), "unseen": (1.97, 2.303, 2.164, 0.8018, 1.6)}
    rows = [{"entropy_nats": v, "truth": t, "correct": t == "known"} for t, values in kinds.items() for v in values] * 40
    rows += [{"entropy_nats": None, "truth": "known", "correct": None}, {"entropy_nats": 0.0, "truth": None, "correct": True}]
    run.base("knowledge").write((None, pa.Table.from_pylist(rows)))


class _Page(HTMLParser):
    """Collects what a browser would build and load; fails on a tag that closes another."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.loads += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data", "action") and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        self.text += data


def _row(html: str, first: str) -> list[str]:
    """Cells of the table row that begins with `first`."""
    found = re.search(rf"<tr><td>{re.escape(first)}</td>(.*?)</tr>", html)
    assert found, f"no row {first!r}"
    return re.findall(r"<td>(.*?)</td>", found[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, unchanged_results: dict[str, Any], heat: list[dict[str, Any]]) -> Path:
    """The report of a whole run."""
    run = _open(tmp_path_factory.mktemp("whole"))
    _write_knowledge(run)
    (run.folder / "base/search/heat.json").write_json(heat)
    (run.folder / "results.json").write_json(unchanged_results)
    return Path(write_report(run).path)


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "index.html").read_text()


def test_page_is_whole_and_self_contained(page: str) -> None:
    parsed = _Page(page)
    assert parsed.open == []
    assert len(parsed.ids) == len(set(parsed.ids)), "two figures share an id"
    assert parsed.loads
    assert all(target.startswith("#") for target in parsed.loads), "the page loads something"
    assert "script" not in parsed.tags
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_every_figure_is_inline_and_beside_the_page(page: str, folder: Path) -> None:
    assert page.count("<svg ") == len(FIGURES)
    for name in FIGURES:
        svg = (folder / f"{name}.svg").read_text()
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert f'<figure id="figure-{name}">\n<svg ' in page
    assert page.count("Made by <code>ka2l run jobs/configs/demo.yaml</code>") == len(FIGURES)


def test_references_inside_a_figure_resolve(page: str) -> None:
    ids = set(_Page(page).ids)
    used = set(re.findall(r"url\(#([^)]+)\)", page)) | set(re.findall(r'xlink:href="#([^"]+)"', page))
    assert used
    assert used <= ids


def test_nulls_are_dashes(page: str) -> None:
    assert _row(page, "share truly unknown") == ["–"]
    assert _row(page, "baseline: predictive entropy") == ["–"]
    assert _row(page, "decode") == ["150", "300", "–", "12.9"]
    assert _row(page, "finetune") == ["–", "–", "–", "410.4"]
    assert "None" not in page
    assert "nan" not in _Page(page).text


def test_numbers_are_those_of_the_run(page: str) -> None:
    summary = " ".join(_Page(page[page.index('<p id="summary">') : page.index("<h2>Rounds")]).text.split())
    assert "Of 2,200 questions, the model does not know 48.3 %" in summary
    assert "AUROC of 0.940 (95 % interval 0.919 to 0.959)" in summary
    assert "ka2l needs 41.2 % fewer annotations" in summary
    assert "87.1 % of what the oracle saves" in summary
    assert "from 100.0 % to 96.4 % with ka2l, from 100.0 % to 96.0 % with random" in summary
    assert _row(page, "label") == ["2,200", "2,198", "2", "0.8"]
    assert _row(page, "semantic entropy, against the truth (known, unseen)") == ["0.987"]
    assert _row(page, "status: kept") == ["181"]


def test_what_others_wrote_is_escaped(tmp_path: Path, results: dict[str, Any]) -> None:
    attack = "<script>alert('$x$')</script> & co"
    results |= {"command": f"ka2l run {attack}", "model": attack, "versions": {attack: attack}}
    results["rounds"][0]["strategy"] = results["saving"][0]["strategy"] = attack
    results["time_s"][attack] = 3.0
    run = _open(tmp_path, title=attack)
    (run.folder / "results.json").write_json(results)
    html = (write_report(run) / "index.html").read_bytes().decode()
    assert "<script" not in html
    assert attack in _Page(html).text
    for name in ("accuracy", "times"):
        assert attack in "".join(ElementTree.fromstring((tmp_path / f"r/report/{name}.svg").read_text()).itertext())


def test_a_new_run_renders(tmp_path: Path) -> None:
    html = (write_report(_open(tmp_path)) / "index.html").read_bytes().decode()
    assert "<svg " not in html
    for stage in ("label", "search", "decode", "evaluate"):
        assert f"Stage {stage} has not run." in html
    assert [f.name for f in (tmp_path / "r/report").iterdir()] == ["index.html"]


def test_a_run_stopped_after_label_shows_what_it_has(tmp_path: Path, results: dict[str, Any]) -> None:
    run = _open(tmp_path)
    _write_knowledge(run)
    stopped = results | {"search": None, "decode": None, "rounds": [], "saving": [], "time_s": {"label": 0.8}}
    (run.folder / "results.json").write_json(stopped)
    html = (write_report(run) / "index.html").read_bytes().decode()
    assert sorted(f.stem for f in (tmp_path / "r/report").glob("*.svg")) == ["entropy", "times"]
    assert "Stage search has not run." in html
    assert "Stage label has not run." not in html


def test_a_figure_that_no_longer_holds_is_removed(tmp_path: Path, results: dict[str, Any]) -> None:
    run = _open(tmp_path)
    (run.folder / "results.json").write_json(results)
    write_report(run)
    assert (tmp_path / "r/report/accuracy.svg").exists()
    (run.folder / "results.json").write_json(results | {"rounds": []})
    write_report(run)
    assert not (tmp_path / "r/report/accuracy.svg").exists()


def test_a_corpus_without_gold_renders(tmp_path: Path, results: dict[str, Any]) -> None:
    none = dict.fromkeys(("accuracy", "domain_accuracy", "known_accuracy", "replayed_accuracy"))
    results["rounds"] = [r | none for r in results["rounds"]]
    results["saving"] = [{"strategy": "ka2l", "seed": 0, "saving": None, "of_oracle": None}]
    results["label"] |= {"entropy_auroc_vs_incorrect": None, "entropy_auroc_vs_truth": None, "quadrants": {}}
    results["search"] |= {"objective": "entropy", "auroc_vs_truth": None, "auroc_ci": None}
    results["search"]["layers"] = [e | {"auroc_vs_truth": None, "auroc_ci": None} for e in results["search"]["layers"]]
    run = _open(tmp_path)
    (run.folder / "results.json").write_json(results)
    html = (write_report(run) / "index.html").read_bytes().decode()
    assert "did not reach the accuracy that random buying ends with" in html
    assert html.count("This run has no number for this figure.") == 3  # accuracy, known, and heat without heat.json
    assert "None" not in html


def test_entropy_is_counted_by_truth_else_by_grade(tmp_path: Path) -> None:
    run = _open(tmp_path)
    _write_knowledge(run)
    counts = entropy_counts(run.base("knowledge"))
    assert counts["unseen"] == {1.97: 40, 2.303: 40, 2.164: 40, 0.8018: 40, 1.6: 40}
    assert counts["right"] == {0.0: 1}
    assert "no gold" not in counts  # the failed row has no entropy, so it is not counted
