"""The command line: `ka2l`."""


def main() -> None:
    """Run the `ka2l` command; its modules are loaded only now."""
    from ka2l_ray.cli.app import app

    app()
