"""Histogram of sequence lengths, for `pretokenize` and `plan`."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt

from corax import plots

BINS = 60


def plot_lengths(path: Path, counts: Mapping[str, npt.NDArray[np.integer]], limit: int | None = None) -> None:
    """Write a PNG with one histogram for each label: of `counts[label][i]` samples of i tokens; a line at `limit`."""
    longest = max((int(values.nonzero()[0][-1]) for values in counts.values() if values.any()), default=1)
    width = max(1, -(-max(longest, limit or 0) // BINS))
    edges = np.arange(0, width * (BINS + 1) + 1, width)
    with matplotlib.rc_context(plots.STYLE):
        figure, axes = plots.new_figure()
        for (label, values), colour in zip(counts.items(), (plots.BLUE, plots.ORANGE, plots.GREEN), strict=False):
            tokens = np.arange(len(values))
            axes.hist(
                tokens, edges.tolist(), weights=values, label=label, color=colour, histtype="stepfilled", alpha=0.5
            )
        if limit is not None:
            axes.axvline(limit, color=plots.INK, linestyle="--", label=f"limit {limit}")
        axes.set(xlabel="tokens", ylabel="samples", xlim=(0, max(longest, limit or 0) * 1.05))
        axes.legend()
    plots.save_png(figure, path)
