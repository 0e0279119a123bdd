"""`ka2l doctor` on this machine, and on machines that lack something."""

import importlib.metadata
import os
import urllib.request

import pytest

from ka2l_ray.cli import doctor
from ka2l_ray.cli.app import app


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
