"""A run whose storage is full: one clear line, nothing half-written counts, and the same command continues later.

The storage is a file system of its own (`tmpfs`), so that the disk is really full. Mounting one needs root.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ROOT, ka2l

SMOKE = str(ROOT / "jobs/configs/smoke.yaml")
SMALL = "corpus.world={probe_questions: 120, pool_questions: 40, domain_questions: 10}"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no small disk can be mounted here: {made.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def run(disk: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    given = (f"run.storage={disk}/runs", SMALL, "active.budget=16")
    return ka2l("run", SMOKE, *(part for o in given for part in ("--set", o)), *arguments)


@pytest.mark.long
def test_a_full_disk_ends_a_run_in_one_line_and_loses_nothing(disk: Path) -> None:
    assert run(disk, "--until", "questions").returncode == 0
    table = disk / "runs/smoke/questions/manifest.json"
    before = table.read_bytes()
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as stream:
        while True:
            try:
                stream.write(bytes(4096))
            except OSError:
                break
    full = run(disk, "--until", "collect")
    assert full.returncode == 2, full.stderr
    (line,) = [line for line in full.stderr.splitlines() if line.startswith("ka2l: ")]
    assert "no space left on device" in line.lower()
    assert "run.storage" in line
    assert "Traceback" not in full.stderr
    assert not (disk / "runs/smoke/base/activations/manifest.json").exists()
    assert table.read_bytes() == before
    filler.unlink()
    again = run(disk, "--until", "collect")
    assert again.returncode == 0, again.stderr
    assert (disk / "runs/smoke/base/activations/manifest.json").exists()
