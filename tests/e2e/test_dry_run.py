"""The plan of each run on a real model, on a machine that has neither the model nor a network."""

from pathlib import Path

import pytest

from ka2l_ray.cli.app import app

REAL = sorted(
    f
    for f in (Path(__file__).parents[2] / "jobs/configs").glob("*.yaml")
    if f.stem not in ("world", "smoke") and not f.stem.startswith("smollm2-")
)


@pytest.mark.parametrize("file", REAL, ids=lambda f: f.stem)
def test_a_dry_run_of_each_real_model_prints_its_plan_without_model_or_network(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit) as ended:
        app(["run", str(file), "--dry-run"])
    shown = capsys.readouterr().out
    assert not ended.value.code
    for stage in ("collect", "score", "replay", "evaluate", "finetune"):
        assert stage in shown
    assert "its published shape; its files are not at hand" in shown
    assert "not on this machine: stages want 8 GPUs at once" in shown
