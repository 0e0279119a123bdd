"""A model that cannot be used ends `ka2l run`, its dry run and `ka2l doctor` with one line, before any node is asked
for: the cluster that is named here does not exist, and is not reported missing."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from model_hub import ModelHub

from ka2l_ray.cli import doctor
from ka2l_ray.cli.app import app
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.models.loading import ASSETS

SMOKE = str(Path(__file__).parents[2] / "jobs/configs/smoke.yaml")
ID, TOKEN = "someone/gated-world", "hf_right"
Bucket = Callable[[], str]
"""Starts one; most cases need none."""
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    with ModelHub(ID, ASSETS / "model", TOKEN).running() as running:
        running.is_asked(monkeypatch)
        yield running


def clone(folder: Path) -> Path:
    shutil.copytree(ASSETS / "model", folder / "clone")
    (folder / "clone/model.safetensors").write_text(POINTER)
    return folder / "clone"


def cut(folder: Path) -> Path:
    shutil.copytree(ASSETS / "model", folder / "cut")
    weights = folder / "cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    return folder / "cut"


def uploaded(bucket: Bucket, folder: Path) -> str:
    target = Folder.of(bucket()) / "clone"
    target.upload(clone(folder))
    return target.uri


Case = tuple[Callable[[Path, Bucket], str], str, str | None, str]
CASES: dict[str, Case] = {
    # name: (model.name_or_path, HF_TOKEN, model.revision, what is said)
    "gated": (lambda folder, bucket: ID, "", None, "is gated, and there is no token: accept its conditions at http"),
    "absent": (lambda folder, bucket: "someone/none", TOKEN, None, "has no such model, or it is private"),
    "no such revision": (lambda folder, bucket: ID, TOKEN, "v9", "has no revision 'v9' of it"),
    "a clone without git-lfs": (
        lambda folder, bucket: str(clone(folder)),
        TOKEN,
        None,
        "an LFS pointer, not the file itself: model.safetensors. Type `git lfs install` and `git lfs pull`",
    ),
    "cut": (lambda folder, bucket: str(cut(folder)), TOKEN, None, "model.safetensors is cut short"),
    "an empty prefix": (
        lambda folder, bucket: (Folder.of(bucket()) / "none").uri,
        TOKEN,
        None,
        "no such folder, or it is empty",
    ),
    "a bucket of pointers": (
        lambda folder, bucket: uploaded(bucket, folder),
        TOKEN,
        None,
        "an LFS pointer, not the file itself: model.safetensors.",
    ),
}
COMMANDS = {"run": (["run"], [], 2), "dry run": (["run"], ["--dry-run"], 2), "doctor": (["doctor"], [], 1)}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_is_told_in_one_line_before_nodes_are_asked_for(
    case: Case,
    command: tuple[list[str], list[str], int],
    hub: ModelHub,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place, token, revision, says = case
    name, options, status = command
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(doctor, "CHECKS", ())
    given = {
        "model.name_or_path": f"'{place(tmp_path, lambda: request.getfixturevalue('bucket'))}'",
        "model.cache": f"{tmp_path}/cache",
        "run.storage": f"{tmp_path}/runs",
        "decode.enabled": "false",
    }
    given |= {"model.revision": revision} if revision else {}
    if "--dry-run" not in options:
        given["ray.address"] = "'127.0.0.1:1'"
    with pytest.raises(SystemExit) as ended:
        app([*name, SMOKE, *(w for n, value in given.items() for w in ("--set", f"{n}={value}")), *options])
    shown = capsys.readouterr()
    assert ended.value.code == status, shown.err
    said = [line for line in (shown.out + shown.err).splitlines() if says in line]
    assert len(said) == 1
    assert "model.name_or_path = " in said[0]
    assert "Traceback" not in shown.err
    assert "no Ray cluster answers" not in shown.err
    assert not (tmp_path / "runs").exists()
    assert not list(tmp_path.glob("cache/**/model.safetensors"))
