"""The environment of the page templates, and the filters that format numbers.

In: values as in JSON files. Out: text; null becomes a dash. Refuses to know: which page shows what.
"""

from collections.abc import Callable, Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

_NULL = "–"


def environment() -> Environment:
    """Jinja's environment: everything shown is escaped, and an unknown name in a template is an error."""
    loader = PackageLoader("ka2l_ray", "report")
    found = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    found.filters |= FORMATS
    return found


def _format(spec: str) -> Callable[[object], str]:
    return lambda value: _NULL if value is None else format(value, spec).replace("%", "\N{NO-BREAK SPACE}%")


def _measure(value: float | Sequence[float] | None) -> str:
    """A number, or several one after the other."""
    if isinstance(value, Sequence):
        return ", ".join(map(_measure, value))
    return _format(",d" if isinstance(value, int) else ".3f")(value)


def _interval(ends: tuple[float, float] | None) -> str:
    return _NULL if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"


FORMATS: dict[str, Callable[..., str]] = {
    "count": _format(",.0f"),
    "amount": _format(",g"),
    "decimal": _format(".3f"),
    "nats": _format(".2f"),
    "percent": _format(".1%"),
    "whole_percent": _format(".0%"),
    "seconds": _format(",.1f"),
    "measure": _measure,
    "interval": _interval,
    "text": lambda value: _NULL if value is None else str(value),
}
"""Filters of templates, by name; each formats one value."""
