"""Options that several commands share, and the commands that run up to a step.

In: nothing. Out: annotations for typer, names with their help. Refuses to know: what commands do.
"""

from pathlib import Path
from typing import Annotated

import typer

from ka2l_ray.pipeline.table import STEP_TABLE

ConfigFile = Annotated[Path, typer.Argument(help="The run's YAML file, such as jobs/configs/world.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override one field: section.field=value. May be repeated.")
]
RetryErrors = Annotated[
    bool,
    typer.Option("--retry-errors", help="First repeat the failed rows of every stage; the other rows are kept."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")]

STAGES = {step.name: step.command for step in STEP_TABLE if step.command}
ROUND_STAGES = {
    "decode": "Acquire the next round's questions and decode new ones from hidden states.",
    "finetune": "Run the next round up to its fine-tuned model.",
    "evaluate": "Finish the next round.",
}
