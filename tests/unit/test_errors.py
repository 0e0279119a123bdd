"""Whose failure it is: exit status 2 for what the user can fix, 1 with type and place for what a library raised."""

import ast
import errno
import os
import pickle
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from finished_run import write_run

from ka2l_ray.cli.app import app
from ka2l_ray.cli.exits import plain_errors
from ka2l_ray.config import Config, ConfigError, ModelSection, SearchSection
from ka2l_ray.config.finetuning import LoraSection
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.entropy.semantic import semantic_entropy
from ka2l_ray.entropy.thresholds import otsu
from ka2l_ray.errors import StageError, UserError, names_a_library, without_type
from ka2l_ray.finetune.export import check_adapter
from ka2l_ray.finetune.job import Refusal
from ka2l_ray.models.loading import as_config_errors, check_model
from ka2l_ray.models.probe import LinearProbe
from ka2l_ray.planning.shapes import adapter_parameters
from ka2l_ray.probe.fit import ProbeRows, fit_probe

ROOT = Path(__file__).parents[2]
PLAIN = {
    "api.py": {"_opened", "_refuse"},  # a notebook shows tracebacks
    "active/outcome.py": {"_share"},
    "corpus/formats.py": {"first_option"},  # `corpus.table` names the file
    "decode/decoders.py": {"card_at"},  # `pipeline.checks` names the folder
    "decode/metrics.py": {"reconstruction"},
    "decode/states.py": {"decode_states"},
    "entropy/adaptive.py": {"entropy_bounds"},
    "entropy/semantic.py": {"semantic_entropy"},
    "models/activations.py": {"capture"},  # layers that a stage has checked
    "models/loading.py": {"_set_depth"},  # layers that a probe was fitted on
    "models/probe.py": {"score_states"},
    "models/prompts.py": {"encode"},  # questions made for training
    "probe/fit.py": {"fit_probe"},
}
"""Functions that raise a plain error: for a bug in this package, or one that the caller turns into another error."""


def shown(act: Callable[[], object], capsys: pytest.CaptureFixture[str], debug: bool = False) -> tuple[int, str]:
    """Exit status and what a command prints where `act` is what it does."""
    with pytest.raises(SystemExit) as ended, plain_errors(debug):
        act()
    return int(ended.value.code or 0), capsys.readouterr().err


def fit_nan(folder: Path) -> None:
    rows = ProbeRows(np.tile([0.0, 2.0], 40), None, None, np.array([f"e{n}" for n in range(80)]))
    fit_probe(np.full((80, 2), np.nan), rows, 1.0, SearchSection(), 0)


def read_broken_parquet(folder: Path) -> None:
    table = Table(Folder.of(str(folder / "table")))
    table.write((None, pa.table({"id": ["a"]})))
    Path(table.files()[0]).write_bytes(b"PAR1 and nothing else PAR1")
    table.read()


def broken_probe(folder: Path) -> Folder:
    (folder / "probe.safetensors").write_bytes(b"\0" * 100)
    return Folder.of(str(folder))


def check_broken_adapter(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"\0" * 100)
    check_adapter(folder, {})


def load_missing_probe(folder: Path) -> None:
    LinearProbe.load(Folder.of(str(folder)))


LIBRARIES: dict[str, tuple[Callable[[Path], None], str, str, str]] = {
    # name: (what is done, type, place in this package, library)
    "scikit-learn's ValueError": (fit_nan, "ValueError", "ka2l_ray.probe.fit", "sklearn."),
    "pyarrow's ArrowInvalid, a ValueError": (
        read_broken_parquet,
        "pyarrow.lib.ArrowInvalid",
        "ka2l_ray.dataflow.parquet",
        "pyarrow.",
    ),
    "safetensors' own": (
        check_broken_adapter,
        "safetensors._safetensors_rust.SafetensorError",
        "ka2l_ray.finetune.export",
        "safetensors.",
    ),
    "pyarrow's FileNotFoundError": (
        load_missing_probe,
        "FileNotFoundError",
        "ka2l_ray.dataflow.storage",
        "pyarrow.",
    ),
}


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("case", LIBRARIES.values(), ids=LIBRARIES)
def test_an_error_of_a_library_is_internal_with_its_type_and_place(
    case: tuple[Callable[[Path], None], str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    act, kind, own, library = case
    status, err = shown(lambda: act(tmp_path), capsys)
    assert status == 1, err
    assert len(err.splitlines()) == 1
    assert err.startswith(f"ka2l: internal error: {kind}: ")
    assert re.search(rf"\(in {re.escape(own)}:\d+, raised in {re.escape(library)}", err), err
    assert "run again with --debug" in err


MISTAKES: dict[str, Callable[[Path], object]] = {
    "no threshold": lambda _: otsu(Counter({0.5: 9})),
    "a table that is not finished": lambda folder: Table(Folder.of(str(folder))).rows,
    "a file of a table that is gone": lambda folder: deleted(folder).read(),
    "its schema": lambda folder: deleted(folder).schema(),
    "its batches": lambda folder: list(deleted(folder).batches()),
    "a book of the run that is gone": lambda folder: (Folder.of(str(folder)) / "gamma.json").read_json(),
    "a probe that is none": lambda folder: LinearProbe.load(broken_probe(folder)),
    "a model that is none": lambda folder: check_model(model_without_weights(folder)),
    "a LoRA target": lambda _: adapter_parameters(Config().model, LoraSection(targets=("nope",))),
}


def deleted(folder: Path) -> Table:
    table = Table(Folder.of(str(folder / "table")))
    table.write((None, pa.table({"id": ["a"]})))
    Path(table.files()[0]).unlink()
    return table


def model_without_weights(folder: Path) -> ModelSection:
    for file in (ROOT / "ka2l_ray/world/assets/model").iterdir():
        if not file.name.endswith(".safetensors"):
            (folder / file.name).symlink_to(file)
    return ModelSection(name_or_path=str(folder))


@pytest.mark.parametrize("act", MISTAKES.values(), ids=MISTAKES)
def test_what_the_user_can_fix_is_one_line_and_status_2(
    act: Callable[[Path], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, err = shown(lambda: act(tmp_path), capsys)
    assert (status, len(err.splitlines())) == (2, 1), err
    assert "internal" not in err
    assert not re.match(r"ka2l: \w+Error", err)


@pytest.mark.parametrize(("act", "status"), [(read_broken_parquet, 1), (MISTAKES["no threshold"], 2)])
def test_debug_shows_the_traceback_before_the_same_line_and_status(
    act: Callable[[Path], object], status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, plain = shown(lambda: act(tmp_path), capsys)
    code, err = shown(lambda: act(tmp_path), capsys, debug=True)
    assert code == status
    assert err.startswith("Traceback (most recent call last)")
    assert err.endswith(plain)


def test_a_full_disk_is_for_the_user_to_fix_wherever_it_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    def act() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    status, err = shown(act, capsys)
    assert status == 2
    assert "Free some space" in err


def test_a_command_on_a_broken_run_says_where_it_broke(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path)
    for file in run.base("knowledge").files():
        Path(file).write_bytes(b"PAR1 and nothing else PAR1")
    with pytest.raises(SystemExit) as ended:
        app(["report", run.folder.path])
    assert ended.value.code == 1
    assert "internal error: pyarrow.lib.ArrowInvalid: " in capsys.readouterr().err


def test_what_a_library_says_of_a_model_is_named_as_its_words() -> None:
    with pytest.raises(ConfigError, match=r"^model\.name_or_path = 'no such': OSError of transformers: "):
        check_named(ModelSection(name_or_path="no such"))


def check_named(model: ModelSection) -> None:
    with as_config_errors(model):
        check_model(model)


def test_a_mistake_of_this_package_is_not_blamed_on_the_model() -> None:
    with pytest.raises(ValueError, match="at least one answer") as raised, as_config_errors(ModelSection()):
        semantic_entropy([])
    assert not isinstance(raised.value, UserError)


@pytest.mark.parametrize("error", [ConfigError("a"), StageError("a"), Refusal("a")])
def test_every_error_of_ours_is_the_users_and_travels(error: UserError) -> None:
    assert isinstance(error, UserError)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), "a")


@pytest.mark.parametrize(
    ("line", "library", "said"),
    [
        ("ka2l_ray.errors.ConfigError: the tokenizer has no end token", False, "the tokenizer has no end token"),
        ("ValueError: Input X contains NaN.", True, "ValueError: Input X contains NaN."),
        ("torch.OutOfMemoryError: CUDA out of memory", True, "torch.OutOfMemoryError: CUDA out of memory"),
        ("ray.exceptions.ActorDiedError: gone", False, "ray.exceptions.ActorDiedError: gone"),
        ("The node was lost", False, "The node was lost"),
    ],
)
def test_a_last_line_tells_whose_error_it_is(line: str, library: bool, said: str) -> None:
    assert (names_a_library(line), without_type(line)) == (library, said)


def raised_plainly(file: Path) -> set[str]:
    """Functions of a file that raise an error class of Python's own."""
    kinds = {
        "ValueError",
        "FileNotFoundError",
        "KeyError",
        "RuntimeError",
        "ImportError",
        "OSError",
        "PermissionError",
        "TypeError",
        "Exception",
    }
    found: set[str] = set()

    def walk(node: ast.AST, function: str) -> None:
        for child in ast.iter_child_nodes(node):
            if (
                isinstance(child, ast.Raise)
                and isinstance(child.exc, ast.Call)
                and getattr(child.exc.func, "id", "") in kinds
            ):
                found.add(function)
            walk(child, child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function)

    walk(ast.parse(file.read_text(encoding="utf-8")), "")
    return found


def test_only_these_functions_raise_an_error_that_is_not_ours() -> None:
    """Validators of the configuration may too: pydantic collects what they raise, for `parse_config` to report."""
    files = {str(f.relative_to(ROOT / "ka2l_ray")): raised_plainly(f) for f in (ROOT / "ka2l_ray").rglob("*.py")}
    assert {name: found for name, found in files.items() if found and not name.startswith("config/")} == PLAIN
