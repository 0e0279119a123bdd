"""What the model does not know, by topic.

In: the number of questions and of unknown ones by topic. Out: shares with their intervals, largest first, and a figure.
Refuses to know: tables, HTML, how a question was found to be unknown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from scipy.stats import binomtest

from ka2l_ray.report.canvas import BLUE, GREY, Drawing

MOST_TOPICS = 25
_LONGEST_NAME = 30


@dataclass(frozen=True)
class Topic:
    """A topic's questions, and the unknown ones among them."""

    name: str
    questions: int
    unknown: int

    @property
    def share(self) -> float:
        """Share of the questions that the model does not know."""
        return self.unknown / self.questions

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval (1927) of the share."""
        found = binomtest(self.unknown, self.questions).proportion_ci(confidence_level=0.95, method="wilson")
        return float(found.low), float(found.high)


def topics(counts: Mapping[str | None, tuple[int, int]], most: int = MOST_TOPICS) -> list[Topic]:
    """The `most` largest topics, ordered by share; then all others together, and the questions without a topic.

    `counts`: {topic: (questions, unknown ones)}, None for questions without one. Empty where no question has a topic.
    """
    named = [Topic(name, *count) for name, count in counts.items() if name is not None]
    if not named:
        return []
    named.sort(key=lambda t: (-t.questions, t.name))
    shown, rest = sorted(named[:most], key=lambda t: (-t.share, t.name)), named[most:]
    if rest:
        shown.append(Topic(f"{len(rest):,} other topics", sum(t.questions for t in rest), sum(t.unknown for t in rest)))
    return shown + ([Topic("no topic", *counts[None])] if None in counts else [])


def topic_shares(found: Sequence[Topic]) -> Drawing | None:
    """Share unknown of every topic with its interval, and that of all questions; None where there is no topic."""
    if not found:
        return None
    height_in = 1.2 + 0.24 * len(found)
    return Drawing("topics", "Share of unknown questions by topic", height_in, partial(_paint, found=found))


def _paint(axes: Axes, found: Sequence[Topic]) -> None:
    rows = range(len(found))
    low, high = zip(*(t.interval for t in found), strict=True)
    axes.hlines(rows, low, high, color=BLUE, linewidth=5, alpha=0.45)
    axes.plot([t.share for t in found], rows, "o", color=BLUE, markersize=5)
    overall = sum(t.unknown for t in found) / sum(t.questions for t in found)
    axes.axvline(overall, color=GREY, linewidth=0.8, linestyle="--")
    text = f"all: {100 * overall:.1f} %"
    axes.text(overall, 1.0, text, transform=axes.get_xaxis_transform(), ha="center", va="bottom")
    axes.set_yticks(rows, [f"{_shown(t.name)} ({t.questions:,})" for t in found])
    axes.set(xlabel="unknown questions (share)", xlim=(0, 1), ylim=(len(found) - 0.4, -0.6))
    axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.tick_params(axis="y", length=0)


def _shown(name: str) -> str:
    """The name as one line without unprintable characters, which SVG does not allow."""
    line = "".join(c if c.isprintable() else " " for c in name)
    return line if len(line) <= _LONGEST_NAME else f"{line[: _LONGEST_NAME - 1]}…"
