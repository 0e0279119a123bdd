"""`python -m ka2l_ray.cli`: the `ka2l` command."""

from ka2l_ray.cli import main

main()
