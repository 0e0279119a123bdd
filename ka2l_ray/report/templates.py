"""Templates of this package, and the filters that write numbers.

In: values as files hold them. Out: text; what is null is a dash. Refuses to know: which page shows what.
"""

from collections.abc import Callable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_NULL = "–"


def environment() -> Environment:
    """Everything that a template shows is escaped, and a name that it misspells is an error."""
    loader = PackageLoader("ka2l_ray", "report")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= FORMATS
    return made


def _format(spec: str) -> Callable[[Any], str]:
    return lambda value: _NULL if value is None else format(value, spec).replace("%", "\N{NO-BREAK SPACE}%")


def _measure(value: float | None) -> str:
    return _format(",d" if isinstance(value, int) else ".3f")(value)


def _text(value: Any) -> str:
    return _NULL if value is None else str(value)


def _interval(ends: tuple[float, float] | None) -> str:
    return _NULL if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"


FORMATS: dict[str, Callable[[Any], str]] = {
    "count": _format(",.0f"),
    "amount": _format(",g"),
    "decimal": _format(".3f"),
    "nats": _format(".2f"),
    "percent": _format(".1%"),
    "seconds": _format(",.1f"),
    "measure": _measure,
    "interval": _interval,
    "text": _text,
}
