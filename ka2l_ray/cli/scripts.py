"""The main function of the scripts in `jobs/`.

In: their command line. Out: the `ka2l` command of that name. Refuses to know: what commands do.
"""

import argparse
from pathlib import Path

from ka2l_ray.cli.app import app
from ka2l_ray.cli.shell import set_options


def stage_job(stage: str, description: str) -> None:
    """Run the `ka2l` command `stage` with the options `--config FILE [--set a.b=c …]` and those of its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, help="the run's YAML file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="override one field; may be repeated"
    )
    arguments, more = parser.parse_known_args()
    app([stage, str(arguments.config), *more, *set_options(arguments.set)])
