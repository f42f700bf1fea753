"""The figure of a log beside the run that was made again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from analysis.report.figures import Drawing

LEAST = 1e-8  # the bottom of a figure's axis of differences, where those of zero lie


def log_figure(
    title: str,
    steps: Sequence[float],
    there: Sequence[float],
    here: Sequence[float],
    allowed: Sequence[float] | None = None,
    names: tuple[str, str] = ("the log", "made again"),
) -> Figure:
    """Two loss curves, and how far they lie apart, on a logarithmic axis, with the band in which that may be.

    Args:
        title: what was compared.
        steps: where on the x axis.
        there: losses of the log, in nats.
        here: those it is held against; NaN where there is none.
        allowed: half-widths of the band; None draws none.
        names: of the two curves.
    """
    drawing = Drawing(11, 4)
    left, right = drawing.subplots(1, 2)
    x, a, b = (np.asarray(values, dtype=float) for values in (steps, there, here))
    left.plot(x, a, color="#000000", linewidth=1, label=names[0])
    left.plot(x, b, color="#D55E00", linewidth=1, linestyle="--", label=names[1])
    left.set(xlabel="step", ylabel="loss (nats/token)")
    left.legend(frameon=False)
    gaps = np.abs(b - a)
    if allowed is not None:
        right.fill_between(x, LEAST, np.asarray(allowed, dtype=float), color="0.9", linewidth=0, label="may lie here")
        right.legend(frameon=False, loc="upper left")
    right.plot(x, np.maximum(gaps, LEAST), color="#0072B2", linewidth=0, marker=".", markersize=4)
    right.set(xlabel="step", ylabel="difference (nats/token)", yscale="log", ylim=(LEAST, None))
    if not (gaps > 0).any():
        said = "equal to the last digit" if np.isfinite(gaps).any() else "nothing to compare"
        right.set_ylim(LEAST, 1)
        right.text(0.5, 0.5, said, transform=right.transAxes, ha="center", fontsize=9)
    drawing.suptitle(title, fontsize=10)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return drawing
