"""The report in a real browser: every figure is visible, the search works, the console is silent.

The run is made by hand, so Ray is not started. The pictures stay in tests/artefacts/.
"""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from commands import ROOT
from finished_run import knowledge_rows, open_run, results, write, write_knowledge, write_round, write_run

from ka2l_ray import schema
from ka2l_ray.report.page import write_report
from ka2l_ray.report.versus import write_versus

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FIGURES = {"accuracy", "entropy", "heat", "known", "layers", "map", "times", "topics"}
ARTEFACTS = ROOT / "tests/artefacts"
OPEN = """
for (const fold of document.querySelectorAll("details")) fold.open = true;
"""
MEASURE = f"""{OPEN}
const boxes = Array.from(document.querySelectorAll("figure > svg"), (svg) => {{
  const box = svg.getBoundingClientRect();
  return [svg.parentElement.id, box.width, box.height, svg.querySelectorAll("text").length];
}});
const wide = document.documentElement.scrollWidth - innerWidth;
document.documentElement.dataset.found = JSON.stringify({{ boxes, wide }});
"""
LEGIBLE = f"""
const bottom = (selector) => document.querySelector(selector).getBoundingClientRect().bottom;
const ends = ["#result", "#figure-accuracy > *", "#figure-map > *", "details"].map(bottom);
{OPEN}
const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
const linear = (value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
const luminance = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
const ground = (element) => {{
  const own = numbers(getComputedStyle(element).backgroundColor);
  return own[3] === 0 ? ground(element.parentElement) : own;
}};
const contrast = (element) => {{
  const style = getComputedStyle(element);
  const colours = [numbers(element.ownerSVGElement ? style.fill : style.color), ground(element)];
  const [low, high] = colours.map(luminance).sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}};
const scale = (svg) => (svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1);
const pixels = (element) => parseFloat(getComputedStyle(element).fontSize) * scale(element.ownerSVGElement);
const says = (element) => Array.from(element.childNodes).some((node) => node.nodeType === 3 && node.data.trim());
const texts = Array.from(document.querySelectorAll("body *")).filter((e) => says(e) && !e.closest("script, style"));
document.documentElement.dataset.found = JSON.stringify({{
  ends,
  wide: document.documentElement.scrollWidth - innerWidth,
  ground: getComputedStyle(document.body).backgroundColor,
  texts: texts.length,
  faint: texts.filter((t) => contrast(t) < 4.5).map((t) => t.textContent.slice(0, 40)),
  small: texts.filter((t) => pixels(t) < 8).map((t) => t.textContent.slice(0, 40)),
}});
"""
"""Where the first screen's parts end (pixels), and which texts are too faint or too small, all folds open."""
VISIBLE = """
const folds = Array.from(document.querySelectorAll("details > :last-child"), (content) => content.checkVisibility());
document.documentElement.dataset.found = JSON.stringify(folds);
"""
"""Of every fold, whether what it holds is shown."""
DESKTOP, PHONE = (1280, 800), (390, 844)
LIGHT, DARK = ("rgb(255, 255, 255)", ()), ("rgb(22, 24, 27)", ("--blink-settings=preferredColorScheme=0",))
"""The page's ground, and what has the browser prefer it."""
FRAME = """<!DOCTYPE html><style>:root {{ color-scheme: light dark; }}</style>
<iframe src="probed.html" style="border: 0; width: {}px; height: {}px"></iframe>
<script>addEventListener("message", (said) => {{ document.documentElement.dataset.found = said.data; }});</script>
</html>"""
TYPE = """
const field = document.querySelector("input[data-table=bought]");
field.value = "KA2L-0-1-7  baker";
field.dispatchEvent(new Event("input"));
const counts = Array.from(document.querySelectorAll(".search output"), (o) => o.textContent);
document.documentElement.dataset.found = JSON.stringify(counts);
"""

OWNED = "document.documentElement.dataset.owned='by text'"
ATTACK = (
    f'<script>{OWNED}</script><img src=x onerror="{OWNED}">"\'><svg onload={OWNED}></td></table></svg></script>'
    "<!--{{ 7 * 7 }}&lt;b&gt;\x1b[31m$x$<a href=javascript:alert(1)>"
)
"""What would run, load, or close what it is in, if it were not text."""
LOOK = """
const found = {
  owned: document.documentElement.dataset.owned ?? "by nobody",
  scripts: document.scripts.length,
  made: document.querySelectorAll("img, iframe, object, embed, link, [onload], [onerror], a[href^=javascript]").length,
  title: document.title,
  cells: Array.from(document.querySelectorAll("td"), (cell) => cell.textContent),
};
document.documentElement.dataset.found = JSON.stringify(found);
"""


class Browser:
    """A headless Chromium with a profile of its own."""

    def __init__(self, path: str, profile: Path) -> None:
        quiet = ("--no-first-run", "--disable-background-networking", "--hide-scrollbars", f"--user-data-dir={profile}")
        logging = ("--enable-logging=stderr", "--v=0", "--virtual-time-budget=5000", "--window-size=900,4200")
        self._command = [path, "--headless=new", "--no-sandbox", "--disable-gpu", *quiet, *logging]

    def __call__(self, page: Path, *options: str, fragment: str = "") -> tuple[str, list[str]]:
        """What the browser writes to stdout, and the lines of its console."""
        command = [*self._command, *options, page.as_uri() + fragment]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stderr
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    def found(self, page: Path, script: str, *options: str, size: tuple[int, int] = (900, 4200)) -> Any:
        """What a script appended to a copy of the page leaves in `dataset.found`, in a frame of that size: a window
        cannot be as narrow as a phone."""
        told = f"{script}\nparent.postMessage(document.documentElement.dataset.found, '*');"
        probed, frame = page.with_name("probed.html"), page.with_name("frame.html")
        probed.write_text(page.read_text().replace("</body>", f"<script>{told}</script></body>"))
        frame.write_text(FRAME.format(*size))
        dom, console = self(frame, "--dump-dom", *options)
        assert console == []
        found = re.search(r'data-found="(.*?)"', dom)
        assert found, "the script did not run to its end"
        return json.loads(html.unescape(found[1]))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser on this machine: looked for {', '.join(BROWSERS)}")
    return Browser(path, tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_report(write_run(tmp_path_factory.mktemp("run"))).path) / "index.html"


def shown_rows(dom: str, table: str) -> list[str]:
    body = dom.split(f'<table id="{table}">')[1].split("<tbody>")[1].split("</tbody>")[0]
    return [row for row in body.split("<tr")[1:] if not row.startswith((" hidden", ' hidden=""'))]


def test_a_console_error_would_be_seen(browser: Browser, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text("<script>nobody.knows()</script>")
    _, console = browser(broken, "--dump-dom")
    assert "nobody is not defined" in "".join(console)


def test_every_figure_is_visible_and_nothing_is_wider_than_the_window(browser: Browser, page: Path) -> None:
    found = browser.found(page, MEASURE)
    assert {name.removeprefix("figure-") for name, *_ in found["boxes"]} == FIGURES
    for name, width, height, texts in found["boxes"]:
        assert width > 400, name
        assert height > 80, name
        assert texts > 4, name
    assert found["wide"] <= 0


@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, LIGHT), (PHONE, DARK)], ids=["desktop, light", "phone, dark"])
def test_the_first_screen_holds_the_result_and_all_text_can_be_read(
    browser: Browser, page: Path, size: tuple[int, int], scheme: tuple[str, tuple[str, ...]]
) -> None:
    found = browser.found(page, LEGIBLE, *scheme[1], size=size)
    result, curves, states, folds = found["ends"]
    assert result < curves < size[1]
    assert states < size[1] or size == PHONE
    assert states < folds
    assert found["wide"] <= 0
    assert found["ground"] == scheme[0]
    assert found["texts"] > 800
    assert (found["faint"], found["small"]) == ([], [])


def test_a_run_that_is_not_finished_fits_a_phone_too(browser: Browser, tmp_path: Path) -> None:
    run = open_run(tmp_path)
    write_knowledge(run)
    missing = {"search": None, "decode": None, "rounds": [], "saving": [], "time_s": {"label": 0.8}}
    (run.folder / "results.json").write_json(results() | missing)
    found = browser.found(Path(write_report(run).path) / "index.html", LEGIBLE, size=PHONE)
    assert max(found["ends"][:3]) < PHONE[1]
    assert found["wide"] <= 0
    assert (found["faint"], found["small"]) == ([], [])


def test_paper_shows_what_is_folded(browser: Browser, page: Path) -> None:
    printed = page.with_name("printed.html")
    printed.write_text(page.read_text().replace("@media print", "@media all"))
    assert browser.found(page, VISIBLE) == [True] + [False] * 11
    assert browser.found(printed, VISIBLE) == [True] * 12


def test_the_page_opens_without_a_word_on_the_console(browser: Browser, page: Path) -> None:
    dom, console = browser(page, "--dump-dom")
    assert console == []
    assert len(shown_rows(dom, "bought")) == 40
    assert len(shown_rows(dom, "decoded")) == 12
    assert '<p class="search">' in dom, "the script shows the fields"


def test_a_link_may_carry_a_search(browser: Browser, page: Path) -> None:
    dom, console = browser(page, "--dump-dom", fragment="#search=ka2l-0-1-3+live%3F")
    assert console == []
    assert len(shown_rows(dom, "decoded")) == 1
    assert shown_rows(dom, "bought") == []
    assert re.findall(r'<details id="fold-(\w+)" open', dom) == ["words", "decoded", "bought"]
    assert "1 of 12 rows" in dom
    assert "0 of 40 rows" in dom


def test_typing_filters_its_own_table_by_every_word_in_any_case(browser: Browser, page: Path) -> None:
    assert browser.found(page, TYPE) == ["", "1 of 40 rows"]


@pytest.mark.parametrize("kind", ["png", "pdf"])
def test_screen_and_print_are_kept_to_be_looked_at(browser: Browser, page: Path, kind: str) -> None:
    ARTEFACTS.mkdir(exist_ok=True)
    picture = ARTEFACTS / f"report.{kind}"
    picture.unlink(missing_ok=True)
    way = {"png": f"--screenshot={picture}", "pdf": f"--print-to-pdf={picture}"}[kind]
    _, console = browser(page, way)
    assert console == []
    assert picture.read_bytes().startswith({"png": b"\x89PNG", "pdf": b"%PDF"}[kind])
    assert picture.stat().st_size > 50_000


def test_the_comparison_of_runs_opens_too(browser: Browser, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in "ab"]
    found = browser.found(Path(write_versus(runs, "ka2l report a b").path), MEASURE)
    assert [name for name, *_ in found["boxes"]] == ["figure-versus"]
    assert found["wide"] <= 0


def test_a_table_that_paper_cuts_repeats_its_head(page: Path) -> None:
    tables = page.read_text().split("<table")[1:]
    heads = [table.split("</table>")[0] for table in tables if "<th>" in table.split("</table>")[0]]
    assert len(heads) > 5
    assert all("<thead>" in table for table in heads)


def test_what_others_wrote_is_text_in_the_browser(browser: Browser, tmp_path: Path) -> None:
    """Questions, answers, topics, and whatever else a run's files may say."""
    run = open_run(tmp_path, title=ATTACK)
    said = results() | {"command": f"ka2l run {ATTACK}", "model": ATTACK, "versions": {ATTACK: ATTACK}}
    said["rounds"][0]["strategy"] = said["saving"][0]["strategy"] = ATTACK
    said["time_s"][ATTACK] = 3.0
    (run.folder / "results.json").write_json(said)
    write(run.base("knowledge"), [row | {"group": ATTACK} for row in knowledge_rows()], schema.KNOWLEDGE)
    write_round(run, "ka2l", 0, 1, decoded=3, text=ATTACK)
    page = Path(write_report(run).path) / "index.html"
    found = browser.found(page, LOOK)
    assert found["owned"] == "by nobody"
    assert (found["scripts"], found["made"]) == (2, 0), "the page's own script and the one that looks"
    assert ATTACK.replace("\x1b", " ") in found["title"], "a browser's title has no control characters"
    shown = [cell for cell in found["cells"] if ATTACK[:200] in cell]  # the page cuts texts of 300 characters
    assert len(shown) > 10 * 3 + 3 * 2, "question, answer and reason; source and decoded question; and others"
    _, console = browser(page, "--dump-dom", fragment=f"#search={quote(ATTACK)}")
    assert console == []


def test_an_attack_would_be_seen(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    page.write_text(f"<!DOCTYPE html><html><body><p>{ATTACK}</p></body></html>")
    dom, console = browser(page, "--dump-dom")
    assert 'data-owned="by text"' in dom
    assert console, "the image was asked for"
