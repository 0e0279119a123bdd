"""Everything a user can get wrong in their input: each mistake ends in one clear line, or in a row that is counted.

All are found before Ray starts and before any weights are read, by the commands that a user types, in this process.
"""

import bz2
import gzip
import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import ka2l

from ka2l_ray.cli.app import app
from ka2l_ray.dataflow.runs import FORMAT

ROOT = Path(__file__).parents[2]
SMOKE = str(ROOT / "jobs/configs/smoke.yaml")
GOOD = [
    {"question": f"Which river crosses {hashlib.sha256(str(n).encode()).hexdigest()[:30]}?", "answers": [f"River {n}"]}
    for n in range(60)
]
"""Questions that are not alike: those that are stand in one split together."""
Maker = Callable[[Path], object]


def jsonl(*rows: Any, good: int = 60) -> Maker:
    """Good rows, then these: values as JSON, bytes as they are."""
    lines = [json.dumps(r).encode() for r in GOOD[:good]] + [
        r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows
    ]
    return lambda folder: (folder / "q.jsonl").write_bytes(b"\n".join(lines) + b"\n")


def raw(name: str, data: bytes) -> Maker:
    return lambda folder: (folder / name).write_bytes(data)


def parquet(columns: dict[str, Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def parquet_of(names: list[str]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays([pa.array([n]) for n in names], names=names), sink)
    return sink.getvalue().to_pybytes()


WHOLE = parquet({"question": [r["question"] for r in GOOD], "answers": [r["answers"] for r in GOOD]})
MCQ = {"question": "Which bone is longest?", "opa": "Femur", "opb": "Tibia", "opc": "Ulna", "opd": "Radius", "cop": 1}


def others(n: int) -> dict[str, str]:
    """Options that make a question unlike the rest."""
    return {f"op{c}": f"{n * 7919 * (i + 1)} {c * 9}" for i, c in enumerate("abcd")}


CSV = "question,answers\n" + "".join(f"{r['question']},{r['answers'][0]}\n" for r in GOOD)
STRICT = ["run.max_error_fraction=0"]

REFUSED: dict[str, tuple[Maker, str, list[str], str]] = {
    # name: (files, corpus.source, --set, what the one line says)
    "no such file": (raw("x", b""), "no.jsonl", [], "no such file"),
    "no file for the pattern": (raw("x", b""), "*.jsonl", [], "no such file"),
    "unknown ending": (
        raw("q.xlsx", b"PK"),
        "q.xlsx",
        [],
        "no such folder, and neither `world`, `wikifacts`, a file that ends in .jsonl",
    ),
    "a folder without questions": (raw("notes.md", b"#"), ".", [], "the folder contains no file that ends in"),
    "the same file twice": (jsonl(), "[q.jsonl, q.jsonl]", [], "q.jsonl twice"),
    "no source at all": (jsonl(), "[]", [], "`corpus.source`"),
    "empty file": (raw("q.jsonl", b""), "q.jsonl", [], "contain(s) no row"),
    "only blank lines": (raw("q.jsonl", b"\n \n\r\n"), "q.jsonl", [], "contain(s) no row"),
    "header and nothing else": (raw("q.csv", b"question,answers\n"), "q.csv", [], "contain(s) no row"),
    "empty Parquet": (
        raw("q.parquet", parquet({"question": pa.array([], pa.string())})),
        "q.parquet",
        [],
        "contain(s) no row",
    ),
    "too few for three splits": (jsonl(good=3), "q.jsonl", [], "would be empty"),
    "missing column": (
        raw("q.jsonl", b'{"text": "Why?"}\n'),
        "q.jsonl",
        [],
        "row 1: no column question; there are text",
    ),
    "misnamed column": (
        jsonl(),
        "q.jsonl",
        ["corpus.question_column=Question"],
        "no column Question; there are question, answers",
    ),
    "another format's columns": (jsonl(), "q.jsonl", ["corpus.format=medmcqa"], "no column opa, opb, opc, opd"),
    "unknown format": (
        jsonl(),
        "q.jsonl",
        ["corpus.format=nq"],
        "`corpus.format` = 'nq': should be 'generic', 'nq_open'",
    ),
    "column named twice": (
        raw("q.csv", b"question,answers,question\na,b,c\n"),
        "q.csv",
        [],
        "the header names 'question' twice",
    ),
    "column named twice in Parquet": (
        raw("q.parquet", parquet_of(["question", "answers", "answers"])),
        "q.parquet",
        [],
        "q.parquet: names the column(s) 'answers' twice",
    ),
    "member named twice in JSON": (
        raw("q.json", b'[{"question": "Why?", "question": "Who?"}]'),
        "q.json",
        [],
        "q.json: an object names 'question' twice",
    ),
    "a header in Latin-1": (
        raw("q.csv", b"question,r\xe9ponse\n" + b"a,b\n" * 60),
        "q.csv",
        [],
        "q.csv: header = 'r\\\\udce9ponse' (0xe9 at byte 2) is not UTF-8; if its file has another encoding, "
        "name that in corpus.encoding",
    ),
    "a column name of 10 MB": (
        raw("q.jsonl", json.dumps({"x" * 10_000_000: 1}).encode()),
        "q.jsonl",
        [],
        "row 1: no column question; there are 'xxx",
    ),
    "a JSON number": (raw("q.json", b"42"), "q.json", [], "q.json: must contain an array of JSON objects, not 42"),
    "a JSON null": (raw("q.json", b"null"), "q.json", [], "q.json: must contain an array of JSON objects, not None"),
    "a deep JSON nest": (raw("q.json", b"[" * 200_000), "q.json", [], "q.json: cannot be read as JSON"),
    "keys in the source": (jsonl(), "s3://me:secret@bucket/q.jsonl", [], "`corpus.source` = …: must contain no keys"),
    "keys in one of several sources": (
        jsonl(),
        "[q.jsonl, 's3://b/q.jsonl?secret_key=abc']",
        [],
        "`corpus.source` = …: must contain no keys",
    ),
    "doubled ids": (
        jsonl({"id": "a", "question": "One?"}, {"id": "a", "question": "Two?"}),
        "q.jsonl",
        [],
        "share the id 'a'; ids must differ",
    ),
    "truncated gzip": (
        raw("q.jsonl.gz", gzip.compress(CSV.encode() * 50)[:-20]),
        "q.jsonl.gz",
        [],
        "q.jsonl.gz: cannot be read",
    ),
    "gzip that is none": (raw("q.jsonl.gz", b'{"question": "Why?"}\n'), "q.jsonl.gz", [], "q.jsonl.gz: cannot be read"),
    "truncated bzip2": (
        raw("q.csv.bz2", bz2.compress(CSV.encode())[:-20]),
        "q.csv.bz2",
        [],
        "q.csv.bz2: cannot be read",
    ),
    "truncated Parquet": (raw("q.parquet", WHOLE[:-30]), "q.parquet", [], "q.parquet: cannot be read"),
    "Parquet broken inside": (
        raw("q.parquet", WHOLE[:40] + bytes(40) + WHOLE[80:]),
        "q.parquet",
        [],
        "q.parquet: cannot be read",
    ),
    "Parquet that is none": (raw("q.parquet", b"question\n"), "q.parquet", [], "q.parquet: cannot be read"),
    "UTF-16 cut short": (raw("q.csv", CSV.encode("utf-16")[:-1]), "q.csv", [], "q.csv: cannot be read"),
    "an encoding that nobody knows": (
        raw("q.csv", CSV.encode()),
        "q.csv",
        ["corpus.encoding=klingon"],
        "`corpus.encoding` = 'klingon': must be `auto` or an encoding",
    ),
    "JSON cut short": (raw("q.json", b'[{"question": "Why?"}, {"que'), "q.json", [], "q.json: is not JSON"),
    "JSON in Latin-1": (
        raw("q.json", '[{"question": "Où?"}]'.encode("latin-1")),
        "q.json",
        [],
        "name that in corpus.encoding",
    ),
    "JSON of another shape": (raw("q.json", b'{"data": [{"rows": 1}]}'), "q.json", [], "must be SQuAD's"),
    "an endless line": (raw("q.jsonl", b"x" * (65 * 2**20)), "q.jsonl", [], "exceeds 64 MiB"),
    "cop that fits both": (
        jsonl(*[MCQ | {"question": f"{n}?"} for n in range(9)], good=0),
        "q.jsonl",
        ["corpus.format=medmcqa"],
        "set corpus.medmcqa_first",
    ),
    "cop of five options": (
        jsonl(*[MCQ | {"cop": n, "question": f"{n}?"} for n in range(6)], good=0),
        "q.jsonl",
        ["corpus.format=medmcqa"],
        "cop takes the values 0, 1, 2",
    ),
    "a nested question": (
        jsonl({"question": {"text": "Why?"}}),
        "q.jsonl",
        STRICT,
        "q.jsonl: row 61: question = {'text': 'Why?'} must be non-empty text",
    ),
    "no solved examples": (
        raw("q.txt", b"".join(b"Question number %d, why?\n" % n for n in range(60))),
        "q.txt",
        ["corpus.prompt.style=fewshot"],
        "5 solved examples are wanted, the probe split has 0",
    ),
    "no chat template": (
        jsonl(),
        "q.jsonl",
        ["corpus.prompt.style=chat"],
        "the model's tokenizer has no chat template",
    ),
    "splits that do not add up": (jsonl(), "q.jsonl", ["corpus.split.probe=0.9"], "probe + pool + eval must be 1"),
    "template without a question": (
        jsonl(),
        "q.jsonl",
        ["corpus.prompt.template=Answer"],
        "must contain {question} exactly once",
    ),
    "unknown key": (
        jsonl(),
        "q.jsonl",
        ["corpus.sorce=x"],
        "`corpus.sorce` is not a known field; did you mean `source`?",
    ),
    "wrong type": (jsonl(), "q.jsonl", ["collect.samples=many"], "`collect.samples` = 'many'"),
}

DROPPED: dict[str, tuple[Maker, str, list[str], str]] = {
    # name: (files with 60 good rows, corpus.source, --set, how the dropped row is reported)
    "a row without a question": (
        jsonl({"answers": ["x"]}),
        "q.jsonl",
        [],
        "q.jsonl: row 61: question = None must be non-empty text",
    ),
    "a blank question": (
        jsonl({"question": " \t "}),
        "q.jsonl",
        [],
        "question = ' \\t ' must be non-empty text",
    ),
    "a null question": (jsonl({"question": None}), "q.jsonl", [], "question = None must be non-empty text"),
    "a numeric question": (jsonl({"question": 42}), "q.jsonl", [], "question = 42 must be non-empty text"),
    "a list of questions": (jsonl({"question": ["Why?"]}), "q.jsonl", [], "question = ['Why?'] must be non-empty text"),
    "nested answers": (
        jsonl({"question": "Why?", "answers": [{"x": 1}]}),
        "q.jsonl",
        [],
        "answers = {'x': 1} must be text, a number, or a list of these",
    ),
    "true as an answer": (jsonl({"question": "Why?", "answers": True}), "q.jsonl", [], "answers = True must be text"),
    "an id that is an object": (
        jsonl({"question": "Why?", "id": {"x": 1}}),
        "q.jsonl",
        [],
        "id = {'x': 1} must be text or a number",
    ),
    "a line that is not JSON": (
        jsonl(b"{question: why}"),
        "q.jsonl",
        [],
        "row 61: line = '{question: why}' "
        "(Expecting property name enclosed in double quotes at character 2) is not JSON",
    ),
    "a line that is a list": (jsonl(b'["Why?"]'), "q.jsonl", [], "line = '[\"Why?\"]' must be a JSON object"),
    "a line in Latin-1": (jsonl('{"question": "Où?"}'.encode("latin-1")), "q.jsonl", [], "is not UTF-8"),
    "a NUL byte": (jsonl(b'{"question": "Wh\\u0000y?"}'), "q.jsonl", [], "question contains a NUL character"),
    "a raw NUL byte": (jsonl(b'{"question": "Wh\0y?"}'), "q.jsonl", [], "is not JSON"),
    "half a surrogate pair": (
        jsonl(b'{"question": "Wh\\ud83dy?"}'),
        "q.jsonl",
        [],
        "question contains half of a surrogate pair",
    ),
    "a 10 MB cell": (
        jsonl({"question": "why " * 2_500_000}),
        "q.jsonl",
        [],
        "question = 10,000,000 characters must have at most 20,000 characters",
    ),
    "an essay as an answer": (
        jsonl({"question": "Why?", "answers": ["so " * 1000]}),
        "q.jsonl",
        [],
        "answers = 3,000 characters must have at most 2,000",
    ),
    "2,000 answers": (
        jsonl({"question": "Why?", "answers": [str(n) for n in range(2000)]}),
        "q.jsonl",
        [],
        "answers = 2,000 answers must be at most 1,000",
    ),
    "a member named twice": (
        jsonl(b'{"question": "Why?", "question": "Who?"}'),
        "q.jsonl",
        [],
        "row 61: line names 'question' twice",
    ),
    "a NUL byte in an id": (
        jsonl({"question": "Why?", "id": "a\0"}),
        "q.jsonl",
        [],
        "row 61: id contains a NUL character",
    ),
    "half a surrogate pair in a topic": (
        jsonl(b'{"question": "Why?", "group": "\\ud83d"}'),
        "q.jsonl",
        [],
        "row 61: group contains half of a surrogate pair",
    ),
    "a 10 MB id": (
        jsonl({"question": "Why?", "id": "x" * 10_000_000}),
        "q.jsonl",
        [],
        "id = 10,000,000 characters must have at most 500",
    ),
    "gold as numpy prints it": (
        jsonl({"question": "Why?", "answers": "['a' 'b']"}),
        "q.jsonl",
        [],
        "contains strings with no commas between them",
    ),
    "a quote that is not doubled": (
        raw("q.csv", (CSV + '"Why "so"?",x\n').encode()),
        "q.csv",
        [],
        "row 62: line is not valid CSV",
    ),
    "a deep nest": (jsonl(b"[" * 100_000), "q.jsonl", [], "is not JSON"),
    "a CSV row too short": (
        raw("q.csv", (CSV + "Why\n").encode()),
        "q.csv",
        [],
        "row 62: line = 1 fields must have the header's 2 fields",
    ),
    "a CSV row too long": (
        raw("q.csv", (CSV + "Why,a,b\n").encode()),
        "q.csv",
        [],
        "line = 3 fields must have the header's 2 fields",
    ),
    "a quote that is never closed": (
        raw("q.csv", (CSV + '"Why,so\n').encode()),
        "q.csv",
        [],
        "row 62: line opens a quote that is never closed; a quote inside quotes is written twice",
    ),
    "a CSV row in Latin-1": (
        raw("q.csv", CSV.encode() + "Où?,là\n".encode("latin-1")),
        "q.csv",
        [],
        "question = 'O\\\\udcf9?' (0xf9 at byte 2) is not UTF-8",
    ),
    "an option that is not there": (
        jsonl(
            *[MCQ | {"cop": n % 4 + 1, "question": GOOD[n]["question"]} | others(n) for n in range(60)],
            MCQ | {"cop": 7},
            good=0,
        ),
        "q.jsonl",
        ["corpus.format=medmcqa", "corpus.medmcqa_first=1"],
        "cop = 7 must name an option, 1 … 4",
    ),
    "metadata that is no dictionary": (
        jsonl(
            *[{"problem": r["question"], "answer": "x", "metadata": "{}"} for r in GOOD],
            {"problem": "Why?", "answer": "x", "metadata": "{"},
            good=0,
        ),
        "q.jsonl",
        ["corpus.format=simpleqa"],
        "metadata = '{' must be the text of a dictionary",
    ),
}

READ: dict[str, tuple[Maker, str, list[str], str]] = {
    # name: (files, corpus.source, --set, what the preview shows): odd, and right
    "a byte-order mark": (raw("q.csv", b"\xef\xbb\xbf" + CSV.encode()), "q.csv", [], "60 = 60 questions"),
    "a byte-order mark in JSONL": (
        raw(
            "q.jsonl",
            b"\xef\xbb\xbf"
            + json.dumps({"question": "Why?"}).encode()
            + b"\n"
            + b"\n".join(json.dumps(r).encode() for r in GOOD),
        ),
        "q.jsonl",
        [],
        "61 = 61 questions",
    ),
    "CRLF": (raw("q.csv", CSV.replace("\n", "\r\n").encode()), "q.csv", [], "60 = 60 questions"),
    "semicolons": (raw("q.csv", CSV.replace(",", ";").encode()), "q.csv", [], "60 of 60 questions have answers"),
    "tabs": (raw("q.tsv", CSV.replace(",", "\t").encode()), "q.tsv", [], "60 of 60 questions have answers"),
    "a line break inside quotes": (
        raw("q.csv", (CSV + '"Why,\nreally?",so\n').encode()),
        "q.csv",
        [],
        "61 = 61 questions",
    ),
    "right-to-left and emoji": (
        jsonl({"question": "מה בירת צרפת? 🗼", "answers": ["פריז"]}),
        "q.jsonl",
        [],
        "61 = 61 questions",
    ),
    "numeric answers": (
        jsonl({"question": "When?", "answers": 1969}, {"question": "How much?", "answers": [2.5, 3]}),
        "q.jsonl",
        [],
        "62 of 62 questions have answers",
    ),
    "no answers": (
        jsonl({"question": "When?", "answers": None}, {"question": "Who?"}),
        "q.jsonl",
        [],
        "60 of 62 questions have answers",
    ),
    "a null among answers": (
        jsonl({"question": "Why?", "answers": ["a", None]}),
        "q.jsonl",
        [],
        "61 of 61 questions have answers",
    ),
    "a question twice under one id": (
        jsonl(*[{"id": "a", "question": "Why is it so?", "answers": [a]} for a in ("x", "y")]),
        "q.jsonl",
        [],
        "61 questions + 1 merged",
    ),
    "equal questions": (
        jsonl({"question": f" {GOOD[0]['question'].upper()} ", "answers": ["Other"]}),
        "q.jsonl",
        [],
        "60 questions + 1 merged",
    ),
    "packed": (raw("q.csv.gz", gzip.compress(CSV.encode())), "q.csv.gz", [], "60 = 60 questions"),
    "a cell of JSON": (
        raw("q.csv", b"doc\n" + b"".join(b'"{""q"": {""text"": ""Why %d?""}}"\n' % n for n in range(60))),
        "q.csv",
        ["corpus.question_column=doc.q.text"],
        "60 = 60 questions",
    ),
    "JSON lines called .json": (
        raw("q.json", b"\n".join(json.dumps(r).encode() for r in GOOD)),
        "q.json",
        [],
        "60 = 60 questions",
    ),
    "gold as pandas writes it": (
        raw("q.csv", b"question,answers\n" + b"".join(b"Why %d?,\"['so %d', 'thus']\"\n" % (n, n) for n in range(60))),
        "q.csv",
        [],
        "its gold answers:\nso 0 | thus",
    ),
    "a first question without gold": (
        raw("q.txt", b"".join(b"Why %d?\n" % n for n in range(60))),
        "q.txt",
        [],
        "it has no gold answer",
    ),
    "a column whose name has dots": (
        raw("q.csv", b"doc.q,answers\n" + b"".join(b"Why %d?,so\n" % n for n in range(60))),
        "q.csv",
        ["corpus.question_column=doc.q"],
        "60 = 60 questions",
    ),
    "a name in brackets": (raw("q[1].csv", CSV.encode()), "q[1].csv", [], "60 = 60 questions"),
    "a bracket that is no JSON": (
        jsonl({"question": "Which?", "answers": "[sic] that one"}),
        "q.jsonl",
        [],
        "61 of 61 questions have answers",
    ),
}


def shown(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        app(list(arguments))
    out, err = capfd.readouterr()
    return int(ended.value.code or 0), out, err


def preview(
    make: Maker, source: str, overrides: list[str], folder: Path, capfd: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    make(folder)
    given = [part for o in (f"corpus.source={source}", *overrides) for part in ("--set", o)]
    return shown(capfd, "corpus", SMOKE, *given)


WORLD = ROOT / "ka2l_ray/world/assets/model"
YAML = "run: {name: r}\n"


def model(without: str = "", **config: Any) -> Maker:
    """The world's model in `./model`, without a file or with another `config.json`."""

    def make(folder: Path) -> None:
        shutil.copytree(WORLD, folder / "model")
        own = json.loads((WORLD / "config.json").read_text())
        (folder / "model/config.json").write_text(json.dumps(own | config))
        if without:
            (folder / "model" / without).unlink()

    return make


def run_folder(**files: str) -> Maker:
    """A folder `runs/smoke` with these files, `_` in a name for a dot, and a finished `questions` table."""

    def make(folder: Path) -> None:
        (folder / "runs/smoke/questions").mkdir(parents=True)
        (folder / "runs/smoke/questions/manifest.json").write_text("{}")
        begun = (
            {"format_json": json.dumps({"format": FORMAT, "written_by": "a test"})} if "config_yaml" in files else {}
        )
        for name, text in (begun | files).items():
            (folder / "runs/smoke" / name.replace("_", ".")).write_text(text)

    return make


def config_file(text: str) -> Maker:
    return lambda folder: (folder / "c.yaml").write_text(text)


NESTED = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
HERE = ["model.name_or_path=model"]
LONG = jsonl(*[{"question": " ".join(f"{n * m % 9973}" for m in range(1, 400)), "answers": ["x"]} for n in range(9)])

BEYOND_POOL = ["corpus.source=q.jsonl", "active.budget=21"]
RUNS: dict[str, tuple[Maker, list[str], list[str], str]] = {
    # name: (files, arguments of `ka2l run`, --set, what the one line says)
    "unknown model path": (
        jsonl(),
        [SMOKE, "--dry-run"],
        ["model.name_or_path=/no/such/model"],
        "model.name_or_path = '/no/such/model': no such folder",
    ),
    "a model without weights": (
        model("model.safetensors"),
        [SMOKE, "--dry-run"],
        HERE,
        "the folder lacks model.safetensors",
    ),
    "a model without its configuration": (model("config.json"), [SMOKE, "--dry-run"], HERE, "/model': "),
    "a model that is no causal one": (
        model(model_type="t5"),
        [SMOKE, "--dry-run"],
        HERE,
        "'t5' is not a causal language model",
    ),
    "a model of an unknown type": (model(model_type="nonsense"), [SMOKE, "--dry-run"], HERE, "/model': "),
    "another model's tokenizer": (
        model(vocab_size=100),
        [SMOKE, "--dry-run"],
        HERE,
        "tokens, the model 100; is it another model's tokenizer?",
    ),
    "a model without a tokenizer": (model("tokenizer.json"), [SMOKE, "--until", "questions"], HERE, "/model': "),
    "an adapter that is not there": (
        jsonl(),
        [SMOKE, "--dry-run"],
        ["model.adapter=/no/such/adapter"],
        "model.adapter = '/no/such/adapter'",
    ),
    "layers out of range": (
        jsonl(),
        [SMOKE, "--dry-run"],
        ["collect.layers=[2, 9]"],
        "world has layers 0 … 6, not [9]",
    ),
    "a budget beyond the pool": (
        jsonl(),
        [SMOKE, "--dry-run"],
        BEYOND_POOL,
        "active.budget = 21 exceeds the pool of 20 questions",
    ),
    "prompts beyond the context": (
        LONG,
        [SMOKE, "--dry-run"],
        ["corpus.source=q.jsonl", "active.budget=2"],
        "9 of 69 prompts",
    ),
    "a comparison with the truth where none is": (
        jsonl(),
        [SMOKE, "--dry-run"],
        ["corpus.source=q.jsonl", "active.strategies=[oracle]"],
        "needs corpus.source = world",
    ),
    "a storage that cannot be written": (
        jsonl(),
        [SMOKE, "--until", "questions"],
        ["run.storage=/proc/nobody"],
        "run.storage = '/proc/nobody': cannot be written",
    ),
    "a storage of unknown kind": (
        jsonl(),
        [SMOKE, "--until", "questions"],
        ["run.storage=ftp://host/runs"],
        "run.storage",
    ),
    "no Ray cluster at the address, for a plan": (
        jsonl(),
        [SMOKE, "--dry-run"],
        ["ray.address=127.0.0.1:1"],
        "ray.address = '127.0.0.1:1': no Ray cluster answers there",
    ),
    "no Ray cluster at the address": (
        jsonl(),
        [SMOKE, "--until", "questions"],
        ["ray.address=127.0.0.1:1"],
        "ray.address = '127.0.0.1:1': no Ray cluster answers there",
    ),
    "a cluster's address without a port": (
        jsonl(),
        [SMOKE, "--dry-run"],
        ["ray.address=127.0.0.1:ray"],
        "ray.address = '127.0.0.1:ray': no Ray cluster answers there",
    ),
    "keys in the adapter": (
        jsonl(),
        [SMOKE, "--dry-run"],
        ["model.adapter=s3://me:secret@bucket/x"],
        "`model.adapter` = …: must contain no keys",
    ),
    "keys in the storage": (
        jsonl(),
        [SMOKE, "--dry-run"],
        ["run.storage=s3://me:secret@bucket/x"],
        "must contain no keys",
    ),
    "another program's folder": (
        run_folder(notes_txt="mine"),
        [SMOKE, "--until", "questions"],
        [],
        "is not empty and has no config.yaml",
    ),
    "a run of another configuration": (
        run_folder(config_yaml="collect: {samples: 5}\n"),
        [SMOKE, "--until", "questions"],
        [],
        "collect.samples: 5 → 10",
    ),
    "a run folder's broken configuration": (
        run_folder(config_yaml="run: [\n"),
        [SMOKE, "--until", "questions"],
        [],
        "config.yaml: is not YAML",
    ),
    "no such configuration": (jsonl(), ["no.yaml", "--dry-run"], [], "no.yaml: cannot be read"),
    "a configuration that is a list": (
        config_file("- run\n"),
        ["c.yaml", "--dry-run"],
        [],
        "must contain sections such as `run:`",
    ),
    "broken YAML": (config_file("run: {name: r\n"), ["c.yaml", "--dry-run"], [], "c.yaml: is not YAML"),
    "cyclic YAML": (
        config_file(YAML + "corpus: &c {world: *c}\n"),
        ["c.yaml", "--dry-run"],
        [],
        "c.yaml: its aliases expand to more than 100,000 values, or refer to themselves",
    ),
    "YAML that swells": (
        config_file(NESTED),
        ["c.yaml", "--dry-run"],
        [],
        "c.yaml: its aliases expand to more than 100,000 values, or refer to themselves",
    ),
    "huge YAML": (
        config_file(YAML + "# " + "x" * 2_000_000),
        ["c.yaml", "--dry-run"],
        [],
        "c.yaml: 2,000,017 bytes; a configuration has at most 1,000,000",
    ),
    "binary YAML": (
        lambda folder: (folder / "c.yaml").write_bytes(b"\xff\xfe\x00"),
        ["c.yaml", "--dry-run"],
        [],
        "c.yaml: cannot be read",
    ),
    "code in YAML": (
        config_file("run: !!python/object/apply:os.getcwd []\n"),
        ["c.yaml", "--dry-run"],
        [],
        "c.yaml: is not YAML",
    ),
    "a key given twice over": (config_file("run: {name: a, name: b}\n"), ["c.yaml", "--dry-run"], [], "`name` twice"),
    "an unknown stage": (jsonl(), [SMOKE, "--until", "colect"], [], "no stage 'colect'; stages are questions, collect"),
    "a pool that is upside down": (jsonl(), [SMOKE, "--dry-run"], ["collect.pool={min: 4, max: 2}"], "max"),
    "a batch that workers cannot share": (
        jsonl(),
        [SMOKE, "--dry-run"],
        ["finetune.batch_rows=7"],
        "batch_rows (7) must be a multiple of workers",
    ),
    "an override of a value as a section": (
        jsonl(),
        [SMOKE, "--dry-run", "--set", "run.name.x=1"],
        [],
        "is a value, not a section",
    ),
    "an override without a value": (
        jsonl(),
        [SMOKE, "--dry-run", "--set", "run.name"],
        [],
        "must look like section.field=value",
    ),
}


@pytest.mark.parametrize("case", RUNS.values(), ids=RUNS)
def test_a_run_that_cannot_work_is_refused_before_it_starts(
    case: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make, arguments, overrides, says = case
    make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, _, err = shown(capfd, "run", *arguments, *(part for o in overrides for part in ("--set", o)))
    assert code == 2, err
    (line,) = [line for line in err.splitlines() if line.startswith("ka2l: ")]
    assert says in line
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before, "something was written"


def test_a_budget_beyond_the_pool_ends_a_run_before_a_model_loads(tmp_path: Path) -> None:
    """Rows and splits are known once the corpus is read, so this one needs Ray: it is a command of its own."""
    jsonl()(tmp_path)
    given = [f"run.storage={tmp_path}/runs", f"corpus.source={tmp_path}/q.jsonl", "active.budget=21"]
    done = ka2l("run", SMOKE, *(part for o in given for part in ("--set", o)))
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("ka2l: ")]
    assert (
        line == "ka2l: active.budget = 21 exceeds the pool of 20 questions; buy fewer, or give corpus.split.pool more"
    )
    assert not list(tmp_path.glob("runs/smoke/*/"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(logging, "raiseExceptions", False)  # a library's handler may hold the stream of an earlier test


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(
    case: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make, source, overrides, says = case
    code, _, err = preview(make, source, overrides, tmp_path, capfd)
    assert code == 2, err
    (line,) = [line for line in err.splitlines() if line.startswith("ka2l: ")]
    assert says in line
    assert "Traceback" not in err


@pytest.mark.parametrize("case", DROPPED.values(), ids=DROPPED)
def test_a_bad_row_is_dropped_and_named(case: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make, source, overrides, says = case
    code, out, err = preview(make, source, ["run.max_error_fraction=0.05", *overrides], tmp_path, capfd)
    assert code == 0, err
    assert "61 = 60 questions + 0 merged with an equal one + 1 dropped" in out
    assert says in out
    code, _, err = preview(make, source, ["run.max_error_fraction=0", *overrides], tmp_path, capfd)
    assert code == 2
    assert "1 of 61 rows cannot be used, more than run.max_error_fraction allows (0). First: " in err
    assert says in err


@pytest.mark.parametrize("case", READ.values(), ids=READ)
def test_what_is_odd_but_right_is_read(case: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make, source, overrides, says = case
    code, out, err = preview(make, source, overrides, tmp_path, capfd)
    assert code == 0, err
    assert says in out
