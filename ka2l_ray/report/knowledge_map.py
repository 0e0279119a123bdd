"""The map of known and unknown questions: hidden states of the probe's layer on their first two principal components.

In: states with the kind of each question. Out: a drawing. The components do not depend on the kinds, so groups that
are separate on the map are separate in the states. Refuses to know: tables, HTML, probes.
"""

from collections import Counter
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from sklearn.decomposition import PCA

from ka2l_ray.report.canvas import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, Drawing, legend
from ka2l_ray.report.tables import ProbeStates

KINDS = {
    "known": BLUE,
    "rare": SKY,
    "shaky": GREEN,
    "misconception": ORANGE,
    "unseen": VERMILION,
    "unknown": VERMILION,
    "abstains": PURPLE,
    "not stated": GREY,
}


def known_map(found: ProbeStates | None) -> Drawing | None:
    """Questions by the first two principal components of their states, coloured by kind.

    None for fewer than three questions, or where all states are equal.
    """
    if found is None or len(found.states) < 3 or not np.ptp(found.states, axis=0).any():
        return None
    components = PCA(n_components=2, random_state=0)
    points = components.fit_transform(found.states.astype(np.float64))
    paint = partial(_paint, found=found, points=points, shares=components.explained_variance_ratio_)
    return Drawing("map", "Known and unknown questions by hidden state", 4.2, paint)


def _paint(axes: Axes, found: ProbeStates, points: np.ndarray, shares: np.ndarray) -> None:
    counts = Counter(found.kinds)
    colors = {kind: KINDS.get(kind, PURPLE) for kind in sorted(counts, key=lambda kind: [*KINDS, kind].index(kind))}
    # All kinds in one call, in the order of the hashes: otherwise one kind would be painted over another.
    axes.scatter(*points.T, s=14, c=[colors[kind] for kind in found.kinds], alpha=0.75, linewidths=0, clip_on=False)
    axes.set_aspect("equal", "datalim")
    first, second = (f"component ({100 * share:.1f} % of variance)" for share in shares)
    axes.set(xlabel=f"first {first}", ylabel=f"second {second}")
    chosen = f"{len(found.kinds):,} of {found.questions:,} questions by {found.by}; states {found.column}"
    axes.set_title(chosen, fontsize=10, loc="left")
    handles = [
        Line2D([], [], color=c, label=f"{kind} ({counts[kind]:,})", linestyle="", marker="o", markersize=5)
        for kind, c in colors.items()
    ]
    legend(axes, "lower", handles)
