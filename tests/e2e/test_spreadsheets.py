"""Questions for people through a real spreadsheet program: what LibreOffice saves is what was asked and answered.

It detects numbers, dates and formulas in all that it opens, as Excel does where a file is opened by a click.
"""

import csv
import shutil
import subprocess
from pathlib import Path

import pytest

from ka2l_ray.annotate.annotators import Asked
from ka2l_ray.annotate.file import QUESTIONS_CSV, answers_in, import_file, read_answers, write_questions
from ka2l_ray.dataflow.storage import Folder

IDS = (
    *(
        "73928e05",
        "1E5",
        "1234567890123456789",
        "007",
        "1,5",
        "1.234,5",
        "5%",
        "$5",
        "1-2",
        "3/4",
        "12:30",
        "2024-01-02",
    ),
    *("MARCH1", "1. März", "7 pm", "TRUE", "FALSCH", "'1", "''1e5", "q01", "tc_1234", "a3f9c2e1b0d47586", "+1", "@x"),
)
QUESTIONS = (
    *('=HYPERLINK("http://x")', "+49 is for whom?", "-40 °F in °C?", "@ann is who?", "'tis who?"),
    "Wer schrieb „Über, uns“; und\n“Öl”?",
)
SAVED = {  # (kind of workbook, language of the program, how it saves: delimiter, quote, characters …)
    "English, UTF-8": ("xlsx", 1033, "44,34,76,1,,1033,false,true"),
    "German, Windows-1252": ("xlsx", 1031, "59,34,1,1,,1031,false,true"),
    "French, tabs, UTF-16": ("ods", 1036, "9,34,65535,1,,1036,false,true"),
    "Macintosh, all in quotes": ("ods", 1033, "44,34,2,1,,1033,true,true"),
}


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("soffice") is None:
        pytest.skip("LibreOffice is not installed: apt-get install --no-install-recommends libreoffice-calc")
    return tmp_path_factory.mktemp("soffice")


def convert(profile: Path, file: Path, made: str, *options: str) -> Path:
    """A file in another format, next to it."""
    user = f"-env:UserInstallation=file://{profile}"
    command = ["soffice", "--headless", user, "--convert-to", made, *options, "--outdir", str(file.parent), str(file)]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    return file.with_suffix(f".{made.partition(':')[0]}")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("workbook", "language", "saved"), SAVED.values(), ids=SAVED)
def test_libreoffice_brings_back_what_it_was_given(
    profile: Path, tmp_path: Path, workbook: str, language: int, saved: str
) -> None:
    folder = Folder.of(str(tmp_path / "round"))
    asked = [Asked(i, f"{QUESTIONS[n % len(QUESTIONS)]} {n}", [], i) for n, i in enumerate(IDS)]
    write_questions(asked, folder)
    with (tmp_path / "round" / QUESTIONS_CSV).open(encoding="utf-8-sig", newline="") as stream:
        rows = [row | {"answer": f"Antwört {n}"} for n, row in enumerate(csv.DictReader(stream))]
    file = tmp_path / "a.csv"
    with file.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    opened = convert(profile, file, workbook, f"--infilter=CSV:44,34,76,1,,{language},false,true")
    file.unlink()
    convert(profile, opened, f"csv:Text - txt - csv (StarCalc):{saved}")
    back = read_answers(file, QUESTIONS)
    assert [(r.id, r.question) for r in back] == [(q.id, q.question) for q in asked]
    assert import_file(file, [folder])["answered"] == len(IDS)
    assert {i: a.annotated.answer for i, a in answers_in(folder).items()} == {
        i: f"Antwört {n}" for n, i in enumerate(IDS)
    }
