"""No artefact is unpickled: a pickle under the name of anything that this package reads leaves its mark nowhere.

Columns of Ray Data's pickled type need Ray, which registers it: tests/ray/test_pickled_columns.py.
"""

import ast
import json
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pickle_trap import Trap
from safetensors import SafetensorError
from test_boundaries import ROOT, imported, sources

from ka2l_ray.annotate.file import answers_in, asked_in, read_answers
from ka2l_ray.config import ConfigError, HubSection, ModelSection, load_config
from ka2l_ray.corpus.files import files_of
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import FORMAT, Run
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.decode.model import StateDecoder
from ka2l_ray.errors import StageError
from ka2l_ray.finetune.checkpoints import is_complete
from ka2l_ray.models.loading import ASSETS, as_config_errors, check_model, load_blocks, load_model, load_tokenizer
from ka2l_ray.models.probe import LinearProbe

WEIGHTS = ("pytorch_model.bin", "model.bin", "model.pt", "model.pth", "consolidated.00.pth", "training_args.bin")
FORBIDDEN = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "ray.cloudpickle"}
"""Modules whose loaders run what they read."""
UNSAFE = {"torch.load", "np.load", "numpy.load", "yaml.load", "pd.read_pickle", "eval", "exec"}
"""Calls that do, or may; `yaml.load` is allowed where its loader is a safe one."""


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path / "mark")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def test_the_trap_works(trap: Trap, place: Path) -> None:
    pickle.loads(trap.pickled)
    assert trap.is_sprung
    trap.mark.rmdir()
    torch.save(trap, place / "model.pt")
    torch.load(place / "model.pt", weights_only=False)
    assert trap.is_sprung


def probe(place: Path) -> object:
    return LinearProbe.load(place)


def decoder(place: Path) -> object:
    return StateDecoder.load(place)


def run(place: Path) -> object:
    return Run.existing(str(place))


def whole_run(place: Path) -> None:
    (place / "config.yaml").write_text("run: {name: r}\n")
    (place / "format.json").write_text(json.dumps({"format": FORMAT, "written_by": "a test"}))


def copy_of_decoder(place: Path) -> None:
    shutil.copy(ASSETS / "decoder/decoder.json", place)
    shutil.copy(ASSETS / "decoder/decoder.safetensors", place)


def table_of_one_row(place: Path) -> None:
    Table(Folder.of(str(place))).write((None, pa.table({"id": ["a"]})))


def rows_of(name: str) -> Callable[[Path], object]:
    return lambda place: [row.values for file in files_of(str(place / name), HubSection()) for row in file.rows()]


Case = tuple[str, Callable[[Path], None] | None, Callable[[Path], object], type[Exception], str]
CASES: dict[str, Case] = {
    # name: (file that is a pickle, what is there besides, what reads it, its error, what that says)
    "probe": ("probe.safetensors", None, probe, StageError, r"probe\.safetensors: is not a safetensors file"),
    "decoder": (
        "decoder.safetensors",
        copy_of_decoder,
        decoder,
        ConfigError,
        r"decoder\.safetensors is not a safetensors file, and no other kind is read",
    ),
    "a decoder's card": ("decoder.json", copy_of_decoder, decoder, ValueError, "can't decode byte"),
    "manifest": (
        "manifest.json",
        None,
        lambda place: Table(Folder.of(str(place))).rows,
        StageError,
        r"manifest\.json: is not valid JSON",
    ),
    "reply": (
        "0123.json",
        None,
        lambda place: (Folder.of(str(place)) / "0123.json").read_json(),
        StageError,
        r"0123\.json: is not valid JSON",
    ),
    "format of a run": ("format.json", whole_run, run, ConfigError, r"format\.json: does not say which format"),
    "configuration of a run": ("config.yaml", whole_run, run, ConfigError, r"config\.yaml"),
    "questions for people": (
        "asked.json",
        None,
        lambda place: asked_in(Folder.of(str(place))),
        StageError,
        r"asked\.json: is not valid JSON",
    ),
    "imported answers": (
        "answers.jsonl",
        None,
        lambda place: answers_in(Folder.of(str(place))),
        ValueError,
        "can't decode byte",
    ),
    "answered spreadsheet": (
        "answered.csv",
        None,
        lambda place: read_answers(place / "answered.csv"),
        ConfigError,
        r"answered\.csv",
    ),
    "corpus as Parquet": ("q.parquet", None, rows_of("q.parquet"), ConfigError, r"q\.parquet: cannot be read"),
    "corpus as JSON": ("q.json", None, rows_of("q.json"), ConfigError, r"q\.json: .* is not UTF-8"),
    "corpus as a pickle": ("q.pkl", None, rows_of("q.pkl"), ConfigError, "no such folder, and neither"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_pickle_in_place_of_an_artefact_is_an_error(case: Case, trap: Trap, place: Path) -> None:
    name, besides, read, error, says = case
    if besides:
        besides(place)
    (place / name).write_bytes(trap.pickled)
    with pytest.raises(error, match=says):
        read(place)
    assert not trap.is_sprung


def test_a_pickle_in_place_of_a_tables_file_is_an_error(trap: Trap, place: Path) -> None:
    table_of_one_row(place)
    table = Table(Folder.of(str(place)))
    Path(table.files()[0]).write_bytes(trap.pickled)
    for read in (table.read, table.schema, lambda: list(table.batches())):
        with pytest.raises(pa.ArrowInvalid, match="magic bytes"):
            read()
    assert not trap.is_sprung


def test_a_checkpoint_of_pickles_does_not_count(trap: Trap, place: Path) -> None:
    (place / "rank_000.json").write_text("{}")
    (place / "rank_000.safetensors").write_bytes(trap.pickled)
    assert not is_complete(place, 1)
    torch.save(trap, place / "rank_000.safetensors")
    assert not is_complete(place, 1)
    assert not trap.is_sprung


def test_yaml_that_names_python_is_refused(trap: Trap, place: Path) -> None:
    file = place / "config.yaml"
    file.write_text(f"run: !!python/object/apply:os.mkdir ['{trap.mark}']\n")
    with pytest.raises(ConfigError, match=r"python/object"):
        load_config(file)
    with pytest.raises(ConfigError, match=r"python/object"):
        load_config(ROOT / "jobs/configs/smoke.yaml", [f"run=!!python/object/apply:os.mkdir ['{trap.mark}']"])
    assert not trap.is_sprung


def world_model(place: Path, weights: bool) -> ModelSection:
    for file in (ASSETS / "model").iterdir():
        if weights or file.suffix != ".safetensors":
            shutil.copy(file, place)
    return ModelSection(name_or_path=str(place))


def plant(trap: Trap, file: Path, archive: bool) -> None:
    """A pickle as `torch.load` reads it: a bare one, or torch's own archive of one."""
    if archive:
        torch.save({"weight": trap}, file)
    else:
        file.write_bytes(trap.pickled)


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_model_of_pickles_is_refused(name: str, archive: bool, trap: Trap, place: Path) -> None:
    model = world_model(place, weights=False)
    plant(trap, place / name, archive)
    with pytest.raises(ConfigError, match=r"lacks model\.safetensors; weights are read from safetensors only"):
        check_model(model)
    for load in (load_model, lambda m: load_blocks(m, 2)):
        with pytest.raises(ConfigError, match=r"safetensors"), as_config_errors(model):
            load(model)
    assert not trap.is_sprung


def test_pickles_beside_a_models_weights_are_ignored(trap: Trap, place: Path) -> None:
    model = world_model(place, weights=True)
    others = ("scheduler.pt", "optimizer.pt", "rng_state.pth", "vocab.pkl", "adapter_model.bin", "spiece.model")
    for number, name in enumerate((*WEIGHTS, *others)):
        plant(trap, place / name, bool(number % 2))
    check_model(model)
    load_tokenizer(model)
    found, shipped = load_model(model).state_dict(), load_model(ModelSection()).state_dict()
    assert found.keys() == shipped.keys()
    assert all(torch.equal(found[name], shipped[name]) for name in shipped)
    load_blocks(model, 2)
    assert not trap.is_sprung


def test_a_pickle_named_like_safetensors_is_not_read(trap: Trap, place: Path) -> None:
    model = world_model(place, weights=False)
    (place / "model.safetensors").write_bytes(trap.pickled)
    for load in (load_model, lambda m: load_blocks(m, 2)):
        with pytest.raises((SafetensorError, OSError)):
            load(model)
    assert not trap.is_sprung


def test_an_index_of_weights_may_name_safetensors_only(trap: Trap, place: Path) -> None:
    model = world_model(place, weights=True)
    plant(trap, place / "pytorch_model-00001.bin", archive=True)
    index = {"metadata": {}, "weight_map": dict.fromkeys(("model.norm.weight", "x"), "pytorch_model-00001.bin")}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    (place / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"its index names pytorch_model-00001\.bin; weights are read"):
        check_model(model)
    with suppress(Exception):
        load_model(model)
    assert not trap.is_sprung


def test_a_model_folder_that_is_an_adapter_of_pickles_leaves_no_mark(trap: Trap, place: Path) -> None:
    """Hugging Face would look for the base model that the adapter names, and read the adapter."""
    model = world_model(place, weights=True)
    plant(trap, place / "adapter_model.bin", archive=True)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(ASSETS / "model"),
        "r": 2,
        "target_modules": ["q_proj"],
    }
    (place / "adapter_config.json").write_text(json.dumps(config))
    with suppress(Exception):
        load_model(model)
    with pytest.raises(ConfigError, match=r"no adapter_model\.safetensors; pickle files are not read"):
        load_model(ModelSection(adapter=str(place)))
    assert not trap.is_sprung


@pytest.mark.parametrize("nested", [False, True])
def test_a_column_of_a_type_that_python_defines_is_not_read(nested: bool, trap: Trap, place: Path) -> None:
    """Here no class is registered for the type, so it could be read; where Ray Data runs it would be unpickled."""
    kind = pa.large_binary()
    marked = pa.field("question", kind, metadata={"ARROW:extension:name": "ray.data.arrow_pickled_object"})
    values = pa.array([trap.pickled], kind)
    if nested:
        inner = marked.with_name("text")
        marked, values = pa.field("question", pa.struct([inner])), pa.StructArray.from_arrays([values], fields=[inner])
    table = pa.Table.from_arrays([values, pa.array(["a"])], schema=pa.schema([marked, pa.field("id", pa.string())]))
    pq.write_table(table, place / "q.parquet")
    message = (
        r"q\.parquet: column 'question' has the type 'ray\.data\.arrow_pickled_object', whose values may be pickles"
    )
    (file,) = files_of(str(place / "q.parquet"), HubSection())
    with pytest.raises(ConfigError, match=message):
        list(file.rows(["question"]))
    assert [row.values for row in file.rows(["id"])] == [{"id": "a"}], "a column that is not read does no harm"
    made = Table(Folder.of(str(place)))
    made.close([{"name": "q.parquet", "rows": 1}])
    for read in (made.read, made.schema, lambda: list(made.batches(["question"]))):
        with pytest.raises(ConfigError, match=message):
            read()


def test_pyarrows_own_types_are_read(place: Path) -> None:
    values = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1}']))
    pq.write_table(pa.table({"question": values}), place / "q.parquet")
    (file,) = files_of(str(place / "q.parquet"), HubSection())
    assert [row.values for row in file.rows(["question"])] == [{"question": '{"a": 1}'}]


def called(node: ast.AST) -> str:
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def test_nothing_in_the_package_reads_a_pickle_and_one_file_opens_parquet() -> None:
    files = sources("ka2l_ray", "jobs")
    assert [(f, n) for f in files for n in imported(f) & FORBIDDEN] == []
    opening, unsafe = [], []
    for file in files:
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            if (name := called(node)) in ("pq.ParquetFile", "pq.read_table", "ray.data.read_parquet"):
                opening.append(file)
            elif name in UNSAFE and "_Loader" not in ast.unparse(node):
                unsafe.append(f"{file}: {ast.unparse(node)}")
    assert opening == ["ka2l_ray/dataflow/parquet.py"]
    assert unsafe == []
