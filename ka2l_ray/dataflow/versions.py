"""Versions of this package and of the libraries that its results depend on.

In: nothing but the installation. Out: version numbers as text. Refuses to know: Ray, runs.
"""

import importlib.metadata
import sys

STACK = ("ka2l-ray", "ray", "torch", "transformers", "peft", "deepspeed", "pyarrow", "scikit-learn", "numpy")


def version_of(package: str) -> str:
    """The installed version of a package, or `not installed`."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def versions() -> dict[str, str]:
    """The `versions` part of results.json: {package: version} for Python and every package of `STACK`."""
    return {"python": sys.version.split()[0]} | {name: version_of(name) for name in STACK}
