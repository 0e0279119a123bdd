"""Files that are not what they seem are refused before anything is loaded, with what to type."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ka2l_ray.config import ConfigError, ModelSection
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.models.loading import ASSETS, check_model, load_model
from ka2l_ray.models.weights import INDEX, check_weights

POINTER = """version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 12345
"""


def pointer(name: str) -> Callable[[Path], None]:
    return lambda folder: void((folder / name).write_text(POINTER))


def void(_: object) -> None:
    pass


def cut_to(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: void((folder / name).write_bytes((folder / name).read_bytes()[:size]))


def noise(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors at all")


def sharded(
    folder: Path, index: Callable[[dict[str, str]], object] = lambda places: {"metadata": {}, "weight_map": places}
) -> None:
    """The weights in two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {f"model-0000{n + 1}-of-00002.safetensors": names[n::2] for n in range(2)}
    for file, held in files.items():
        save_file({name: tensors[name] for name in held}, folder / file, metadata={"format": "pt"})
    places = {name: file for file, held in files.items() for name in held}
    (folder / INDEX).write_text(json.dumps(index(places)))


def first_half(places: dict[str, str]) -> object:
    return {"metadata": {}, "weight_map": {t: f for t, f in places.items() if "00001-of" in f}}


def with_a_tensor_too_many(places: dict[str, str]) -> object:
    return {"metadata": {}, "weight_map": places | {"model.another": "model-00001-of-00002.safetensors"}}


CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pointer": (pointer("model.safetensors"), r"an LFS pointer, not the file itself: model\.safetensors.*lfs pull"),
    "a tokenizer's": (pointer("tokenizer.json"), r"an LFS pointer, not the file itself: tokenizer\.json.*git lfs pull"),
    "a configuration's": (pointer("config.json"), r"an LFS pointer, not the file itself: config\.json.*git lfs pull"),
    "empty": (cut_to("model.safetensors", 0), r"model\.safetensors: 0 bytes; copy or download it again"),
    "an empty tokenizer": (cut_to("tokenizer.json", 0), r"tokenizer\.json: 0 bytes; copy or download it again"),
    "cut": (cut_to("model.safetensors", 500_000), r"model\.safetensors is cut short: 500,000 of [\d,]+ bytes; copy or"),
    "cut in its header": (cut_to("model.safetensors", 100), r"is cut short within its header \(100 bytes\)"),
    "noise": (noise, r"model\.safetensors is not a safetensors file"),
    "a cut index": (
        lambda folder: (sharded(folder), cut_to(INDEX, 200)(folder))[1],
        r"index\.json is cut short or no index; copy or download it again",
    ),
    "an index without its map": (
        lambda folder: sharded(folder, lambda places: {"metadata": {}, "weights": places}),
        r"index\.json is cut short or no index",
    ),
    "an index without what transformers reads": (
        lambda folder: sharded(folder, lambda places: {"weight_map": places}),
        r"index\.json is cut short or no index; copy or download it again \('metadata'\)",
    ),
    "an index of no file": (
        lambda folder: sharded(folder, lambda places: {"metadata": {}, "weight_map": {}}),
        r"names no file",
    ),
    "half an index": (
        lambda folder: sharded(folder, first_half),
        r"does not name model-00002-of-00002\.safetensors of its set",
    ),
    "an index of other weights": (
        lambda folder: sharded(folder, with_a_tensor_too_many),
        r"model-00001-of-00002\.safetensors lacks model\.another, which model\.safetensors\.index\.json names there",
    ),
    "a file of the set is gone": (
        lambda folder: (sharded(folder), (folder / "model-00002-of-00002.safetensors").unlink())[1],
        r"lacks model-00002-of-00002\.safetensors",
    ),
    "a file of the set is a pointer": (
        lambda folder: (sharded(folder), pointer("model-00002-of-00002.safetensors")(folder))[1],
        r"an LFS pointer, not the file itself: model-00002-of-00002\.safetensors",
    ),
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(ASSETS / "model", folder)
    return folder


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_damaged_files_are_refused_before_anything_is_loaded(
    case: tuple[Callable[[Path], None], str], place: Path
) -> None:
    damage, says = case
    damage(place)
    with pytest.raises(ConfigError, match=rf"model\.name_or_path = .*{says}") as raised:
        check_model(ModelSection(name_or_path=str(place)))
    assert str(raised.value).count("\n") == 0


def test_the_same_at_a_uri(bucket: str, place: Path) -> None:
    at_uri = Folder.of(bucket) / "m"
    cut_to("model.safetensors", 500_000)(place)
    at_uri.upload(place)
    with pytest.raises(ConfigError, match=r"model\.safetensors is cut short: 500,000 of"):
        check_model(ModelSection(name_or_path=at_uri.uri))
    pointer("model.safetensors")(place)
    at_uri.upload(place)
    with pytest.raises(ConfigError, match=r"an LFS pointer.*git lfs pull` in the clone, then upload it again"):
        check_model(ModelSection(name_or_path=at_uri.uri))


def test_whole_files_pass_in_one_file_or_several(place: Path) -> None:
    pointer("pytorch_model.bin")(place)  # of a clone whose owner has pulled the safetensors only
    check_model(ModelSection(name_or_path=str(place)))
    sharded(place)
    check_model(ModelSection(name_or_path=str(place)))
    found, shipped = (load_model(m).state_dict() for m in (ModelSection(name_or_path=str(place)), ModelSection()))
    assert all(torch.equal(found[name], shipped[name]) for name in shipped)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (pointer("adapter_model.safetensors"), r"an LFS pointer, not the file itself: adapter_model\.safetensors"),
        (cut_to("adapter_model.safetensors", -1), r"adapter_model\.safetensors is cut short: \d+ of \d+ bytes; copy"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), r"lacks adapter_model\.safetensors; weights"),
    ],
)
def test_an_adapters_files_are_checked_too(damage: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    save_file({"a": torch.zeros(4)}, tmp_path / "adapter_model.safetensors")
    check_weights(Folder.of(str(tmp_path)), "model.adapter")
    damage(tmp_path)
    with pytest.raises(ConfigError, match=rf"model\.adapter = .*{says}"):
        check_model(ModelSection(adapter=str(tmp_path)))
