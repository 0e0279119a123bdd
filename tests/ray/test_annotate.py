"""Annotators: with a chat endpoint that fails nothing is lost or asked twice; people's files pause a round and
continue it."""

import csv
import io
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from chat_server import COMPLETION_TOKENS, ChatServer, prompt_tokens

from ka2l_ray.annotate.annotators import Asked, Waiting
from ka2l_ray.annotate.file import import_file, is_waiting
from ka2l_ray.annotate.ledger import ledger
from ka2l_ray.annotate.stage import annotate, share_claims
from ka2l_ray.config import ConfigError, parse_config
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.errors import StageError

KEY = "sk-SECRET-0123456789"
PROMPT_PRICE, COMPLETION_PRICE, PRICE = 2.0, 8.0, 0.5
TROUBLES = {
    "q00": ["wait 1"],
    "q01": ["status 500", "status 502"],
    "q02": ["hang"],
    "q03": ["malformed"],
    "q04": ["cut"],
    "q05": ["drop", "html", "empty"],
    "q06": ["slow 1"],
    "q07": ["status 429", "status 408", "status 409", "malformed"],
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("KA2L_ANNOTATOR_KEY", KEY)
    with ChatServer().running() as server:
        yield server


def open_run(storage: Path, source: str, **endpoint: Any) -> Run:
    prices = {"cost_per_million_prompt_tokens": PROMPT_PRICE, "cost_per_million_completion_tokens": COMPLETION_PRICE}
    fast = {"backoff_s": 0.05, "timeout_s": 20.0, "concurrency": 4}
    section = {"source": source, "cost": PRICE, "endpoint": prices | fast | endpoint}
    return Run.open(parse_config({"run": {"storage": str(storage), "name": "r"}, "annotate": section}, "test"))


def asked(numbers: range) -> list[Asked]:
    return [Asked(f"q{n:02d}", f"Who wrote book q{n:02d}?", [], None) for n in numbers]


def annotated(run: Run, questions: list[Asked], strategy: str = "ka2l") -> Table:
    table = Table(run.round(strategy, 0, 1) / "annotations")
    annotate(run, questions, table)
    return table


def cost(question: str) -> float:
    return PRICE + (prompt_tokens(question) * PROMPT_PRICE + COMPLETION_TOKENS * COMPLETION_PRICE) / 1e6


def files_with(folder: Path, text: str) -> list[str]:
    return [str(p) for p in folder.rglob("*") if p.is_file() and text.encode() in p.read_bytes()]


def test_an_endpoint_that_misbehaves_loses_nothing_and_is_asked_nothing_twice(
    tmp_path: Path, server: ChatServer, caplog: pytest.LogCaptureFixture
) -> None:
    questions = asked(range(24))
    text = {q.id: q.question for q in questions}
    for i, troubles in TROUBLES.items():
        server.troubles[text[i]] = list(troubles)
    server.says = {
        text["q08"]: "I don’t know.",
        text["q09"]: "There is no such book.",
        text["q10"]: "  ",
        text["q11"]: f" It is {KEY} \n",
    }
    server.troubles[text["q12"]] = ["long"]
    run = open_run(tmp_path, "endpoint", url=server.url, timeout_s=10.0)  # which one question waits out
    with caplog.at_level(logging.INFO):
        table = annotated(run, questions)
    rows = table.read().to_pylist()

    assert [r["id"] for r in rows] == [q.id for q in questions]
    assert server.answered == dict.fromkeys(text.values(), 1)
    assert server.asked == {q: 1 + len([t for t in TROUBLES.get(i, ()) if "slow" not in t]) for i, q in text.items()}
    odd = {"q08": "refused", "q09": "no_such_thing", "q10": "blank", "q12": "truncated"}
    assert {r["id"]: r["status"] for r in rows} == dict.fromkeys(text, "answered") | odd
    assert all(
        r["answer"] == f"answer to {text[r['id']]}" for r in rows if r["status"] == "answered" and r["id"] != "q11"
    )
    assert rows[11]["answer"] == "It is ***"
    assert all(r["answer"] is None for r in rows if r["status"] != "answered")
    assert [r["cost"] for r in rows] == [pytest.approx(cost(q), abs=1e-12) for q in text.values()]
    assert not any(r["cached"] for r in rows)
    book = ledger(table)
    assert (book["asked"], book["answered"], book["rejected"], book["refused"], book["failed"]) == (24, 20, 4, 1, 0)
    assert book["paid"] == book["cost"] == pytest.approx(sum(map(cost, text.values())), abs=1e-9)

    assert not server.came_early
    assert server.most_at_once <= 4
    assert {h["Authorization"] for h in server.headers} == {f"Bearer {KEY}"}
    assert files_with(tmp_path, KEY) == []
    assert KEY not in caplog.text

    before = server.asked.total()
    table.folder.delete()
    assert annotated(run, questions).read().to_pylist() == rows
    assert server.asked.total() == before


def test_equal_questions_are_asked_once_and_paid_once_but_cost_each_strategy(
    tmp_path: Path, server: ChatServer
) -> None:
    run = open_run(tmp_path, "endpoint", url=server.url)
    twin = Asked("twin", "Who wrote book q01?", [], None)
    first = ledger(annotated(run, [*asked(range(3)), twin], "ka2l"))
    assert server.asked == {q.question: 1 for q in asked(range(3))}
    second = ledger(annotated(run, asked(range(2, 5)), "random"))
    assert server.asked == {q.question: 1 for q in asked(range(5))}
    each = cost("Who wrote book q00?")
    assert (first["cost"], first["paid"], first["cached"]) == (pytest.approx(4 * each), pytest.approx(3 * each), 1)
    assert (second["cost"], second["paid"], second["cached"]) == (pytest.approx(3 * each), pytest.approx(2 * each), 1)


def test_an_endpoint_that_moved_is_not_paid_again(tmp_path: Path, server: ChatServer) -> None:
    """The same run goes on at another port: what was answered at the first is not asked again."""
    run = open_run(tmp_path, "endpoint", url=server.url)
    run.table("questions").close([])  # from now on the run refuses another configuration
    table = annotated(run, asked(range(4)))
    before = table.read().to_pylist()
    table.folder.delete()
    with ChatServer().running() as moved:
        run = open_run(tmp_path, "endpoint", url=moved.url)
        assert annotated(run, asked(range(4))).read().to_pylist() == before
        assert moved.asked.total() == 0
        assert ledger(annotated(run, asked(range(6)), "random"))["paid"] == pytest.approx(
            2 * cost("Who wrote book q00?")
        )
        assert moved.asked == {q.question: 1 for q in asked(range(4, 6))}


def test_the_limit_on_requests_at_once_applies_to_all_questions(tmp_path: Path, server: ChatServer) -> None:
    questions = [Asked(str(n), f"question {n}", [], None) for n in range(266)]
    for q in questions:
        server.troubles[q.question] = ["slow 0.02"]
    table = annotated(open_run(tmp_path, "endpoint", url=server.url, concurrency=3), questions)
    assert table.read(["id"])["id"].to_pylist() == [q.id for q in questions]
    assert server.answered == server.asked == {q.question: 1 for q in questions}
    assert server.most_at_once <= 3


def test_a_question_that_the_endpoint_gives_up_on_costs_nothing_and_is_said(
    tmp_path: Path, server: ChatServer, caplog: pytest.LogCaptureFixture
) -> None:
    questions = asked(range(6))
    server.troubles[questions[1].question] = ["status 503"] * 99
    server.troubles[questions[4].question] = ["status 400"]
    server.report_usage = False
    run = open_run(tmp_path, "endpoint", url=server.url, retries=2)
    with caplog.at_level(logging.WARNING):
        rows = annotated(lenient(run), questions).read().to_pylist()
    assert [r["status"] for r in rows] == ["answered", "failed", "answered", "answered", "failed", "answered"]
    assert [r["cost"] for r in rows] == [PRICE, 0.0, PRICE, PRICE, 0.0, PRICE]
    assert server.asked[questions[1].question] == 3
    assert server.asked[questions[4].question] == 1
    assert "no valid reply to 2 of 6 questions" in caplog.text
    assert "4 of 4 replies report no token usage" in caplog.text


def lenient(run: Run) -> Run:
    """The run with half of its rows allowed to fail."""
    section = run.config.run.model_copy(update={"max_error_fraction": 0.5})
    return replace(run, config=run.config.model_copy(update={"run": section}))


def test_an_outage_closes_no_round_and_the_next_try_asks_for_the_rest_alone(tmp_path: Path, server: ChatServer) -> None:
    questions = asked(range(8))
    for q in questions[5:]:
        server.troubles[q.question] = ["wait 86400"]
    run = open_run(tmp_path, "endpoint", url=server.url, concurrency=1)
    with pytest.raises(
        StageError,
        match=r"no valid reply to 3 of 8 questions, more than run.max_error_fraction allows \(0\.01\)\. First: HTTP",
    ):
        annotated(run, questions)
    assert not Table(run.round("ka2l", 0, 1) / "annotations").is_done
    book = ledger(annotated(run, questions))
    assert (book["answered"], book["failed"]) == (8, 0)
    assert server.answered == dict.fromkeys([q.question for q in questions], 1)


def test_curves_side_by_side_ask_every_question_once(tmp_path: Path, server: ChatServer) -> None:
    """In tasks of their own and with one request at a time each, as a comparison's curves do."""
    questions = asked(range(6))
    for q in questions:
        server.troubles[q.question] = ["slow 0.3"]
    run, _held = open_run(tmp_path, "endpoint", url=server.url, concurrency=1), share_claims()
    task, tables = (
        ray.remote(num_cpus=0)(annotate),
        [Table(run.round(name, 0, 1) / "annotations") for name in ("ka2l", "random")],
    )
    ray.get([task.remote(run, questions, table) for table in tables])
    books = [ledger(table) for table in tables]
    assert server.asked == dict.fromkeys([q.question for q in questions], 1)
    total = sum(cost(q.question) for q in questions)
    assert [b["cost"] for b in books] == [pytest.approx(total)] * 2
    assert sum(b["paid"] for b in books) == pytest.approx(total)
    assert sum(b["cached"] for b in books) == 6


def test_an_endpoint_that_answers_nothing_stops_the_round_with_its_reason(
    tmp_path: Path, server: ChatServer, caplog: pytest.LogCaptureFixture
) -> None:
    questions = asked(range(3))
    for q in questions:
        server.troubles[q.question] = ["status 401"]
    run = open_run(tmp_path, "endpoint", url=server.url)
    with pytest.raises(
        StageError, match=r"answered none of 3 questions\. First: HTTP 401: .*you sent Bearer \*\*\*"
    ) as stopped:
        annotated(run, questions)
    assert KEY not in str(stopped.value) + caplog.text
    assert not Table(run.round("ka2l", 0, 1) / "annotations").is_done
    assert ledger(annotated(run, questions))["answered"] == 3


def test_without_a_key_no_header_is_sent_and_a_refusal_says_so(
    tmp_path: Path, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KA2L_ANNOTATOR_KEY")
    server.troubles[asked(range(1))[0].question] = ["status 401"]
    with pytest.raises(StageError, match=r"KA2L_ANNOTATOR_KEY is not set, so no key was sent"):
        annotated(open_run(tmp_path, "endpoint", url=server.url), asked(range(1)))
    assert "Authorization" not in server.headers[0]


KILLED = """
    from pathlib import Path
    import sys
    sys.path[:0] = {paths!r}
    from ka2l_ray.config import Config
    from ka2l_ray.dataflow.cluster import connect
    from test_annotate import annotated, asked, open_run

    connect(Config())
    annotated(open_run(Path({folder!r}), "endpoint", url={url!r}, concurrency=1), asked(range(10)))
"""


def test_a_killed_driver_asks_nothing_again(tmp_path: Path, server: ChatServer) -> None:
    """The server kills the driver on the sixth question, once the five replies before it are kept."""
    replies, killed = tmp_path / "r/annotation_cache", []
    arrived = []

    def kill(question: str) -> None:
        arrived.append(question)
        if len(arrived) == 6:
            deadline = time.monotonic() + 15
            while len(list(replies.glob("*.json"))) < 5 and time.monotonic() < deadline:
                time.sleep(0.01)
            os.kill(killed[0].pid, signal.SIGKILL)
            killed[0].wait()

    server.before = kill
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    script = textwrap.dedent(KILLED).format(paths=paths, folder=str(tmp_path), url=server.url)
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    killed.append(subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, text=True))
    try:
        _, said = killed[0].communicate(timeout=300)
    finally:
        killed[0].kill()
    assert killed[0].returncode == -signal.SIGKILL, said
    kept = {p.name for p in replies.glob("*.json")}
    assert len(kept) >= 5
    run = open_run(tmp_path, "endpoint", url=server.url, concurrency=1)
    table = annotated(run, asked(range(10)))
    assert sorted(table.read(["id"])["id"].to_pylist()) == [q.id for q in asked(range(10))]
    assert ledger(table)["paid"] == pytest.approx(10 * cost("Who wrote book q00?"))
    assert kept <= {p.name for p in replies.glob("*.json")}
    again = [q for q in dict.fromkeys(arrived[:5]) if server.asked[q] != 1]
    assert again == []


def test_people_answer_in_a_spreadsheet_and_the_round_continues(tmp_path: Path) -> None:
    run = open_run(tmp_path, "file")
    questions = [Asked("a", "Wie heißt der Fluß, der fließt?", [], "Flüsse"), *asked(range(3))]
    other = [asked(range(3))[1], Asked("b", "2 + 2 = ?", [], None)]
    with pytest.raises(Waiting) as first:
        annotated(run, questions)
    with pytest.raises(Waiting) as second:
        annotated(run, other, "random")
    assert [r["id"] for r in csv.DictReader(Path(second.value.csv).read_text("utf-8-sig").splitlines())] == ["b"], (
        "asked twice"
    )
    with pytest.raises(Waiting, match=r"2 questions wait for answers in the files of other rounds"):
        annotated(run, other, "coreset")
    folders = [run.round(strategy, 0, 1) / "annotations" for strategy in ("ka2l", "random")]
    assert [is_waiting(f) for f in folders] == [True, True]
    written = Path(first.value.csv).read_bytes()
    assert written.startswith(b"\xef\xbb\xbf")

    edited = edit(written.decode("utf-8-sig"), {"a": "Spree; auch „Sprewa“", "q01": " Ibsen ", "q02": "-"})
    Path(first.value.csv).write_bytes(edited.encode("cp1252"))
    with pytest.raises(Waiting):
        annotated(run, questions)
    assert Path(first.value.csv).read_bytes() == edited.encode("cp1252"), "what a person wrote was replaced"
    assert import_file(first.value.csv, folders) == {
        "rounds": 1,
        "waiting": 1,
        "answered": 2,
        "no_such_thing": 1,
        "blank": 1,
    }

    rows = annotated(run, questions).read().to_pylist()
    assert [(r["id"], r["answer"], r["status"], r["cost"]) for r in rows] == [
        ("a", "Spree; auch „Sprewa“", "answered", PRICE),
        ("q00", None, "blank", PRICE),
        ("q01", "Ibsen", "answered", PRICE),
        ("q02", None, "no_such_thing", PRICE),
    ]
    with pytest.raises(Waiting):
        annotated(run, other, "random")
    with pytest.raises(ConfigError, match="no round waits for answers"):
        import_file(first.value.csv, folders[:1])
    Path(second.value.csv).write_text("id,answer\nb,4\n")
    import_file(second.value.csv, folders)
    for strategy, cached in (("random", [True, False]), ("coreset", [True, True])):
        rows = annotated(run, other, strategy).read().to_pylist()
        assert [(r["answer"], r["cached"]) for r in rows] == list(zip(["Ibsen", "4"], cached, strict=True))


def edit(text: str, answers: dict[str, str]) -> str:
    """As a German spreadsheet saves it: columns and rows in another order, a column more, semicolons, CRLF."""
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    saved = io.StringIO(newline="")
    writer = csv.DictWriter(
        saved, ["answer", "Notiz", "group", "id", "question"], delimiter=";", restval="", lineterminator="\r\n"
    )
    writer.writeheader()
    writer.writerows(r | {"answer": answers.get(r["id"], "")} for r in reversed(rows))
    return saved.getvalue()


@pytest.mark.parametrize(
    ("source", "statuses"), [("world", ["no_such_thing"] * 2), ("reference", ["answered", "no_reference"])]
)
def test_the_annotators_without_a_wait_share_the_table(tmp_path: Path, source: str, statuses: list[str]) -> None:
    table = annotated(open_run(tmp_path, source), [Asked("a", "Who?", ["Ada"], None), Asked("b", "What?", [], None)])
    assert table.read(["status"])["status"].to_pylist() == statuses
    assert ledger(table)["paid"] == 2 * PRICE
