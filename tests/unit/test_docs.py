"""The pages in docs/ and the READMEs: their commands can be typed, and their links resolve.

Every `ka2l` line of a fenced block is parsed by the command line's own parser. Every `--set` names a real field and, if
it has a concrete value, is loaded. Commands that are cheap and need neither Ray nor a network are run; the others are
run by the tests named in `RUN_BY`, or marked `# needs a GPU` or `# needs a network`.
"""

import ast
import hashlib
import importlib.util
import json
import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml

from ka2l_ray.cli import app as cli
from ka2l_ray.cli.terminal import print_plan
from ka2l_ray.config import Config, ConfigError, load_config, parse_config
from ka2l_ray.config.base import Section, section_of
from ka2l_ray.pipeline.table import STEP_NAMES

ROOT = Path(__file__).parents[2]
SMOKE = "jobs/configs/smoke.yaml"
PAGES = [ROOT / "README.md", ROOT / "cluster/README.md", *sorted((ROOT / "docs").glob("*.md"))]
TYPED = ("ka2l", "make", "python", "python3", "pip")
MARKS = ("needs a GPU", "needs a network")
MADE_BY_READERS = ("CONFIG", "mine.yaml")
"""Configurations of the reader that pages mention; the smoke configuration is used in their place."""
RUN_BY = {
    "run": "tests/e2e/test_kill_and_resume.py::test_killed_in_collecting_search_and_finetuning",
    "annotate": "tests/ray/test_rounds.py::test_people_answer_in_a_spreadsheet_and_the_loop_goes_on",
    "compare": "tests/ray/test_rounds.py::test_a_comparison_holds_every_curve_and_plays_none_twice",
    "train-decoder": "tests/ray/test_train_decoder.py::test_",
    "decode": "tests/ray/test_new_questions.py::test_so_many",
    "submit": "tests/autoscale/test_run.py::test_a_whole_run_grows_the_cluster",
    "status": "tests/ray/test_status.py::test_the_command_prints_lines_or_json",
    "report": "tests/local/report/test_report.py::test_",
    "doctor": "tests/local/cli/test_doctor.py::test_",
}
"""Tests that run a command, or what it does, more thoroughly than one line of a page would."""
RESULTS = {"label.threshold_nats", "decode.answerable"}
"""Members of results.json that look like fields of the configuration."""
FILES = (".json", ".md", ".yaml", ".html")
VARIES = re.compile(r"…|'[^' ]*'|\b[A-Z](?:[A-Z_]*[A-Z])?\b|\d[\d,.]*")
"""Parts of a quoted message that stand for what varies."""
FILLED_IN = re.compile(r"%[-+.\d]*[sdrfg]|\{\w*(?:[:!][^{}]*)?\}")
"""Parts of a text in the code that logging or `str.format` fills in."""
OF_OTHERS = ("no space left on device", "Refer to the documentation on how to address the out of memory issue")
"""Messages of the system and of Ray that pages quote too."""


@dataclass(frozen=True)
class Line:
    """A command of a page: `words` without the comment, `program` without its folder."""

    page: str
    number: int
    text: str
    words: tuple[str, ...]

    @property
    def program(self) -> str:
        return self.words[0].rsplit("/", 1)[-1]

    @property
    def is_marked(self) -> bool:
        return any(mark in self.text.partition("#")[2] for mark in MARKS)

    def __str__(self) -> str:
        return f"{self.page}:{self.number}: {self.text}"


@dataclass(frozen=True)
class Block:
    page: str
    number: int
    language: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """Fenced blocks with the number of their first line."""
    lines, opened = page.read_text(encoding="utf-8").split("\n"), 0
    for number, line in enumerate(lines, 1):
        if line.startswith("```") and opened:
            yield Block(page.name, opened + 1, lines[opened - 1][3:].strip(), "\n".join(lines[opened : number - 1]))
            opened = 0
        elif line.startswith("```"):
            opened = number


def commands() -> list[Line]:
    found = []
    for page in PAGES:
        for block in (b for b in blocks(page) if b.language in ("", "bash", "sh")):
            joined = re.sub(r"\\\n\s*", " ", block.text)
            for number, text in enumerate(joined.split("\n"), block.number):
                first = text.split(" ", 1)[0]
                if first.rsplit("/", 1)[-1] in TYPED and (first in TYPED or first.startswith(".venv")):
                    found.append(Line(page.name, number, text, tuple(shlex.split(text, comments=True))))
    return found


def spans(page: Path) -> list[str]:
    """Inline code, fenced blocks left out."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    doubled = re.findall(r"``(.+?)``", text, flags=re.DOTALL)
    single = re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"``.+?``", "", text, flags=re.DOTALL))
    return [" ".join(s.split()) for s in [*doubled, *single]]


LINES = commands()
KA2L = [line for line in LINES if line.program == "ka2l"]


def command(words: Sequence[str]) -> tuple[Any, list[str]]:
    """The command that `words` name, and the words that are left."""
    found, rest = typer.main.get_command(cli.app), list(words)
    while members := getattr(found, "commands", None):
        assert rest, "no command"
        assert rest[0] in members, f"no command {rest[0]!r}"
        found = members[rest.pop(0)]
    return found, rest


def parsed(words: Sequence[str]) -> dict[str, Any]:
    """A command's parameters as the command line parses them. Raises what it would show the user."""
    found, rest = command(words)
    return found.make_context(found.name, rest).params


def is_field(dotted: str) -> bool:
    """Whether a dotted name is a section or a field of the configuration."""
    kind: type[Section] | None = Config
    for name in dotted.split("."):
        fields = {f.alias or n: f for n, f in kind.model_fields.items()} if kind else {}
        if name not in fields:
            return False
        kind = section_of(fields[name].annotation)
    return True


def check_overrides(config: str, overrides: list[str], where: str) -> None:
    """Check the names, and also the values unless they are placeholders for something of the reader's."""
    for override in overrides:
        assert is_field(override.partition("=")[0]), f"{where}: {override}"
    concrete = [o for o in overrides if "…" not in o and not re.search(r"=[A-Z]+$", o)]
    try:
        load_config(ROOT / (SMOKE if config in MADE_BY_READERS else config), concrete)
    except ConfigError as error:
        pytest.fail(f"{where}: {error}")


def test_pages_exist_and_contain_commands():
    with_commands = {"README.md", "corpora.md", "real-model.md", "report.md", "troubleshooting.md"}
    assert {p.name for p in PAGES} >= {*with_commands, "concepts.md", "configuration.md"}
    assert len(KA2L) > 20
    assert {line.page for line in KA2L} >= with_commands


@pytest.mark.parametrize("line", KA2L, ids=str)
def test_a_ka2l_line_parses(line: Line):
    if "--help" in line.words:
        assert line.words[1:] == ("--help",) or command(line.words[1:-1])
        return
    given = parsed(line.words[1:])
    config = given.get("config")
    if config is not None:
        assert str(config) in MADE_BY_READERS or (ROOT / config).is_file(), f"{line}: no such configuration"
        check_overrides(str(config), given.get("overrides") or [], str(line))
    for stage in (given.get("until"), given.get("redo")):
        assert stage is None or stage in STEP_NAMES, line


@pytest.mark.parametrize("line", [line for line in LINES if line.program == "make"], ids=str)
def test_a_make_line_names_targets_that_exist(line: Line):
    targets = re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert [w for w in line.words[1:] if "=" not in w and w not in targets] == []


@pytest.mark.parametrize("line", [line for line in LINES if line.program.startswith("python")], ids=str)
def test_a_python_line_names_modules_and_files_that_exist(line: Line):
    _, first, *rest = line.words
    if first == "-m":
        assert importlib.util.find_spec(rest[0]), line
    else:
        assert (ROOT / first).is_file(), line


@pytest.mark.parametrize("line", [line for line in LINES if line.program == "pip"], ids=str)
def test_a_pip_line_names_extras_and_files_that_exist(line: Line):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert line.words[1] == "install"
    for extras in re.findall(r"\[(.+?)\]", " ".join(line.words)):
        assert {e.strip() for e in extras.split(",")} <= project["optional-dependencies"].keys(), line
    for flag, value in zip(line.words, line.words[1:], strict=False):
        assert flag not in ("-c", "--constraint", "-r", "--requirement") or (ROOT / value).is_file(), line


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_and_fields_in_the_text_are_real(page: Path):
    """Inline: `ka2l …` parses, `--set …` and dotted names are fields, paths of this repository exist."""
    for span in spans(page):
        words = span.removeprefix(".venv/bin/").split(" ")
        if words[0] == "ka2l" and len(words) > 1 and re.fullmatch(r"[a-z]+", words[1]):
            _in_text(page, span)
        override = re.fullmatch(r"--set '?([\w.]+)=.*", span)
        assert not override or override[1] == "section.field" or is_field(override[1]), f"{page.name}: {span}"
        named = re.fullmatch(r"([a-z_]+(?:\.[a-z_]+)+)(?:[:=] ?.*)?", span)
        if named and named[1].split(".")[0] in Config.model_fields and not named[1].endswith(FILES):
            assert named[1] in RESULTS or is_field(named[1]), f"{page.name}: {span}"
        if re.fullmatch(r"(ka2l_ray|jobs|tests|docs|cluster)/[\w./-]*", span):
            assert (ROOT / span).exists(), f"{page.name}: {span}"


def _in_text(page: Path, span: str) -> None:
    """A command by its name alone, or with words that the command line takes."""
    words = shlex.split(span.removeprefix(".venv/bin/").replace("…", ""))[1:]
    if command(words)[1]:
        given = parsed(words)
        check_overrides("CONFIG", given.get("overrides") or [], f"{page.name}: {span}")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_resolve(page: Path):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in slugs(there), f"{page.name}: {target}; there are {sorted(slugs(there))}"


def slugs(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_lines_fit_the_width(page: Path):
    """Prose in docs/ and cluster/; tables and commands cannot be broken everywhere."""
    if page.parent != ROOT:
        prose = [line for line in page.read_text(encoding="utf-8").split("\n") if not line.startswith(("|", ".venv"))]
        assert [line for line in prose if len(line) > 120] == []


@pytest.mark.parametrize(
    "block", [b for p in PAGES for b in blocks(p) if b.language == "yaml"], ids=lambda b: f"{b.page}:{b.number}"
)
def test_a_configuration_in_a_page_is_valid(block: Block):
    parse_config(yaml.safe_load(block.text), block.page)


@pytest.mark.parametrize(
    "block", [b for p in PAGES for b in blocks(p) if b.language == "mermaid"], ids=lambda b: f"{b.page}:{b.number}"
)
def test_modules_in_a_diagram_exist(block: Block):
    named = [name for names in re.findall(r'\w\["([a-z_/, ]+)"\]', block.text) for name in names.split(", ")]
    assert len(named) > 10
    assert [n for n in named if not (ROOT / f"ka2l_ray/{n}.py").is_file()] == []


@pytest.mark.parametrize("line", [line for line in KA2L if not line.is_marked], ids=str)
def test_a_command_runs_here_or_in_another_test(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """`--help`, `corpus` and `--dry-run` are run; 80 rows with the same columns replace the reader's own corpus."""
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    unlike = (hashlib.sha256(str(n).encode()).hexdigest()[:30] for n in range(80))
    rows = [{"question": f"Which river crosses {name}?", "answers": [f"River {name[:4]}"]} for name in unlike]
    (tmp_path / "popqa.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    words = [SMOKE if w in MADE_BY_READERS else w for w in line.words[1:]]
    if "--help" in words or words[0] == "corpus":
        with pytest.raises(SystemExit) as ended:
            cli.app(words)
        shown = capfd.readouterr()
        assert not ended.value.code, f"{line}: {shown.err}"
        assert "Usage" in shown.out or "prompt of the first question:" in shown.out
    elif "--dry-run" in words:
        given = parsed(words)
        # the command itself loads Ray: tests/e2e/test_errors.py
        print_plan(load_config(given["config"], given["overrides"] or []))
        assert "nothing was run" in capfd.readouterr().out
    else:
        file, _, name = RUN_BY[words[0]].partition("::")
        assert f"def {name}" in (ROOT / file).read_text(encoding="utf-8"), f"{line}: {RUN_BY[words[0]]} is gone"


def messages() -> list[tuple[str, str]]:
    """(where, longest fixed part) of every message raised as `ConfigError`, `StageError` or `Refusal`."""
    found = []
    for file in sorted((ROOT / "ka2l_ray").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("ConfigError", "StageError", "Refusal")
            ):
                constants = [p for a in node.args for p in ast.walk(a) if isinstance(p, ast.Constant)]
                parts = [p.value for p in constants if isinstance(p.value, str)]
                longest = max((" ".join(p.split()) for p in parts), key=len, default="")
                if len(longest) > 12:
                    found.append((f"{file.relative_to(ROOT)}:{node.lineno}", longest))
    return found


def test_every_message_is_in_troubleshooting():
    page = " ".join((ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8").replace("`", "").split())
    lacking = [f"{where}: {text}" for where, text in messages() if text.strip(" .;:,'").replace("`", "") not in page]
    assert len(messages()) > 60
    assert lacking == []


def said() -> list[str]:
    """Fixed parts, of two words or more, of all texts in the package that are no docstrings; the longest first."""
    found = set()
    for file in (ROOT / "ka2l_ray").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        described = {id(n.value) for n in nodes if isinstance(n, ast.Expr)}
        for node in nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in described:
                found |= {_plain(part) for part in FILLED_IN.split(node.value)}
    return sorted((part for part in found if " " in part), key=len, reverse=True)


def unsaid(quote: str, parts: Sequence[str]) -> list[str]:
    """Pieces of a quoted message, of three words or more, that the package does not say."""
    left = _plain(quote)
    for part in (p for p in parts if p in left):
        left = re.sub(rf"(?<!\w){re.escape(part)}(?!\w)", "…", left)
    pieces = [piece for piece in map(_plain, VARIES.split(left)) if piece.count(" ") > 1]
    return [piece for piece in pieces if not any(piece in part for part in parts)]


def _plain(text: str) -> str:
    return " ".join(text.replace("`", "").split()).strip(" .;:,'()[]=→/")


def test_every_message_in_troubleshooting_is_one_that_the_package_gives():
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    quotes = [double or single for double, single in re.findall(r"\*\*(?:``(.+?)``|`(.+?)`)\*\*", page, re.DOTALL)]
    parts = said()
    assert len(quotes) > 150
    assert unsaid("FILE: its ledger is locked by N others", parts) == ["its ledger is locked by"]
    assert [(q, left) for q in quotes if (left := unsaid(q, [*OF_OTHERS, *parts]))] == []


def test_every_section_is_found_by_its_annotation():
    """`is_field` follows pydantic's annotations; a section inside a union would be missed silently."""
    assert is_field("annotate.endpoint.url")
    assert is_field("finetune.from")
    assert not is_field("finetune.start")
    assert not any(section_of(a) for f in Config.model_fields.values() for a in get_args(f.annotation))
