"""Golden curves of fine-tuning: losses and KL of two small training runs on the world, stored in golden.json.

In: nothing but the shipped world. Out: the curves of both modes, from real DeepSpeed with one rank in this process.
If the curves change, another objective is minimised, or in another order or way. Run as a program, `python
tests/ray/golden.py`, this file writes a new golden.json; the commit that changes it says why.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from finetune_jobs import job

from ka2l_ray.config import FinetuneSection, ReplaySection
from ka2l_ray.finetune.loop import train_rank

GOLDEN = Path(__file__).with_name("golden.json")
ONE_RANK = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
"""What DeepSpeed reads about the place of a process."""
RATES = {"full": 1e-3, "lora": 5e-3}


@contextmanager
def group_of_one(folder: Path) -> Iterator[None]:
    """A process group of this process only."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def curves(mode: Any, folder: Path) -> dict[str, Any]:
    """Twelve steps over 21 facts, every third replayed with a KL term; `folder` is scratch."""
    tune = FinetuneSection(
        mode=mode,
        epochs=4,
        batch_rows=8,
        micro_batch_rows=4,
        workers=1,
        learning_rate=RATES[mode],
        replay=ReplaySection(kl_weight=8.0),
        evaluate_every_epochs=2,
    )
    result = train_rank(job(folder, tune), rank=0, world_size=1)
    return {
        "losses": result["losses"],
        "kl": result["kl"],
        "evaluation": [round(e["loss"], 6) for e in result["evaluations"]],
    }


def main() -> None:
    os.environ |= ONE_RANK
    with tempfile.TemporaryDirectory() as scratch, group_of_one(Path(scratch)):
        found = {mode: curves(mode, Path(scratch) / mode) for mode in RATES}
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
